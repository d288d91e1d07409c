"""What commits cost: bytes and seconds of each, seconds an iteration, room on the disk.

    python -m experiments.tables commits --measure     # about 4 minutes on 2 quiet cores

One run for each distance between commits, with direct I/O, by the flag file of the orders.
"""

import statistics
from pathlib import Path
from typing import Any

from experiments import machine
from experiments.tables import runs
from experiments.tables.engine import FLAGS
from experiments.tables.runs import QUICK, Run
from experiments.tables.table import (
  NOT_MEASURED,
  Table,
  bytes_text,
  number_text,
  steady_seconds,
  times_text,
)

EVERY, ROUNDS, ITERATIONS = (0, 10, 5, 1), 3, 20


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "commits")


def measure(folder: Path, *, quick: bool) -> None:
  own = (f"--flagfile={FLAGS / 'orders.flags'}", "--schedule=vertical", "--micro_batches=4")
  own += (f"--iterations={ITERATIONS}", *QUICK * quick)
  todo = {f"every{n}": Run((*own, f"--commit_every={n}")) for n in EVERY}
  runs.measure(folder / "commits", todo, 1 if quick else ROUNDS)


def table(folder: Path) -> Table:
  """The table of the runs in `folder/commits`; each may be missing."""
  found = runs.read(folder / "commits")
  some = next((each[0] for each in found.values()), None)
  return Table(
    name="commits",
    title="Training: what commits cost",
    columns=(
      "iterations between commits",
      "bytes a commit",
      "predicted",
      "seconds a commit",
      "seconds an iteration, amortised",
      "over none",
      "on disk",
      "predicted on disk",
    ),
    rows=tuple(_row(n, found) for n in EVERY),
    notes=(
      "Amortised: all iterations and commits of a run over its iterations; between commits the"
      " queues run dry, which counts. A commit writes what is at home in memory; what is on SSD is"
      " there already, and the first write after it goes to another generation of the array.",
      "Medians of rounds, each run a process. Predicted: from the placement, before the run.",
      runs.settings_text(folder / "commits"),
    ),
    machine=machine.sentence(some["machine"]) if some else "",
  )


def _row(every: int, found: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
  title = str(every) if every else "none"
  own, without = found.get(f"every{every}"), found.get("every0", [])
  if own is None:
    return (title, *[NOT_MEASURED] * 7)
  seconds = [_amortised(summary) for summary in own]
  ratios = [s / _amortised(w) for s, w in zip(seconds, without, strict=False)]
  commits = [summary["commits"] for summary in own]
  number = len(commits[0]["seconds"])
  cells = ["", "", ""]
  if number:
    median = statistics.median(second for each in commits for second in each["seconds"])
    sizes = (commits[0][name] / number for name in ("bytes", "predicted_bytes"))
    cells = [*map(bytes_text, sizes), number_text(median)]
  planned = commits[0].get("predicted_disk_bytes")
  return (
    title,
    *cells,
    number_text(statistics.median(seconds)),
    times_text(statistics.median(ratios) if ratios else None),
    bytes_text(own[0]["peak_bytes"]["ssd"]),
    bytes_text(planned) if planned else "",
  )


def _amortised(summary: dict[str, Any]) -> float:
  """Seconds an iteration with its share of the commits; the first counts as the others do."""
  seconds = summary["seconds_per_iteration"]
  whole = sum(seconds) - seconds[0] + steady_seconds(summary) + sum(summary["commits"]["seconds"])
  return whole / len(seconds)
