"""Runs the kernels' conformance suite on this machine's devices, one implementation a process.

    python -m experiments.gpu_check.conformance --implementation=triton

metrics.jsonl gets a line for each test as it ends, so that what was found survives a time-out or a
kernel that takes the process down. Exits with 1 if a test fails.
"""

import os
import sys
from collections import Counter
from pathlib import Path

from absl import flags

from experiments import program, run_log

NAMES = ("mosaic_gpu", "triton", "xla")  # what is least tried first
_IMPLEMENTATION = flags.DEFINE_enum("implementation", "xla", NAMES, "Whose cases are run.")
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes that share the tests.", lower_bound=1)
_MATCHING = flags.DEFINE_string("matching", "", "Only tests whose name has this in it.")

SUITE = Path("tests/pallas_kernels")


class Recorder:
  """A pytest plugin that writes down each test's outcome."""

  def __init__(self, log: run_log.RunLog):
    self.log, self.outcomes = log, Counter()

  def pytest_runtest_logreport(self, report):
    if report.when == "call" or report.outcome != "passed":
      self.outcomes[report.outcome] += 1
      said = str(report.longrepr)[-500:] if report.outcome == "failed" else ""
      self.log.metric(
        test=report.nodeid.rpartition("/")[2],
        outcome=report.outcome,
        took=report.duration,
        said=said,
      )


def check() -> None:
  """Refuses to start without the suite, and without pytest."""
  run_log.check_workdir(program.workdir(), program.name())
  if not SUITE.is_dir():
    raise ValueError(f"{SUITE} is not in this folder; run from the root of the repository.")
  try:
    import pytest  # noqa: F401

    if _WORKERS.value > 1:
      import xdist  # noqa: F401
  except ImportError as error:
    raise ValueError(
      f"The suite needs {error.name}: pip install -r requirements-dev.txt."
    ) from error


def main(_: None) -> None:
  # Hundreds of small programs are compiled, and none is timed. JAX is not imported yet.
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
  import pytest

  log = run_log.RunLog.start(program.workdir(), program.name())
  recorder, name = Recorder(log), _IMPLEMENTATION.value
  others = [other for other in NAMES if other != name]
  chosen = name if name != "xla" else " and ".join(f"not {other}" for other in others)
  if _MATCHING.value:
    chosen = f"({chosen}) and {_MATCHING.value}"
  compiling = SUITE / "test_compile.py"  # needs no GPU
  arguments = [str(SUITE), f"--ignore={compiling}", "-k", chosen]
  if _WORKERS.value > 1:
    arguments += ["-n", str(_WORKERS.value)]
  code = pytest.main(arguments, plugins=[recorder])
  log.finish(
    {"implementation": name, "outcomes": dict(recorder.outcomes), "exit_code": int(code)},
    ", ".join(f"{count} {outcome}" for outcome, count in recorder.outcomes.items()) or "no test",
  )
  sys.exit(int(code != 0))


if __name__ == "__main__":
  program.run(main, check)
