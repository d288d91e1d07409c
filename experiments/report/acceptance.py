"""Pictures of acceptance: against the budget, by draft position, and as a selection grows stale."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.plots import INK, STYLE, save

Curves = dict[str, list[tuple[float, float]]]  # by the rule's name: (x, y)


@dataclasses.dataclass(frozen=True)
class _Line:
  """One colour for each rule; ceilings and floors dashed, variants of a rule broken."""

  colour: str
  style: Any = "-"
  marker: str = "o"


LINES = {
  "full": _Line(INK, (0, (5, 3)), ""),
  "oracle": _Line("#8a5a9e", (0, (5, 3)), "D"),
  "specattn": _Line("#2f6f94"),
  "specattn, pages of 16": _Line("#2f6f94", "-.", "^"),
  "specattn, tuned": _Line("#2f6f94", ":", "s"),
  "pillar": _Line("#c8483c"),
  "pillar, pages of 16": _Line("#c8483c", "-.", "^"),
  "pillar, tuned": _Line("#c8483c", ":", "s"),
  "quest": _Line("#c8903c"),
  "quest, 2 dense layers": _Line("#c8903c", ":", "s"),
  "snapkv": _Line("#b06a98"),
  "h2o": _Line("#7d6247"),
  "window": _Line("#6d9b5a"),
  "random": _Line("#8a959c", (0, (5, 3)), "x"),
}


def lengths(path: Path, kinds: dict[str, Curves]) -> None:
  """Acceptance length against the budget, a panel for each kind of prompt."""

  def finish(axes: Axes) -> None:
    budgets = sorted({x for curves in kinds.values() for of in curves.values() for x, _ in of})
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{100 * x:g}" for x in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("KV budget, % of the context")

  _panels(path, kinds, "tokens a round", finish, bottom=1)


def positions(path: Path, kinds: dict[str, dict[str, list[float]]]) -> None:
  """Share of rounds in which each draft stood, a panel for each kind of prompt."""
  number = lambda shares: [(float(i), share) for i, share in enumerate(shares, start=1)]
  numbered: dict[str, Curves] = {
    kind: {name: number(shares) for name, shares in rules.items()} for kind, rules in kinds.items()
  }
  finish = lambda axes: axes.set_xlabel("draft")
  _panels(path, numbered, "share of rounds in which it stood", finish, bottom=0)


def staleness(path: Path, kinds: dict[str, Curves]) -> None:
  """Acceptance length against the rounds that a selection is kept for."""

  def finish(axes: Axes) -> None:
    rounds = sorted({x for curves in kinds.values() for of in curves.values() for x, _ in of})
    axes.set_xscale("log", base=2)
    axes.set_xticks(rounds, [f"{x:g}" for x in rounds])
    axes.set_xlabel("rounds that a selection is kept for")

  _panels(path, kinds, "tokens a round", finish, bottom=1)


def _panels(
  path: Path, kinds: dict[str, Curves], y: str, finish: Callable[[Axes], Any], bottom: float
) -> None:
  with matplotlib.rc_context(STYLE):
    figure = Figure((3 + 3.5 * len(kinds), 4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True)
    for axes, (kind, curves) in zip(panels, kinds.items(), strict=True):
      for name, points in curves.items():
        line = LINES[name]
        drawn = {"color": line.colour, "linestyle": line.style, "marker": line.marker}
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, label=name, markersize=4, linewidth=1.6, **drawn)
      axes.set_title(kind)
      axes.set_ylim(bottom=bottom)
      finish(axes)
    panels[0].set_ylabel(y)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    save(figure, path)
