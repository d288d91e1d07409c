"""A run's resident set, seen from outside the process, against the budgets that it was given.

    python -m experiments.tables memory --measure     # about 2 minutes on 2 cores

Optimizer states are five times the host's budget. What the program itself takes (the interpreter,
JAX, compiled programs, the text) is what the same program takes with a model of three units of
width 32; on a CPU the device's buffers are in the resident set too, and with them holes of the C
library's heap, for which a quarter of the device's budget is allowed.
"""

from pathlib import Path

from experiments import machine, program
from experiments.tables import runs
from experiments.tables.engine import FLAGS
from experiments.tables.runs import Run
from experiments.tables.table import NOT_MEASURED, Table, bytes_text

QUICK = ("--model=bytes-13m", "--host_memory_budget=19MiB", "--device_memory_budget=40MiB")
_HOLES = 4  # a share of the device's budget: blocks of many sizes are allocated and freed in turn
_TINY = ("--model=bytes-tiny", "--host_memory_budget=1MiB", "--device_memory_budget=4MiB")


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "memory")


def measure(folder: Path, *, quick: bool) -> None:
  own = (f"--flagfile={FLAGS / 'beyond_memory.flags'}",)
  todo = {"tiny": Run((*own, *_TINY)), "large": Run((*own, *QUICK * quick))}
  runs.measure(folder / "memory", todo, 1)


def budgets_of(run: Path) -> dict[str, int]:
  """The bytes of the host's and the device's budget that a run's flag file gives."""
  given = runs.flags_of(run)
  return {tier: program.size(given[f"{tier}_memory_budget"]) for tier in ("host", "device")}


def table(folder: Path) -> Table:
  """The table of the runs in `folder/memory`, if they are there."""
  found = {name: each[0] for name, each in runs.read(folder / "memory").items()}
  heading = {
    "name": "memory",
    "title": "Training: the resident set beside the budgets, from outside the process",
    "columns": ("what", "bytes"),
  }
  names = ("optimizer states", "budget, host", "budget, device", "program itself", "heap's holes")
  last = ("resident set, at most", "resident set, peak")
  if set(found) != {"tiny", "large"}:
    blank = tuple((name, NOT_MEASURED) for name in (*names, *last))
    return Table(rows=blank, notes=("--measure makes the runs.",), **heading)
  budgets = budgets_of(folder / "memory" / "large.0")
  base = found["tiny"]["peak_resident_bytes"]
  states = found["large"]["optimizer_state_bytes"]
  holes = budgets["device"] // _HOLES
  values = (states, budgets["host"], budgets["device"], base, holes)
  peak = found["large"]["peak_resident_bytes"]
  rows = zip((*names, *last), (*values, sum(values[1:]), peak), strict=True)
  return Table(
    rows=tuple((name, bytes_text(value)) for name, value in rows),
    notes=(
      "The system's VmHWM of each process; program itself: with a tiny model.",
      runs.settings_text(folder / "memory"),
    ),
    machine=machine.sentence(found["large"]["machine"]),
    **heading,
  )
