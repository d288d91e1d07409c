"""Speculation in the paper's regime: what a round of a large shape costs, and what it would yield.

    python -m experiments.round_costs --workdir=results/quickstart/rounds      # on a GPU
    python -m experiments.tables regime

Cost and yield come from different models, since no large one is at hand: seconds are of shapes
with random weights, tokens a round of the kept trained model (`acceptance`) and of the paper's own
models. A speed-up is the tokens that a round yields times the seconds of an autoregressive step
over the seconds of the round.
"""

from pathlib import Path
from typing import Any

from experiments import machine, run_log
from experiments.tables import acceptance
from experiments.tables.table import NOT_MEASURED, Table, number_text, times_text

# Tokens a round at draft length 6 and a budget of 7%, Qwen3-8B (2602.07223, ablation).
PUBLISHED_LENGTHS = {"specattn": 6.24, "window": 4.92}
# Speed-up over vLLM on an H100 (2602.07223, the poster's tables): at 10K the mean of two data sets.
PUBLISHED = {
  ("qwen3-4b", 10_000): {"specattn": 2.62, "window": 2.13},
  ("qwen3-8b", 10_000): {"specattn": 2.06, "window": 1.70},
  ("qwen3-4b", 100_000): {"specattn": 2.81, "window": 2.24},
  ("qwen3-8b", 100_000): {"specattn": 2.73, "window": 2.12},
}
_COLUMNS = (
  "shape, context, batch, method",
  "round, ms",
  "of the bound",
  "tokens a round, trained model",
  "speed-up",
  "tokens a round, published",
  "speed-up",
  "published speed-up",
)


def table(folder: Path) -> Table:
  """The table of the run in `folder/rounds` and of `folder/acceptance`; each may be missing."""
  done = (folder / "rounds" / run_log.SUMMARY_FILE).is_file()
  summary = run_log.read_summary(folder / "rounds") if done else None
  rows = summary["rows"] if summary else []
  lengths = _lengths(folder)
  steps = {_cell(row): row["seconds"] for row in rows if row["method"] == "autoregressive"}
  missing = ((NOT_MEASURED, *[NOT_MEASURED] * (len(_COLUMNS) - 1)),)
  return Table(
    name="regime",
    title="Decoding in the paper's regime: rounds of large shapes",
    columns=_COLUMNS,
    rows=tuple(_row(row, steps.get(_cell(row)), lengths) for row in rows) or missing,
    notes=_notes(summary),
    machine=machine.sentence(summary["machine"]) if summary else "",
  )


def _notes(summary: dict[str, Any] | None) -> tuple[str, ...]:
  if summary is None:
    return ("python -m experiments.round_costs --workdir=<runs>/rounds measures it, on a GPU.",)
  return (
    f"Seconds are of the shapes with random weights, {summary['dtype']}, timed at two depths and"
    " extrapolated to all layers. Bound: the bytes that a round must read over the copy bandwidth,"
    f" {summary['copy_bytes_per_second'] / 1e9:,.0f} GB/s.",
    "Tokens a round of the trained model: the kept one on editing prompts of 4,096 bytes, draft"
    " length 6 and 7%, so neither this shape's nor at this context; published: Qwen3-8B's.",
  )


def _cell(row: dict[str, Any]) -> tuple[str, int, int]:
  return row["model"], row["context"], row["batch_size"]


def _lengths(folder: Path) -> dict[str, float]:
  """Acceptance lengths of the trained model by selector and settings, as the table has them."""
  rows = acceptance.read(folder / "acceptance").get("editing", {}).get("rows", {})
  return {case: row["acceptance_length"] for (case, at), row in rows.items() if at == acceptance.AT}


def _row(row: dict[str, Any], step: float | None, lengths: dict[str, float]) -> tuple[str, ...]:
  model, context, batch = _cell(row)
  text, seconds = row["method"], row["seconds"]
  first = (
    f"{model}, {context:,} x {batch}: {text.replace(',', ', ')}",
    number_text(seconds * 1e3),
    number_text(row["bound_seconds"] / seconds),
  )
  if text == "autoregressive":
    return (*first, "1", times_text(1), "1", times_text(1), times_text(1))
  settings = [each for each in text.split(",") if not each.startswith("draft_length=")]
  of_trained, of_published = lengths.get(",".join(settings)), PUBLISHED_LENGTHS.get(settings[0])
  speed_up = lambda length: length * step / seconds if length and step else None
  return (
    *first,
    number_text(of_trained),
    times_text(speed_up(of_trained)),
    number_text(of_published),
    times_text(speed_up(of_published)),
    times_text(PUBLISHED.get((model, context), {}).get(settings[0])),
  )
