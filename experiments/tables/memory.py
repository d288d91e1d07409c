"""A run's resident set, seen from outside the process, against the budgets that it was given.

    python -m experiments.tables memory --measure     # about 2 minutes on 2 cores

Optimizer states are five times the host's budget. What the program itself takes (the interpreter,
JAX, compiled programs, the text) is what the same program takes with a model of three units of
width 32.
"""

from pathlib import Path

from experiments import machine, program
from experiments.tables import runs
from experiments.tables.engine import FLAGS
from experiments.tables.runs import Run
from experiments.tables.table import NOT_MEASURED, Table, bytes_text

QUICK = ("--model=bytes-13m", "--host_memory_budget=19MiB", "--device_memory_budget=40MiB")
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


def allowed(budgets: dict[str, int], program_bytes: int, platform: str) -> dict[str, int]:
  """What may be in the resident set, by what it is for, in bytes.

  On a CPU the device's buffers are.
  """
  tiers = ("host", "device") if platform == "cpu" else ("host",)
  return {f"budget, {tier}": budgets[tier] for tier in tiers} | {"program itself": program_bytes}


def table(folder: Path) -> Table:
  """The table of the runs in `folder/memory`, if they are there."""
  found = {name: each[0] for name, each in runs.read(folder / "memory").items()}
  heading = {
    "name": "memory",
    "title": "Training: the resident set beside the budgets, from outside the process",
    "columns": ("what", "bytes"),
  }
  if set(found) != {"tiny", "large"}:
    blank = (("resident set, at most", NOT_MEASURED), ("resident set, peak", NOT_MEASURED))
    return Table(rows=blank, notes=("--measure makes the runs.",), **heading)
  tiny, large = found["tiny"], found["large"]
  budgets = budgets_of(folder / "memory" / "large.0")
  parts = allowed(budgets, tiny["peak_resident_bytes"], large["machine"]["platform"])
  rows = {"optimizer states": large["optimizer_state_bytes"], **parts}
  rows["resident set, at most"] = sum(parts.values())
  rows["resident set, peak"] = large["peak_resident_bytes"]
  return Table(
    rows=tuple((name, bytes_text(value)) for name, value in rows.items()),
    notes=(
      "The system's VmHWM of each process; program itself: with a tiny model.",
      runs.settings_text(folder / "memory"),
    ),
    machine=machine.sentence(large["machine"]),
    **heading,
  )
