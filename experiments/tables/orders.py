"""Vertical against horizontal order over micro-batches, and vertical over the delayed fraction.

    python -m experiments.tables orders --measure     # about 7 minutes on 2 quiet cores

Paper: GreedySnake (arXiv 2512.17570). Both orders have one budget and place under it as they like
best; each run is a process of its own.
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
  number_text,
  steady_seconds,
  times_text,
)

MICRO_BATCHES, FRACTIONS, AT = (1, 2, 4, 8, 16), (0.0, 0.25, 0.5, 0.75, 1.0), 4
QUICK_MICRO_BATCHES = (1, AT, 16)  # AT: what the delayed fractions are compared with
SCHEDULES = ("horizontal", "vertical")
ROUNDS, WANTED = 3, 1.9
_PREDICTED = "predicted_seconds_per_iteration"


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "orders")


def measure(folder: Path, *, quick: bool) -> None:
  """Makes both orders' runs at every M, vertical's at every alpha, and the picture."""
  from experiments.report import curves  # not above: other tables need no drawing

  own = (f"--flagfile={FLAGS / 'orders.flags'}", *QUICK * quick)
  todo = {
    _name(schedule, m): Run((*own, f"--schedule={schedule}", f"--micro_batches={m}"))
    for m in (QUICK_MICRO_BATCHES if quick else MICRO_BATCHES)
    for schedule in SCHEDULES
  }
  for alpha in FRACTIONS[:: 2 if quick else 1][1:]:
    flags = ("--schedule=vertical", f"--micro_batches={AT}", f"--delayed_fraction={alpha}")
    todo[_name("vertical", AT, alpha)] = Run((*own, *flags))
  runs.measure(folder / "orders", todo, 1 if quick else ROUNDS)
  curves.orders(folder / "orders.png", *series(runs.read(folder / "orders")))


Series = dict[str, list[tuple[float | int, float]]]


def series(found: dict[str, list[dict[str, Any]]]) -> tuple[Series, Series]:
  """(M, vertical over horizontal) and (alpha, speed over alpha 0), "measured" and "predicted"."""
  ratios, gains = {"measured": [], "predicted": []}, {"measured": [], "predicted": []}
  for m in MICRO_BATCHES:
    pair = [found.get(_name(schedule, m)) for schedule in SCHEDULES]
    if pair[0] and pair[1]:
      _add(ratios, m, pair[0], pair[1])
  base = found.get(_name("vertical", AT))
  for alpha in FRACTIONS:
    own = found.get(_name("vertical", AT, alpha))
    if base and own:
      _add(gains, alpha, base, own)
  return ratios, gains


def table(folder: Path) -> Table:
  """The table of the runs in `folder/orders`; each may be missing."""
  found = runs.read(folder / "orders")
  ratios, gains = series(found)
  some = next((each[0] for each in found.values()), None)
  best = max((y for _, y in ratios["measured"]), default=None)
  return Table(
    name="orders",
    title="Training: vertical against horizontal order, and the delayed step",
    columns=(
      "setting",
      "horizontal, seconds",
      "vertical, seconds",
      "measured ratio",
      "predicted ratio",
    ),
    rows=(
      *(
        _row(f"M = {m}", found, _name("horizontal", m), _name("vertical", m), ratios, m)
        for m in MICRO_BATCHES
      ),
      *(
        _row(f"alpha = {a:g}, M = {AT}", found, None, _name("vertical", AT, a), gains, a)
        for a in FRACTIONS
      ),
    ),
    notes=(
      f"Best measured ratio {times_text(best)}, wanted at least {times_text(WANTED)}; paper: 1.96×"
      " for GPT-65B on one A100. Ratios of the rows with alpha are over alpha = 0.",
      "Medians of rounds; predicted from the probes of the same runs.",
      runs.settings_text(folder / "orders"),
    ),
    machine=machine.sentence(some["machine"]) if some else "",
  )


def _name(schedule: str, micro_batches: int, alpha: float = 0.0) -> str:
  return f"{schedule}-{micro_batches}-{alpha:g}".replace(".", "_")


def _add(into: Series, x: float | int, slow: list[dict], fast: list[dict]) -> None:
  pairs = list(zip(slow, fast, strict=False))
  measured = [steady_seconds(a) / steady_seconds(b) for a, b in pairs]
  predicted = [a[_PREDICTED] / b[_PREDICTED] for a, b in pairs]
  into["measured"].append((x, statistics.median(measured)))
  into["predicted"].append((x, statistics.median(predicted)))


def _row(
  title: str,
  found: dict[str, list[dict[str, Any]]],
  horizontal: str | None,
  vertical: str,
  of: Series,
  x: float | int,
) -> tuple[str, ...]:
  def seconds(name: str | None) -> str:
    if name is None:
      return ""
    each = [steady_seconds(summary) for summary in found.get(name, [])]
    return number_text(statistics.median(each)) if each else NOT_MEASURED

  ratio = [times_text(dict(of[how]).get(x)) for how in ("measured", "predicted")]
  return (title, seconds(horizontal), seconds(vertical), *ratio)
