"""The systems that are compared: how each is started, and what its run says of itself."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import program, run_log
from experiments.peers.job import Job
from experiments.tables import runs

_LONGEST = 3600  # seconds of one run; what takes longer hangs
_KEPT = ("losses", "seconds_per_iteration")
_TORCH_PROGRAM = Path("scripts/peers/train.py")


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one run of one system happens.

  Attributes:
    job: folder with the job's files.
    scratch: empty folder on the disk that is compared; removed after the run.
    host_memory_budget: of ours, in bytes, like the next.
    device_memory_budget: of ours.
    peers_python: interpreter of the peers' environment.
  """

  job: Path
  scratch: Path
  host_memory_budget: int
  device_memory_budget: int
  peers_python: str


@dataclasses.dataclass(frozen=True)
class System:
  """A command for a run, and how its result is read: losses, seconds_per_iteration, ..."""

  title: str
  command: Callable[[Job, Place], list[str]]
  read: Callable[[Path], dict[str, Any]]


def _ours(job: Job, place: Place) -> list[str]:
  """Vertical, with the peer's memory; like the peer's run, it commits and saves nothing."""
  return [
    *_jax("train", job, place),
    *("--schedule=vertical", "--direct_io", "--commit_every=0", "--save_model=false"),
    f"--host_memory_budget={program.size_text(place.host_memory_budget)}",
    f"--device_memory_budget={program.size_text(place.device_memory_budget)}",
    f"--store={place.scratch / 'store'}",
  ]


def _jax(name: str, job: Job, place: Place) -> list[str]:
  return [
    *(sys.executable, "-m", f"experiments.{name}", f"--model={job.model}"),
    f"--micro_batches={job.micro_batches}",
    f"--micro_batch_size={job.micro_batch_size}",
    f"--sequence_length={job.sequence_length}",
    f"--iterations={job.iterations}",
    f"--learning_rate={job.learning_rate}",
    *("--warmup=0", f"--weight_decay={job.weight_decay}", f"--seed={job.seed}"),
    *(f"--data={job.data}", "--evaluation_batches=0"),
    f"--workdir={place.scratch / 'run'}",
  ]


def _read_ours(scratch: Path) -> dict[str, Any]:
  summary = run_log.read_summary(scratch / "run")
  count = len(summary["losses"])
  moved = {link: total / count for link, total in summary["block_io"].items()}
  kept = (*_KEPT, "homes", "predicted_seconds_per_iteration", "resource_seconds")
  return {**{field: summary[field] for field in kept}, "bytes_per_iteration": [moved] * count}


def _read_jax(scratch: Path) -> dict[str, Any]:
  summary = run_log.read_summary(scratch / "run")
  return {field: summary[field] for field in _KEPT}


def _torch(engine: str) -> Callable[[Job, Place], list[str]]:
  return lambda job, place: [
    *(place.peers_python, str(_TORCH_PROGRAM), engine),
    *(str(place.job), str(place.scratch)),
  ]


def _read_torch(scratch: Path) -> dict[str, Any]:
  return json.loads((scratch / "result.json").read_text())


SYSTEMS = {
  "ours": System("ours, from SSD", _ours, _read_ours),
  "zero_infinity": System("ZeRO-Infinity", _torch("zero_infinity"), _read_torch),
  "jax": System("JAX in memory", functools.partial(_jax, "peers.whole_program"), _read_jax),
  "torch": System("PyTorch in memory", _torch("memory"), _read_torch),
}


def run(system: System, job: Job, place: Place) -> dict[str, Any]:
  """Runs a system once in a process of its own, and reads its result.

  The most memory that the process had, as the system counts it, is added: peak_resident_bytes.
  A run that fails gives {"failed": its last line} in place of a result: a peer that breaks on this
  machine must not hide what the others do.
  """
  failed, peak = failure(system.command(job, place), place.scratch / "output.txt")
  if failed:
    return {"failed": failed}
  return system.read(place.scratch) | {"peak_resident_bytes": peak}


def failure(command: list[str], log: Path) -> tuple[str | None, int]:
  """Runs a command to its end, its output in `log`.

  Returns None, or the last line of one that failed; and the most bytes that it was resident with.
  """
  with open(log, "w") as out:
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    start, peaks = time.monotonic(), [0]
    try:
      for peak in runs.resident_peaks(process):
        peaks.append(peak)
        if time.monotonic() - start > _LONGEST:
          return f"no end after {_LONGEST} s", max(peaks)
    finally:
      process.kill()
      code = process.wait()
  if not code:
    return None, max(peaks)
  lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
  return lines[-1].strip() if lines else f"exit code {code}", max(peaks)


def default_python() -> str:
  """The peers' interpreter that scripts/peers/zero_infinity makes for this version of Python."""
  version = f"{sys.version_info.major}.{sys.version_info.minor}"
  return os.path.join(f".venv-peers-{version}", "bin", "python")
