"""Decoding speed by context, batch size and selector, beside what was to be expected.

    python -m experiments.tables throughput --measure     # about 12 minutes on 2 quiet cores

A process for each context and batch size; in it the methods take turns over the same prompts, four
in all, of recall twelve (`experiments.throughput`). All selectors, and the phases of a round, are
timed at 16,384 tokens, batch 1; elsewhere those that are compared. Prompts are of the kind editing;
a last process has the kind recall, whose answers stand far back and nowhere near: the rest of a
name.
"""

import statistics
from pathlib import Path
from typing import Any

from experiments import machine
from experiments.tables import runs
from experiments.tables.runs import Run
from experiments.tables.table import NOT_MEASURED, Table, number_text, same_text, times_text

MAIN = (16_384, 1)  # tokens, batch size
CELLS = tuple((length, batch) for batch in (1, 4) for length in (4096, 8192, 16_384, 32_768))
PROMPTS = 4  # of a cell, but of recall twelve
RECALL = (16_384, 4)
_RECALL = (
  *("--kind=recall", "--new_tokens=24", "--batches=3", "--methods=window,draft_length=2"),
  "--methods=specattn,draft_length=4,kv_budget=0.05,page_size=16",
)
# Settings that were the fastest of a few on two CPU cores.
COMPARED = (
  "specattn,draft_length=8,kv_budget=0.05,page_size=16",
  "window,draft_length=6",
  "quest,draft_length=4",
)
OTHERS = (
  "pillar,draft_length=6,page_size=16",
  "snapkv,draft_length=6,page_size=16",
  "h2o,draft_length=6,page_size=16",
  "oracle,draft_length=6,page_size=16",
  "random,draft_length=2",
)
# Neither score-based nor an oracle: what SpecAttn is to be 1.29 times as fast as.
UNSCORED = ("window", "quest", "random")
WANTED_OVER_UNSCORED = 1.29
_QUICK = ("--rounds=1", "--new_tokens=48", "--batches=1")
_COLUMNS = (
  "prompts, tokens, batch, method",
  "tokens per second",
  "acceptance length",
  "speed-up",
  "by bytes",
  "by phases",
  "of that",
  "draft",
  "verify",
  "score, select",
  "gather",
  "round over its phases",
  "same tokens",
)


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "throughput")


def measure(folder: Path, *, quick: bool) -> None:
  """One run for each context and batch size, and one of recall."""
  cells = ((2048, 1),) if quick else CELLS
  todo = {f"{length}x{batch}": _run(length, batch, quick) for length, batch in cells}
  recall = _run(*(2048, 1) if quick else RECALL, quick)
  todo["recall"] = recall._replace(flags=recall.flags + _RECALL[: 2 if quick else None])
  runs.measure(folder / "throughput", todo, 1)


def _run(length: int, batch: int, quick: bool) -> Run:
  main = (length, batch) == MAIN
  methods = COMPARED[: 2 if quick else None] + OTHERS * main
  flags = [f"--length={length}", f"--batch_size={batch}", *(f"--methods={m}" for m in methods)]
  flags += [f"--batches={PROMPTS // batch}"]
  flags += [] if main or quick else ["--nophases"]
  return Run((*flags, *_QUICK * quick), "throughput")


def table(folder: Path) -> Table:
  """The table of the runs in `folder/throughput`; each may be missing."""
  cells = [summary for own in runs.read(folder / "throughput").values() for summary in own]
  cells.sort(key=lambda cell: (cell["kind"], cell["batch_size"], cell["length"]))
  rows = [_row(cell, name, own) for cell in cells for name, own in cell["methods"].items()]
  missing = (("every method", *[NOT_MEASURED] * (len(_COLUMNS) - 1)),)
  return Table(
    name="throughput",
    title="Decoding: speed by context, batch size and selector",
    columns=_COLUMNS,
    rows=tuple(rows) or missing,
    notes=(*_notes(cells), *map(_verdict, cells)),
    machine=machine.sentence(cells[0]["machine"]) if cells else "",
  )


def _notes(cells: list[dict[str, Any]]) -> list[str]:
  if not cells:
    return ["Nothing is measured: give --measure."]
  first = {cell["kind"]: cell for cell in reversed(cells)}
  prompts = lambda cell: cell.get("batches", 1) * cell["batch_size"]
  return [
    *(
      f"{prompts(cell)} prompts a cell of the kind {kind}, {cell['new_tokens']} new tokens each,"
      " greedy, float32; methods"
      f" in turn, medians over {len(cell['methods']['autoregressive']['seconds'])} rounds of the"
      " ratio of two times of one round."
      for kind, cell in sorted(first.items())
    ),
    "By bytes: the roofline at the acceptance length. By phases: from the phases' times, each a"
    " program of its own, and from the rounds that the slowest sequence took. Draft, verify, score"
    " and select, gather: shares of their sum; round: the fused round over that sum. Wanted of"
    " specattn at editing, 16,384: 2× or more, 0.9 of the prediction by phases, 6% to score and"
    " select, a round of at most 1.1 times its phases.",
  ]


def _row(cell: dict[str, Any], name: str, own: dict[str, Any]) -> tuple[str, ...]:
  phases = own["phases"]
  whole = parts_of(own)
  share = lambda *names: f"{sum(phases[n] for n in names) / whole:.1%}" if whole else NOT_MEASURED
  predicted = own["phases_speedup"]
  cells = (
    times_text(own["roofline_speedup"]),
    times_text(predicted),
    number_text(own["speedup"] / predicted if predicted else None),
    share("draft"),
    share("verify"),
    share("score", "select"),
    share("gather"),
    times_text(phases["round"] / whole if whole else None),
  )
  if name == "autoregressive":
    cells = ("",) * len(cells)
  return (
    f"{_title(cell)} {name.replace(',', ', ')}",
    number_text(own["tokens_per_second"]),
    number_text(own["acceptance_length"]),
    times_text(own["speedup"]),
    *cells,
    same_text(own),
  )


def _title(cell: dict[str, Any]) -> str:
  return f"{cell['kind']}, {cell['length']:,} x {cell['batch_size']}"


def parts_of(own: dict[str, Any]) -> float:
  """Seconds of a round's phases together; 0 where they were not timed."""
  return sum(own["phases"].values()) - own["phases"].get("round", 0.0)


def over_unscored(cell: dict[str, Any]) -> float | None:
  """SpecAttn's speed over that of the fastest selector that scores nothing, round by round; of
  several settings the fastest."""
  methods = cell["methods"]
  of = lambda names: [own for text, own in methods.items() if text.partition(",")[0] in names]
  own, others = of(("specattn",)), of(UNSCORED)
  if not own or not others:
    return None
  ours, best = (max(settings, key=lambda one: one["speedup"]) for settings in (own, others))
  return statistics.median(
    theirs / mine for mine, theirs in zip(ours["seconds"], best["seconds"], strict=True)
  )


def _verdict(cell: dict[str, Any]) -> str:
  ratio = over_unscored(cell)
  return (
    f"{_title(cell)}: specattn over the fastest of"
    f" {', '.join(UNSCORED)}: {times_text(ratio)} (wanted {times_text(WANTED_OVER_UNSCORED)})."
  )
