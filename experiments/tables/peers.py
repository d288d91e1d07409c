"""ZeRO-Infinity beside ours, and both beside training in memory.

    scripts/peers/zero_infinity            # measures it; --quick for the small model alone

The most that streaming can win over ZeRO-Infinity is the ratio of its seconds to those of training
in memory; the target is 0.85 of that.
"""

import statistics
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

TARGET = 0.85  # of the most that streaming can win
MOST_LOSS_DIFFERENCE = 1e-5
SYSTEMS = {
  "ours": "ours, from SSD",
  "zero_infinity": "ZeRO-Infinity",
  "jax": "JAX in memory",
  "torch": "PyTorch in memory",
}
_COLUMNS = (
  "model, micro-batches",
  *(f"{title}, s" for title in SYSTEMS.values()),
  "ours over ZeRO-Infinity",
  "most to win",
  f"wanted ({TARGET} of it, at least 1)",
  *(f"losses off JAX's by, {title}" for name, title in SYSTEMS.items() if name != "jax"),
  "SSD bytes an iteration, ours: read, written",
  "ZeRO-Infinity: read, written",
  "resident set at most, ours",
  "ZeRO-Infinity's",
)


def table(runs: Path) -> Table:
  """The table of the run in `runs/peers`, if there is one."""
  if not (runs / "peers" / run_log.SUMMARY_FILE).is_file():
    note = f"scripts/peers/zero_infinity --workdir={runs / 'peers'} measures it."
    return _table((("GPT", *[NOT_MEASURED] * (len(_COLUMNS) - 1)),), (note,), "")
  return of_summary(run_log.read_summary(runs / "peers"))


def of_summary(summary: dict[str, Any]) -> Table:
  """The table of a run of experiments.peers, from its summary."""
  cases = summary["cases"]
  rounds = {len(runs) for case in cases for runs in case["results"].values()} or {0}
  notes = [
    f"Medians over {_rounds_text(rounds)} of each system, the first iteration of each left out."
    " Float32, recomputation everywhere, direct I/O on both sides; the same weights and batches."
    f" Losses off JAX's: the most over all iterations; wanted at most {MOST_LOSS_DIFFERENCE}.",
    "Ours may take as many bytes for its buffers as ZeRO-Infinity's configuration does; resident"
    " sets are those of the whole processes. SSD bytes are what the system counts of each process"
    " while it trains (/proc/self/io).",
  ]
  versions = next((v for case in cases if (v := _versions(case))), {})
  if versions:
    notes.append(", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
  if summary["not_switched_on"]:
    notes.append("DeepSpeed could not switch on: " + "; ".join(summary["not_switched_on"]) + ".")
  notes += [_failure(case, name) for case in cases for name in SYSTEMS if _failure(case, name)]
  return _table(tuple(map(_row, cases)), tuple(notes), machine.sentence(summary["machine"]))


def seconds(case: dict[str, Any], system: str) -> float | None:
  """Median seconds of an iteration over all rounds; None where no run finished."""
  steady = [steady_seconds(run) for run in _finished(case, system)]
  return statistics.median(steady) if steady else None


def loss_difference(case: dict[str, Any], system: str, reference: str = "jax") -> float | None:
  """The largest difference of two systems' losses over all iterations and rounds."""
  runs, base = _finished(case, system), _finished(case, reference)
  if not runs or not base:
    return None
  return max(
    abs(own - other)
    for run in runs
    for own, other in zip(run["losses"], base[0]["losses"], strict=True)
  )


def ratios(case: dict[str, Any]) -> tuple[float | None, float | None]:
  """(ZeRO-Infinity's seconds over ours, its seconds over JAX's in memory)."""
  own, peer, memory = (seconds(case, name) for name in ("ours", "zero_infinity", "jax"))
  return (peer / own if peer and own else None, peer / memory if peer and memory else None)


def progress_text(system: str, result: dict[str, Any]) -> str:
  """One run in a line, for the terminal."""
  if "failed" in result:
    return f"{SYSTEMS[system]} failed: {result['failed']}"
  return (
    f"{SYSTEMS[system]}: {number_text(steady_seconds(result))} s an iteration, "
    f"loss {result['losses'][-1]:.6f}"
  )


def _row(case: dict[str, Any]) -> tuple[str, ...]:
  faster, most = ratios(case)
  differences = (loss_difference(case, name) for name in SYSTEMS if name != "jax")
  return (
    f"{case['model']} ({case['parameters'] / 1e6:.1f}M), M = {case['micro_batches']}",
    *(number_text(seconds(case, name)) for name in SYSTEMS),
    times_text(faster),
    times_text(most),
    times_text(None if most is None else max(1.0, TARGET * most)),
    *(NOT_MEASURED if d is None else f"{d:.0e}" for d in differences),
    *(_moved(case, name) for name in ("ours", "zero_infinity")),
    *(_peak(case, name) for name in ("ours", "zero_infinity")),
  )


def _rounds_text(rounds: set[int]) -> str:
  fewest, most = min(rounds), max(rounds)
  if most == 1:
    return "one run"
  return f"{most if fewest == most else f'{fewest} to {most}'} interleaved runs"


def _moved(case: dict[str, Any], system: str) -> str:
  runs = _finished(case, system)
  if not runs:
    return NOT_MEASURED
  links = ("ssd_read", "ssd_written")
  medians = [
    statistics.median(i[link] for run in runs for i in run["bytes_per_iteration"][1:])
    for link in links
  ]
  return ", ".join(map(bytes_text, medians))


def _peak(case: dict[str, Any], system: str) -> str:
  peaks = [run["peak_resident_bytes"] for run in _finished(case, system)]
  return bytes_text(max(peaks, default=None))


def _finished(case: dict[str, Any], system: str) -> list[dict[str, Any]]:
  return [run for run in case["results"].get(system, []) if "failed" not in run]


def _failure(case: dict[str, Any], system: str) -> str:
  failed = [run["failed"] for run in case["results"].get(system, []) if "failed" in run]
  where = f"{case['model']}, M = {case['micro_batches']}"
  return f"{SYSTEMS[system]} failed at {where}: {failed[0]}" if failed else ""


def _versions(case: dict[str, Any]) -> dict[str, str]:
  return next((run["versions"] for run in _finished(case, "zero_infinity")), {})


def _table(rows: tuple[tuple[str, ...], ...], notes: tuple[str, ...], where: str) -> Table:
  title = "Beside ZeRO-Infinity: seconds of an iteration, one model, one machine"
  return Table("peers", title, _COLUMNS, rows, notes, where)
