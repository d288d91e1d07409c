"""Which kernels agreed with their references on which cases, on the machine of the run."""

from collections import Counter
from pathlib import Path

from experiments import machine, run_log
from experiments.tables.table import NOT_MEASURED, Table

IMPLEMENTATIONS = ("mosaic_gpu", "triton", "xla")


def table(runs: Path) -> Table:
  """The table of the runs in `runs/conformance_<implementation>`, finished or not."""
  found = {name: _metrics(runs / f"conformance_{name}") for name in IMPLEMENTATIONS}
  rows, notes, described = [], [], ""
  for name, lines in found.items():
    outcomes = Counter(line["outcome"] for line in lines)
    finished = (runs / f"conformance_{name}" / run_log.SUMMARY_FILE).is_file()
    if not outcomes:
      rows.append((name, *[NOT_MEASURED] * 3, ""))
      continue
    counts = [str(outcomes[outcome]) for outcome in ("passed", "failed", "skipped")]
    rows.append((name, *counts, "yes" if finished else "no: it was ended"))
    notes += [f"Failed: {line['test']}." for line in lines if line["outcome"] == "failed"]
    if finished:
      described = machine.sentence(run_log.read_summary(runs / f"conformance_{name}")["machine"])
  return Table(
    name="conformance",
    title="Conformance of the kernels with their references",
    columns=("implementation", "passed", "failed", "skipped", "ran to its end"),
    rows=tuple(rows),
    notes=tuple(notes),
    machine=described,
  )


def _metrics(run: Path) -> list[dict]:
  return run_log.read_metrics(run) if (run / run_log.METRICS_FILE).is_file() else []
