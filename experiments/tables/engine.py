"""How near training comes to its bottleneck: the SSD, the computations, or both at once.

    python -m experiments.tables engine --measure     # about 15 minutes on 2 quiet cores

Each case is a flag file of experiments/flags/training; one of them is run with more micro-batches,
too, and with larger ones. Each run is a process of its own, with direct I/O. A case's figures are
medians over rounds of ratios within one run: its median iteration over what the probe of the same
run saw, or over in-memory training of the same round.
"""

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from experiments import machine
from experiments.tables import runs
from experiments.tables.runs import QUICK, Run
from experiments.tables.table import (
  NOT_MEASURED,
  Table,
  number_text,
  steady_seconds,
  times_text,
)

FLAGS = Path("experiments/flags/training")
ROUNDS = 5
_BOUND, _MEMORY = "bound", "in memory"


class Case(NamedTuple):
  """What is the bottleneck, in words; the most that an iteration may take, and of what.

  `file` names the flag file, whose flags follow those of the SSD's; `more` follow them.
  """

  title: str
  wanted: float
  of: str
  file: str
  more: tuple[str, ...] = ()

  @property
  def flags(self) -> tuple[str, ...]:
    names = dict.fromkeys(("ssd_bound", self.file))
    return (*(f"--flagfile={FLAGS / name}.flags" for name in names), *self.more)


CASES = {
  "ssd_bound": Case("SSD", 1.15, _BOUND, "ssd_bound"),
  "tie": Case("SSD and computations alike", 1.25, _BOUND, "tie"),
  "compute_bound": Case("computations", 1.10, _MEMORY, "compute_bound"),
  "more_micro_batches": Case(
    "computations, eight micro-batches", 1.10, _MEMORY, "compute_bound", ("--micro_batches=8",)
  ),
  # On the device there is room for their two programs' larger scratch memory, and all boundaries.
  "larger_micro_batches": Case(
    *("computations, two sequences a micro-batch", 1.10, _MEMORY, "compute_bound"),
    ("--micro_batch_size=2", "--device_memory_budget=240MiB"),
  ),
}


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "engine")


def measure(folder: Path, *, quick: bool) -> None:
  """Makes the runs of every case, and in-memory training beside those that are held against it."""
  todo = {}
  for name, case in CASES.items():
    flags = (*case.flags, *QUICK * quick)
    todo[name] = Run(flags)
    if case.of == _MEMORY:
      todo[_in_memory(name)] = Run(flags, "peers.whole_program")
  runs.measure(folder / "engine", todo, 1 if quick else ROUNDS)


def _in_memory(case: str) -> str:
  return f"{case}-in_memory"


def table(folder: Path) -> Table:
  """The table of the runs in `folder/engine`; each may be missing."""
  found = runs.read(folder / "engine")
  some = next((each[0] for each in found.values()), None)
  return Table(
    name="engine",
    title="Training: how near an iteration comes to its bottleneck",
    columns=(
      "bottleneck",
      "tokens",
      "seconds an iteration",
      "busiest resource",
      "over its time",
      "over predicted",
      "over in memory",
      "wanted",
      "spread",
    ),
    rows=tuple(_row(case, found) for case in CASES),
    notes=(
      "Busiest resource: what has most to do when each step takes what it takes alone, by the probe"
      " of the same run. Predicted: by the simulator, from the same. In memory: the whole model as"
      " one JAX program, blocks recomputed likewise. Wanted: at most, and within 10% of predicted.",
      "Medians of rounds, each run a process; spread: the largest over the smallest median"
      " iteration of a case.",
      runs.settings_text(folder / "engine"),
    ),
    machine=machine.sentence(some["machine"]) if some else "",
  )


def _row(case: str, found: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
  title, wanted, of = CASES[case][:3]
  limit = f"{times_text(wanted)} {of}"
  if case not in found:
    return (title, *[NOT_MEASURED] * 6, limit, NOT_MEASURED)
  own = found[case]
  seconds = [steady_seconds(summary) for summary in own]
  over = lambda field: statistics.median(
    s / summary[field] for s, summary in zip(seconds, own, strict=True)
  )
  whole = found.get(_in_memory(case), [])
  ratios = [s / steady_seconds(w) for s, w in zip(seconds, whole, strict=False)]
  tokens = own[0]["tokens_per_second"] * sum(own[0]["seconds_per_iteration"])
  return (
    title,
    number_text(tokens / len(own[0]["seconds_per_iteration"])),
    number_text(statistics.median(seconds)),
    statistics.mode(_busiest(summary) for summary in own),
    times_text(over("bound_seconds_per_iteration")),
    times_text(over("predicted_seconds_per_iteration")),
    times_text(statistics.median(ratios)) if ratios else "",
    limit,
    times_text(max(seconds) / min(seconds)),
  )


def _busiest(summary: dict[str, Any]) -> str:
  resources = summary["resource_seconds"]
  return max(resources, key=resources.__getitem__).replace("_", " ")
