"""Speculation in the paper's regime: what a round of a large shape costs, and what it would yield.

    python -m experiments.round_costs --workdir=results/quickstart/rounds      # on a GPU
    python -m experiments.tables regime

Cost and yield come from different models, since no large one is at hand: seconds are of shapes
with random weights, tokens a round of the kept trained model (`acceptance`) and of the paper's own
models. A speed-up is the tokens that a round yields times the seconds of an autoregressive step
over the seconds of the round.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments import machine, run_log
from experiments.tables import acceptance
from experiments.tables.table import NOT_MEASURED, Table, number_text, times_text
from models.config import PRESETS

_AT = {"draft_length": "6", "kv_budget": acceptance.AT}  # what all tokens a round here are of
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


Key = tuple[str, int, int, str]  # model, context, batch size, method


class Round(NamedTuple):
  """Of the whole model: median seconds, and the bytes that it must read."""

  seconds: float
  bytes: float


def table(folder: Path) -> Table:
  """The table of the run in `folder/rounds`, finished or not, and of `folder/acceptance`."""
  path = folder / "rounds" / run_log.METRICS_FILE
  lines = run_log.read_metrics(path.parent) if path.is_file() else []
  first = next((line for line in lines if "machine" in line), None)
  if first is None:
    how = f"python -m experiments.round_costs --workdir={folder}/rounds measures it, on a GPU."
    return _table(((NOT_MEASURED,) * len(_COLUMNS),), (how,), "")
  rounds, lengths = _whole_rounds(lines), _lengths(folder)
  rows = [_row(key, rounds, first["copy_bytes_per_second"], lengths) for key in rounds]
  notes = (*_notes(first), *_missing(lines, rounds))
  return _table(tuple(rows), notes, machine.sentence(first["machine"]))


def _table(rows: tuple[tuple[str, ...], ...], notes: tuple[str, ...], made_on: str) -> Table:
  title = "Decoding in the paper's regime: rounds of large shapes"
  return Table("regime", title, _COLUMNS, rows, notes, made_on)


def _notes(first: dict[str, Any]) -> tuple[str, ...]:
  return (
    f"Seconds are of the shapes with random weights, {first['dtype']}, timed at two depths and"
    " extrapolated to all layers. Bound: the bytes that a round must read over the copy bandwidth,"
    f" {first['copy_bytes_per_second'] / 1e9:,.0f} GB/s; reading alone can be faster than copying.",
    "Tokens a round of the trained model: the kept one's on editing prompts of 4,096 bytes, draft"
    " length 6 and 7%, so neither this shape's nor at this context; published: Qwen3-8B's, of"
    " single tokens selected. Published speed-ups are over vLLM on an H100 of 94 GB; those here are"
    " over an autoregressive step of the same batch, the largest that the memory holds with the"
    " drafts' copies of the cache.",
  )


def _missing(lines: list[dict[str, Any]], rounds: dict[Key, Round]) -> Iterator[str]:
  """What could not be timed, and what was timed at one depth alone."""
  for line in lines:
    if "problem" in line:
      yield f"{_title(_key(line))}, {line['depth']} layers: {line['problem']}."
  known = dict.fromkeys(_key(line) for line in lines if "rounds" in line)
  if left_out := [_title(key) for key in known if key not in rounds]:
    yield f"Timed at one depth alone, and left out: {'; '.join(left_out)}."


def _whole_rounds(lines: list[dict[str, Any]]) -> dict[Key, Round]:
  """Rounds on the line through those of two depths, of what was timed at both."""
  found: dict[Key, dict[int, Round]] = {}
  for line in lines:
    if "rounds" in line:
      own = Round(statistics.median(line["rounds"]), line["bytes"])
      found.setdefault(_key(line), {})[line["depth"]] = own
  return {key: _whole(key[0], depths) for key, depths in found.items() if len(depths) == 2}


def _whole(model: str, depths: dict[int, Round]) -> Round:
  (few, short), (many, long) = sorted(depths.items())
  layer = (long.seconds - short.seconds) / (many - few)
  return short._replace(seconds=short.seconds + (PRESETS[model].layers - few) * layer)


def _key(line: dict[str, Any]) -> Key:
  return line["model"], line["context"], line["batch_size"], line["method"]


def _title(key: Key) -> str:
  model, context, batch, method = key
  return f"{model}, {context:,} x {batch}: {method.replace(',', ', ')}"


def _lengths(folder: Path) -> dict[str, float]:
  """Acceptance lengths of the trained model by selector and settings, as the table has them."""
  rows = acceptance.read(folder / "acceptance").get("editing", {}).get("rows", {})
  return {case: row["acceptance_length"] for (case, at), row in rows.items() if at == acceptance.AT}


def _row(
  key: Key, rounds: dict[Key, Round], rate: float, lengths: dict[str, float]
) -> tuple[str, ...]:
  model, context, batch, method = key
  own, step = rounds[key], rounds.get((model, context, batch, "autoregressive"))
  first = (
    _title(key),
    number_text(own.seconds * 1e3),
    number_text(own.bytes / rate / own.seconds),
  )
  if method == "autoregressive":
    return (*first, "1", times_text(1), "1", times_text(1), times_text(1))
  selector, *given = method.split(",")
  settings = dict(each.split("=") for each in given)
  of_trained = of_published = None
  if all(settings.pop(name, value) == value for name, value in _AT.items()):
    case = ",".join([selector, *(f"{name}={value}" for name, value in settings.items())])
    of_trained, of_published = lengths.get(case), PUBLISHED_LENGTHS.get(selector)
  speed_up = lambda length: length * step.seconds / own.seconds if length and step else None
  return (
    *first,
    number_text(of_trained),
    times_text(speed_up(of_trained)),
    number_text(of_published),
    times_text(speed_up(of_published)),
    times_text(PUBLISHED.get((model, context), {}).get(selector)),
  )
