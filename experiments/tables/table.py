"""A table: titled columns, rows of text, notes; and how numbers are written in one."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

NOT_MEASURED = "«not measured»"


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of finished text. The first column names a row; notes stand below, the machine last."""

  name: str
  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  notes: tuple[str, ...] = ()
  machine: str = ""

  def markdown(self) -> str:
    """The table as aligned Markdown, which also reads well in a terminal."""
    lines = [self.columns, *self.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]

    def row(cells: Sequence[str]) -> str:
      padded = [
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
      ]
      return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    below = [f"{note}" for note in self.notes]
    if self.machine:
      below.append(f"Measured on {self.machine}.")
    table = [row(self.columns), f"| {' | '.join(rule)} |", *map(row, self.rows)]
    return "\n".join([f"### {self.title}", "", *table, "", *below, ""])


def bytes_text(count: float | int | None) -> str:
  """12345678 -> "12.3 MB"; decimal units, three figures."""
  if count is None:
    return NOT_MEASURED
  for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= size:
      return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
  return f"{count:.0f} B"


def number_text(value: float | int | None, figures: int = 3) -> str:
  """Three figures unless told, with thousands separated."""
  if value is None:
    return NOT_MEASURED
  if abs(value) >= 10 ** (figures - 1):
    return f"{value:,.0f}"
  return f"{value:#.{figures}g}" if value else "0"


def times_text(ratio: float | int | None) -> str:
  """A ratio: "1.96×"."""
  return NOT_MEASURED if ratio is None else f"{ratio:.2f}×"


def steady_seconds(summary: dict) -> float:
  """Median seconds of an iteration, the first left out where there are others (it compiles)."""
  seconds = summary["seconds_per_iteration"]
  return statistics.median(seconds[1:] or seconds)


def same_text(verdict: dict[str, Any] | None) -> str:
  """Whether texts were those of autoregressive decoding, and beside how many near-ties."""
  if verdict is None:
    return NOT_MEASURED
  if not verdict["identical_to_autoregressive"]:
    return "no"
  ties = verdict["near_ties"]
  return f"yes, {ties} near-tie{'s' * (ties > 1)}" if ties else "yes"
