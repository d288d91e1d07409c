"""Hugging Face transformers beside ours: tokens per second of decoding, one model, one machine.

scripts/peers/transformers            # measures it; --quick for one short prompt
"""

import statistics
from pathlib import Path
from typing import Any

from experiments import machine, run_log
from experiments.tables.table import NOT_MEASURED, Table, number_text, same_text, times_text

SYSTEMS = {
  "autoregressive": "ours, autoregressive",
  "specattn": "ours, specattn",
  "dynamic": "transformers, generate",
  "static": "transformers, generate, static cache",
  "lookup": "transformers, prompt look-up",
}
PEER = "dynamic"  # what speed-ups are over
WANTED = {"autoregressive": 1.0, "specattn": 2.0}
_COLUMNS = (
  "system",
  "tokens per second",
  "over transformers' generate",
  "middle half",
  "wanted",
  "tokens a forward pass",
  "same tokens as ours, autoregressive",
)


def table(runs: Path) -> Table:
  """The table of the run in `runs/assisted`, if there is one."""
  if not (runs / "assisted" / run_log.SUMMARY_FILE).is_file():
    note = f"scripts/peers/transformers --workdir={runs / 'assisted'} measures it."
    rows = tuple((title, *[NOT_MEASURED] * (len(_COLUMNS) - 1)) for title in SYSTEMS.values())
    return _table(rows, (note,), "")
  return of_summary(run_log.read_summary(runs / "assisted"))


def of_summary(summary: dict[str, Any]) -> Table:
  """The table of a run of experiments.peers.assisted, from its summary."""
  results = summary["results"]
  rounds = max(map(len, results.values()))
  notes = [
    "Prompts of {length:,} bytes ({kind}), {new_tokens} tokens each, one sequence at a time,"
    " greedy, float32; drafts of {draft_length} with a budget of {kv_budget} in pages of {page},"
    " look-up of {lookup_tokens}.".format(**summary),
    f"Medians of {rounds} rounds, each run a process; a ratio is of two runs of one round. Prefill"
    " is timed apart on both sides.",
  ]
  peers = [run for name in ("dynamic", "static", "lookup") for run in _finished(results[name])]
  if peers:
    worst = max(run["logit_difference"] for run in peers)
    versions = ", ".join(f"{name} {version}" for name, version in peers[0]["versions"].items())
    notes.append(f"{versions}; its logits differ from ours by at most {worst:.0e} of the largest.")
  notes += [
    f"{SYSTEMS[name]} failed: {run['failed']}"
    for name, runs in results.items()
    for run in runs[:1]
    if "failed" in run
  ]
  rows = tuple(_row(name, summary) for name in SYSTEMS)
  return _table(rows, tuple(notes), machine.sentence(summary["machine"]))


def progress_text(system: str, result: dict[str, Any]) -> str:
  """One run in a line, for the terminal."""
  if "failed" in result:
    return f"{SYSTEMS[system]} failed: {result['failed']}"
  return f"{SYSTEMS[system]}: {result['tokens_per_second']:.1f} tokens/s"


def _finished(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
  return [run for run in runs if "failed" not in run]


def _row(name: str, summary: dict[str, Any]) -> tuple[str, ...]:
  own, base = summary["results"][name], summary["results"][PEER]
  wanted = f"at least {times_text(WANTED[name])}" if name in WANTED else ""
  finished = _finished(own)
  if not finished:
    return (SYSTEMS[name], *[NOT_MEASURED] * 3, wanted, *[NOT_MEASURED] * 2)
  rate = lambda run: run["tokens_per_second"]
  pairs = [pair for pair in zip(own, base, strict=True) if not any("failed" in run for run in pair)]
  ratios = [rate(run) / rate(other) for run, other in pairs] or [None]
  low, middle, high = (
    statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
  )
  return (
    SYSTEMS[name],
    number_text(statistics.median(map(rate, finished))),
    times_text(middle),
    NOT_MEASURED if low is None else f"{low:.2f} to {high:.2f}",
    wanted,
    number_text(statistics.median(run["tokens_per_pass"] for run in finished)),
    same_text(summary["verdicts"].get(name)),
  )


def _table(rows: tuple[tuple[str, ...], ...], notes: tuple[str, ...], where: str) -> Table:
  title = "Beside Hugging Face transformers: decoding with the same weights on one machine"
  return Table("assisted", title, _COLUMNS, rows, notes, where)
