"""What each queue did and when, from trace events: one panel a timeline, on one time axis."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.report.plots import INK, STYLE, save

QUEUES = ("ssd_read", "host_to_device", "device", "device_to_host", "host_update", "ssd_write")
# What an event is about: the first of these words that its name holds.
SUBJECTS = {
  "boundary": ("boundaries", "#9c7bb0"),
  "gradient": ("gradients", "#c65d57"),
  "parameters": ("parameters", "#2f6f94"),
  "states": ("optimizer states", "#6d9b5a"),
  "forward": ("forward", "#7fb3d0"),
  "backward": ("backward, with recomputation", "#e0a35f"),
  "update": ("optimizer update", "#a9c98f"),
}


class Panel(NamedTuple):
  """A window of `seconds` from `begin` of a timeline of Chrome trace events, queue in `cat`."""

  title: str
  events: list[dict[str, Any]]
  begin: float
  seconds: float


def gantt(path: Path, panels: list[Panel]) -> None:
  """Draws the panels below one another; a line ends each one's window."""
  with matplotlib.rc_context(STYLE):
    figure = Figure((8, 0.7 + 1.95 * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    drawn = set().union(*(_draw(axes, panel) for axes, panel in zip(every, panels, strict=True)))
    every[-1].set_xlabel("seconds")
    every[-1].set_xlim(0, max(panel.seconds for panel in panels) * 1.01)
    handles = [Patch(color=c, label=label) for key, (label, c) in SUBJECTS.items() if key in drawn]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=9)
    save(figure, path)


def _draw(axes: Axes, panel: Panel) -> set[str]:
  """Returns the subjects that are there."""
  bars: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
  for event in panel.events:
    if event["ph"] != "X":
      continue
    start = event["ts"] / 1e6 - panel.begin
    stop = min(start + event["dur"] / 1e6, panel.seconds)
    start = max(start, 0.0)
    if start < stop:
      bars[event["cat"], _subject(event["name"])].append((start, stop - start))
  for (queue, subject), spans in bars.items():
    axes.broken_barh(spans, (QUEUES.index(queue) - 0.39, 0.78), color=SUBJECTS[subject][1])
  axes.axvline(panel.seconds, color=INK, linewidth=1)
  axes.set_title(panel.title)
  axes.set_yticks(range(len(QUEUES)), [queue.replace("_", " ") for queue in QUEUES])
  axes.set_ylim(len(QUEUES) - 0.5, -0.5)
  axes.grid(axis="y", visible=False)
  return {subject for _, subject in bars}


def _subject(name: str) -> str:
  return next((subject for subject in SUBJECTS if subject in name), "update")
