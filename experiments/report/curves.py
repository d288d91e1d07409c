"""Curves of measured beside predicted ratios."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.plots import COLOURS, INK, STYLE, save

Series = dict[str, list[tuple[float | int, float]]]  # "measured" and "predicted": (x, ratio)


def orders(path: Path, ratios: Series, gains: Series) -> None:
  """Vertical over horizontal against micro-batches; speed against the delayed fraction."""
  with matplotlib.rc_context(STYLE):
    figure = Figure((8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, ratios, "micro-batches of an iteration", "vertical over horizontal, throughput")
    left.set_xscale("log", base=2)
    ticks = [x for x, _ in ratios["measured"]]
    left.set_xticks(ticks, [f"{x:g}" for x in ticks])
    left.axhline(1.96, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    left.annotate("paper: 1.96, GPT-65B, A100", (1, 1.96), (-4, -13), fontsize=9, **where)
    _draw(right, gains, "delayed fraction alpha", "throughput over alpha = 0")
    left.legend(loc="best", fontsize=9)
    save(figure, path)


def _draw(axes: Axes, series: Series, x: str, y: str) -> None:
  for how, points in series.items():
    colour, marker, line = (COLOURS["vertical"], "o", "-") if how == "measured" else (INK, "_", ":")
    at = [p[0] for p in points], [p[1] for p in points]
    axes.plot(*at, color=colour, marker=marker, linestyle=line, label=how)
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.set_ylim(0, 1.15 * max([1.96, *(p[1] for points in series.values() for p in points)]))
