"""Horizontal against vertical: the bytes that each moves, and the time that each takes.

Paper: GreedySnake (arXiv 2512.17570), whose baseline is ZeRO-Infinity's (horizontal) order.
"""

from pathlib import Path
from typing import Any

from experiments import machine, run_log
from experiments.tables.table import (
  NOT_MEASURED,
  Table,
  bytes_text,
  number_text,
  steady_seconds,
  times_text,
)

SCHEDULES = ("horizontal", "vertical")
LINKS = {
  "ssd_read": "SSD read",
  "ssd_written": "SSD written",
  "host_to_device": "host to device",
  "device_to_host": "device to host",
}
PAPER_RATIO = "1.96×"


def table(runs: Path) -> Table:
  """The table of the train runs in `runs/horizontal` and `runs/vertical`; either may be missing."""
  found = {name: _summary(runs / name) for name in SCHEDULES}
  present = [summary for summary in found.values() if summary]
  rows = [
    _row(
      title,
      lambda s, side, link=link: bytes_text(s[side][link]),
      found,
      ("predicted_bytes", "bytes"),
    )
    for link, title in LINKS.items()
  ]
  rows += [
    _row("seconds an iteration", _seconds, found, ("predicted", "measured")),
    _row("tokens per second", _tokens_per_second, found, ("predicted", "measured")),
    _row("loss at the end (nats)", _last_loss, found, ("predicted", "measured")),
    (
      "throughput, vertical over horizontal",
      PAPER_RATIO,
      "",
      "",
      times_text(_ratio(found, "predicted")),
      times_text(_ratio(found, "measured")),
    ),
  ]
  return Table(
    name="training",
    title="Training: what each order of work moves, and how long it takes",
    columns=(
      "whole run",
      "paper",
      "horizontal, predicted",
      "horizontal, measured",
      "vertical, predicted",
      "vertical, measured",
    ),
    rows=tuple(rows),
    notes=(
      "Paper: GreedySnake, GPT-65B on one A100, against ZeRO-Infinity; bytes not published.",
      "Predicted bytes are counted on the derived list of steps before it runs. Seconds are medians"
      " without the first iteration, which compiles.",
    ),
    machine=machine.sentence(present[0]["machine"]) if present else "",
  )


def vertical_over_horizontal(runs: Path) -> float | None:
  """Measured throughput ratio of the two runs."""
  return _ratio({name: _summary(runs / name) for name in SCHEDULES}, "measured")


def _summary(run: Path) -> dict[str, Any] | None:
  return run_log.read_summary(run) if (run / run_log.SUMMARY_FILE).is_file() else None


def _row(title: str, cell, found: dict, sides: tuple[str, str]) -> tuple[str, ...]:
  cells = [
    cell(found[name], side) if found[name] else NOT_MEASURED for name in SCHEDULES for side in sides
  ]
  return (title, "", *cells)


def _seconds_of(summary: dict, side: str) -> float | None:
  if side == "measured":
    return steady_seconds(summary)
  return summary.get("predicted_seconds_per_iteration")


def _seconds(summary: dict, side: str) -> str:
  seconds = _seconds_of(summary, side)
  return "" if seconds is None else number_text(seconds)


def _tokens_per_second(summary: dict, side: str) -> str:
  return number_text(summary["tokens_per_second"]) if side == "measured" else ""


def _last_loss(summary: dict, side: str) -> str:
  return f"{summary['losses'][-1]:.4f}" if side == "measured" else ""


def _ratio(found: dict, side: str) -> float | None:
  if not all(found.values()):
    return None
  horizontal, vertical = (_seconds_of(found[name], side) for name in SCHEDULES)
  return horizontal / vertical if horizontal and vertical else None
