"""Decoding methods against autoregressive decoding: speed, acceptance length, and the same tokens.

Paper: SpecAttn / Vegas (arXiv 2602.07223) and its StreamingLLM baseline (`window` here): Qwen3-4B
at about 100K tokens of context on H100s, where the cache outweighs the weights many times.
"""

from pathlib import Path
from typing import Any

from experiments import machine, run_log
from experiments.tables.table import NOT_MEASURED, Table, number_text, times_text

METHODS = ("autoregressive", "window", "specattn")
PAPER_SPEEDUP = {"autoregressive": "1", "window": "2.24×", "specattn": "2.81×"}


def table(runs: Path) -> Table:
  """The table of the generate runs in `runs/decode_<method>`; each may be missing."""
  found = read(runs)
  rows = [_row(method, found) for method in METHODS]
  return Table(
    name="decoding",
    title="Decoding: the speed of each method, and whether its tokens are the same",
    columns=(
      "method",
      "paper's speed-up",
      "predicted speed-up",
      "measured speed-up",
      "tokens per second",
      "acceptance length",
      "same tokens as autoregressive",
    ),
    rows=tuple(rows),
    notes=(
      "Paper: Vegas (SpecAttn v2), Qwen3-4B at about 100K tokens on H100s, against vLLM.",
      "Predicted: from the bytes of weights and cache that a round reads, at the measured"
      " acceptance length. Acceptance length: tokens that a verification yields, the bonus token"
      " included.",
    ),
    machine=machine.sentence(next(iter(found.values()))["machine"]) if found else "",
  )


def read(runs: Path) -> dict[str, dict[str, Any]]:
  """Summaries of the finished generate runs, by method."""
  folders = {method: runs / f"decode_{method}" for method in METHODS}
  return {
    method: run_log.read_summary(folder)
    for method, folder in folders.items()
    if (folder / run_log.SUMMARY_FILE).is_file()
  }


def compare(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """The `decode` part of a quickstart's summary: each method, speed-ups measured and predicted."""
  base = found["autoregressive"]
  others = {method: summary for method, summary in found.items() if method != "autoregressive"}
  return {
    **{
      method: {
        "tokens_per_second": summary["tokens_per_second"],
        "acceptance_length": summary["acceptance_length"],
        "identical_to_autoregressive": _identical(summary),
        "near_ties": summary.get("near_ties", 0),
      }
      for method, summary in found.items()
    },
    "speedup": {
      method: summary["tokens_per_second"] / base["tokens_per_second"]
      for method, summary in others.items()
    },
    "predicted_speedup": {
      method: summary["predicted_speedup"] for method, summary in others.items()
    },
  }


def _identical(summary: dict[str, Any]) -> bool | None:
  """The run's own verdict, which follows near-ties; None where it was compared with nothing."""
  if summary["method"] == "autoregressive":
    return True
  return summary.get("identical_to_autoregressive")


def _row(method: str, found: dict[str, dict[str, Any]]) -> tuple[str, ...]:
  if method not in found:
    return (method, PAPER_SPEEDUP[method], *[NOT_MEASURED] * 5)
  rate = number_text(found[method]["tokens_per_second"])
  length = number_text(found[method]["acceptance_length"])
  if "autoregressive" not in found:
    return (method, PAPER_SPEEDUP[method], *[NOT_MEASURED] * 2, rate, length, NOT_MEASURED)
  if method == "autoregressive":
    return (method, "1", "1", "1", rate, length, "by definition")
  decode = compare(found)
  identical = decode[method]["identical_to_autoregressive"]
  same = {True: "yes", False: "no", None: NOT_MEASURED}[identical]
  if decode[method]["near_ties"]:
    same += f", {decode[method]['near_ties']} near-ties"
  return (
    method,
    PAPER_SPEEDUP[method],
    times_text(decode["predicted_speedup"][method]),
    times_text(decode["speedup"][method]),
    rate,
    length,
    same,
  )
