"""`--draft_length=auto` beside fixed draft lengths: how far below the best of them it stays.

    python -m experiments.tables draft_lengths --measure     # about 18 minutes on 2 quiet cores

A process for each kind of prompt, context and batch size; in it autoregressive decoding, the fixed
lengths and `auto` take turns over the same twelve prompts (`experiments.throughput`): with a few,
which fixed length is the best is mostly chance. At the shortest context the weights outweigh the
cache: there speculation pays least.
"""

import statistics
from pathlib import Path
from typing import Any

from experiments import machine
from experiments.tables import runs
from experiments.tables.runs import Run
from experiments.tables.table import NOT_MEASURED, Table, number_text, times_text

KINDS = ("editing", "continuation")
CELLS = ((1024, 1), (4096, 1), (4096, 4), (16_384, 1), (16_384, 4))  # tokens, batch size
SELECTOR = "specattn,kv_budget=0.05,page_size=16"
FIXED, AUTO = (2, 4, 8, 12), "auto"
PROMPTS = 12  # of a cell
WANTED = 0.95  # of the best fixed length's speed, autoregressive decoding among them
_QUICK = ("--rounds=1", "--new_tokens=48", "--batches=1")


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "draft_lengths")


def measure(folder: Path, *, quick: bool) -> None:
  """One run for each kind, context and batch size."""
  cells = CELLS[:1] if quick else CELLS
  todo = {
    f"{kind}-{length}x{batch}": _run(kind, length, batch, quick)
    for kind in KINDS[: 1 if quick else None]
    for length, batch in cells
  }
  runs.measure(folder / "draft_lengths", todo, 1)


def _method(draft_length: int | str) -> str:
  return f"{SELECTOR},draft_length={draft_length}"


def _run(kind: str, length: int, batch: int, quick: bool) -> Run:
  flags = (f"--kind={kind}", f"--length={length}", f"--batch_size={batch}", "--nophases")
  flags += (f"--batches={PROMPTS // batch}",)
  methods = (f"--methods={_method(g)}" for g in (*FIXED, AUTO))
  return Run((*flags, *methods, *_QUICK * quick), "throughput")


def table(folder: Path) -> Table:
  """The table of the runs in `folder/draft_lengths`; each may be missing."""
  cells = [summary for own in runs.read(folder / "draft_lengths").values() for summary in own]
  cells.sort(key=lambda cell: (KINDS.index(cell["kind"]), cell["length"], cell["batch_size"]))
  columns = (
    "prompts, tokens, batch",
    *(f"{g} drafts" for g in FIXED),
    AUTO,
    "auto over the best",
    "wanted",
    "drafts a round of auto",
  )
  missing = ((NOT_MEASURED,) * len(columns),)
  return Table(
    name="draft_lengths",
    title="Decoding: a draft length chosen as it goes, beside fixed ones",
    columns=columns,
    rows=tuple(map(_row, cells)) or missing,
    notes=_notes(cells),
    machine=machine.sentence(cells[0]["machine"]) if cells else "",
  )


def _notes(cells: list[dict[str, Any]]) -> tuple[str, ...]:
  if not cells:
    return ("Nothing is measured: give --measure.",)
  rounds = len(cells[0]["methods"]["autoregressive"]["seconds"])
  prompts = cells[0].get("batches", 1) * cells[0]["batch_size"]
  return (
    f"Speed-ups over autoregressive decoding of {SELECTOR}, {prompts} prompts a cell, medians"
    f" over {rounds} rounds. Auto over"
    " the best: the median over rounds of the ratio of its time and that of the fixed length, or of"
    " autoregressive decoding, that is the fastest by its own median. What rounds cost is measured"
    f" before, once for each cell ({_measuring(cells)}), and not counted.",
  )


def _measuring(cells: list[dict[str, Any]]) -> str:
  seconds = [cell["methods"][_method(AUTO)]["measuring_seconds"] for cell in cells]
  return f"{min(seconds):.0f} to {max(seconds):.0f} s, compilation included"


def _row(cell: dict[str, Any]) -> tuple[str, ...]:
  methods = cell["methods"]
  auto = methods[_method(AUTO)]
  ratio = over_best(cell)
  drafted = {int(g): n for g, n in auto["rounds_by_draft_length"].items()}
  mean = sum(g * n for g, n in drafted.items()) / max(sum(drafted.values()), 1)
  return (
    f"{cell['kind']}, {cell['length']:,} x {cell['batch_size']}",
    *(times_text(methods[_method(g)]["speedup"]) for g in FIXED),
    times_text(auto["speedup"]),
    number_text(ratio),
    f"at least {WANTED}",
    number_text(mean),
  )


def over_best(cell: dict[str, Any]) -> float:
  """Auto's speed over that of the fastest other, round by round; 1 where they are alike."""
  auto = cell["methods"][_method(AUTO)]
  others = [own for text, own in cell["methods"].items() if text != _method(AUTO)]
  best = max(others, key=lambda own: own["speedup"])
  pairs = zip(best["seconds"], auto["seconds"], strict=True)
  return statistics.median(theirs / ours for theirs, ours in pairs)
