"""The quickstart's plots, each a function that writes one PNG."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.tables.training import LINKS, SCHEDULES

INK, FAINT = "#22303a", "#c9d2d8"
COLOURS = {
  "horizontal": "#c8803c",
  "vertical": "#2f6f94",
  "autoregressive": "#8a959c",
  "window": "#6d9b5a",
  "specattn": "#2f6f94",
}
STYLE: dict[Any, Any] = {
  "font.family": "DejaVu Sans",
  "font.size": 10,
  "text.color": INK,
  "axes.edgecolor": FAINT,
  "axes.labelcolor": INK,
  "axes.titlelocation": "left",
  "axes.titlesize": 11,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#e8edf0",
  "xtick.color": INK,
  "ytick.color": INK,
  "legend.frameon": False,
}


def bytes_per_link(path: Path, runs: dict[str, dict[str, Any]]) -> None:
  """Bars of measured bytes, one group a link, with the prediction as a mark on each bar."""
  with matplotlib.rc_context(STYLE):
    figure = Figure((8, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(SCHEDULES):
      at = [link + (i - 0.5) * 0.36 for link in range(len(LINKS))]
      measured = [runs[name]["bytes"][link] / 1e6 for link in LINKS]
      predicted = [runs[name]["predicted_bytes"][link] / 1e6 for link in LINKS]
      bars = axes.bar(at, measured, 0.34, color=COLOURS[name], label=f"{name}, measured")
      axes.bar_label(bars, [f"{value:,.0f}" for value in measured], padding=3, fontsize=9)
      label = "predicted before the run" if i else None
      axes.scatter(at, predicted, marker="_", s=700, color=INK, linewidths=1.6, label=label)
    axes.set_xticks(range(len(LINKS)), list(LINKS.values()))
    axes.set_ylabel("MB, whole run")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    _legend_above(axes, 3)
    save(figure, path)


def loss_curve(path: Path, metrics: list[dict[str, Any]], summary: dict[str, Any]) -> None:
  """Training loss in bits per byte, smoothed, with the held-out result and the bigram's line."""
  bits = [line["loss"] / math.log(2) for line in metrics if line.get("loss") is not None]
  with matplotlib.rc_context(STYLE):
    figure = Figure((8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(bits) + 1), bits, color=COLOURS["vertical"], alpha=0.3, linewidth=1)
    axes.plot(
      range(1, len(bits) + 1), _smooth(bits), color=COLOURS["vertical"], label="training text"
    )
    bigram = summary["bigram_bits_per_byte"]
    axes.axhline(bigram, color=INK, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.annotate(
      f"bigram model, held-out text: {bigram:.2f}",
      (1, bigram),
      (-4, 5),
      xycoords=("axes fraction", "data"),
      textcoords="offset points",
      ha="right",
    )
    heldout = summary["heldout_bits_per_byte"]
    axes.scatter(
      [len(bits)],
      [heldout],
      color=COLOURS["specattn"],
      zorder=3,
      label=f"held-out text: {heldout:.2f}",
    )
    axes.set_xlabel("iteration")
    axes.set_ylabel("bits per byte")
    axes.set_ylim(0, max(8.2, *bits))
    axes.set_xlim(0, len(bits) * 1.02)
    _legend_above(axes, 2)
    save(figure, path)


def decoding_speed(path: Path, decode: dict[str, Any]) -> None:
  """Measured speed-up of each method as a bar, the predicted one as a mark, 1 as a line."""
  methods = list(decode["speedup"])
  with matplotlib.rc_context(STYLE):
    figure = Figure((8, 0.8 + 0.62 * (len(methods) + 1)), layout="constrained")
    axes = figure.subplots()
    names = ["autoregressive", *methods]
    measured = [1.0, *(decode["speedup"][method] for method in methods)]
    axes.barh(names, measured, 0.62, color=[COLOURS[name] for name in names])
    for name, ratio in zip(names, measured, strict=True):
      label = f"{ratio:.2f}×   {decode[name]['tokens_per_second']:,.0f} tokens/s"
      axes.annotate(label, (ratio, name), (8, 0), textcoords="offset points", va="center")
    predicted = [decode["predicted_speedup"][method] for method in methods]
    axes.scatter(
      predicted,
      methods,
      marker="|",
      s=500,
      color=INK,
      linewidths=1.8,
      zorder=3,
      label="predicted from bytes",
    )
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("speed-up over autoregressive decoding")
    axes.set_xlim(0, max(*measured, *predicted) * 1.3)
    _legend_above(axes, 1, markerscale=0.5)
    save(figure, path)


def _smooth(values: list[float]) -> list[float]:
  """Mean over a centred window of about a thirtieth of the run, narrower at the ends."""
  reach = len(values) // 60
  windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
  return [sum(window) / len(window) for window in windows]


def _legend_above(axes: Axes, columns: int, markerscale: float = 1.0) -> None:
  axes.legend(
    loc="lower left",
    bbox_to_anchor=(0, 1),
    ncols=columns,
    fontsize=9,
    borderaxespad=0.2,
    markerscale=markerscale,
  )


def save(figure: Figure, path: Path) -> None:
  """Writes a figure as every picture here is written."""
  figure.savefig(path, dpi=160, facecolor="white")
