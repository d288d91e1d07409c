"""The share of the copy bandwidth that the kernels of decoding reach, beside other libraries."""

from pathlib import Path
from typing import Any

from experiments import machine, run_log
from experiments.tables.table import NOT_MEASURED, Table, number_text

WANTED = {"attention_with_mass": 0.85, "page_attention": 0.7}  # of the copy bandwidth


def table(runs: Path) -> Table:
  """The table of the run in `runs/bandwidth`, if there is one, finished or not."""
  heading = {
    "name": "bandwidth",
    "title": "Kernels of decoding: the share of the copy bandwidth that each reaches",
    "columns": ("setting", "kernel", "microseconds", "GB/s", "of copy bandwidth", "wanted"),
  }
  folder = runs / "bandwidth"
  lines = run_log.read_metrics(folder) if (folder / run_log.METRICS_FILE).is_file() else []
  rows = [line for line in lines if "setting" in line]
  if not rows:
    blank = tuple((name, *[NOT_MEASURED] * 4, _wanted(name)) for name in WANTED)
    how = f"python -m experiments.gpu_check.bandwidth --workdir={folder} measures it, on a GPU."
    return Table(rows=blank, notes=(how,), **heading)
  notes = [f"Copy bandwidth {max(row['copy_bytes_per_second'] for row in rows) / 1e9:,.0f} GB/s."]
  notes += sorted({f"{row['name']}: {row['problem']}." for row in rows if "problem" in row})
  [described] = [line["machine"] for line in lines if "machine" in line]
  return Table(
    rows=tuple(map(_cells, rows)),
    notes=tuple(notes),
    machine=machine.sentence(described),
    **heading,
  )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
  first = row["setting"], row["name"]
  if "problem" in row:
    return (*first, *[NOT_MEASURED] * 3, _wanted(row["name"]))
  rate = row["bytes"] / row["seconds"]
  return (
    *first,
    number_text(row["seconds"] * 1e6),
    number_text(rate / 1e9),
    number_text(rate / row["copy_bytes_per_second"]),
    _wanted(row["name"]),
  )


def _wanted(name: str) -> str:
  """For the implementation that runs if none is asked for."""
  share = WANTED.get(name.partition(",")[0])
  return f"at least {share}" if share else ""
