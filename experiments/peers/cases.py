"""The cases that a work folder holds: one file each, `<model>.<micro-batches>.json`."""

import json
from pathlib import Path
from typing import Any

from experiments import run_log
from models.config import PRESETS

Case = dict[str, Any]


def keep(case: Case, folder: Path) -> None:
  """Writes a case; one that was measured before with the same settings keeps the results of the
  systems that were not run again, and is replaced if the settings differ."""
  file = folder / f"{case['model']}.{case['micro_batches']}.json"
  if file.is_file():
    earlier = json.loads(file.read_text())
    if earlier | {"results": None} == case | {"results": None}:
      case = case | {"results": earlier["results"] | case["results"]}
  run_log.write_json(file, case)


def read_all(folder: Path) -> list[Case]:
  """All cases, in the order of presets, then of micro-batches."""
  files = [folder / f"{model}.{n}.json" for model in PRESETS for n in _counts(folder, model)]
  return [json.loads(file.read_text()) for file in files]


def _counts(folder: Path, model: str) -> list[int]:
  names = (path.name.removeprefix(f"{model}.") for path in folder.glob(f"{model}.*.json"))
  return sorted(int(name.removesuffix(".json")) for name in names)
