"""How acceptance decays as a selection grows stale: refreshed every 1, 2, 4, 8, 16 rounds.

    python -m experiments.tables staleness --measure     # about 5 minutes on 2 quiet cores

SpecAttn and PillarAttn at one budget, on the prompts of the table `acceptance`.
"""

from pathlib import Path
from typing import Any

from experiments import machine
from experiments.tables import acceptance, runs
from experiments.tables.acceptance import AT, CASES, KINDS
from experiments.tables.table import NOT_MEASURED, Table

REFRESH = (1, 2, 4, 8, 16)
NAMES = ("specattn", "specattn, tuned", "pillar", "pillar, tuned")


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "staleness")


def measure(folder: Path, *, quick: bool) -> None:
  """Makes the runs, and the picture."""
  from experiments.report import acceptance as pictures  # not above: other tables draw nothing

  cases = (f"--case={_case(name, n)}" for name in NAMES for n in REFRESH)
  runs.measure(
    folder / "staleness", acceptance.todo(folder / "staleness", (*cases,), quick=quick), 1
  )
  found = acceptance.read(folder / "staleness")
  pictures.staleness(folder / "staleness.png", {kind: series(found, kind) for kind in KINDS})


def series(found: dict[str, dict[str, Any]], kind: str) -> dict[str, list[tuple[float, float]]]:
  """(rounds, acceptance length) of each rule."""
  rows = found[kind]["rows"] if kind in found else {}
  cell = lambda name, n: rows.get((_case(name, n), AT))
  return {
    name: [(n, row["acceptance_length"]) for n in REFRESH if (row := cell(name, n))]
    for name in NAMES
  }


def table(folder: Path) -> Table:
  """The table of the runs in `folder/staleness`; each may be missing."""
  found = acceptance.read(folder / "staleness")
  some = next(iter(found.values()), None)
  return Table(
    name="staleness",
    title="Decoding: tokens a round, by how many rounds a selection is kept",
    columns=("prompts and rule", *(f"{n} round{'s' * (n > 1)}" for n in REFRESH)),
    rows=tuple(_row(found, kind, name) for kind in KINDS for name in NAMES),
    notes=(
      f"At a budget of {float(AT):.0%}. What was accepted since a selection was made is in its"
      " tail, which pillar charges to the budget when it selects.",
      acceptance.settings_text(found),
    ),
    machine=machine.sentence(some["machine"]) if some else "",
  )


def _case(name: str, refresh: int) -> str:
  return f"{CASES[name]},refresh={refresh},kv_budget={AT}"


def _row(found: dict[str, dict[str, Any]], kind: str, name: str) -> tuple[str, ...]:
  points = dict(series(found, kind)[name])
  cells = (f"{points[n]:.2f}" if n in points else NOT_MEASURED for n in REFRESH)
  return (f"{kind}: {name}", *cells)
