"""Prints tables from run folders: `python -m experiments.tables training`, or `--all`.

`--measure` makes the runs first, some minutes for each table (`--quick` for short settings): those
of `training` and `decoding` by the quickstart, those of `registry.MEASUREMENTS` by the tables
themselves, on the disk that holds the folder of the runs. The other tables have commands of their
own, which `--measure` names; with `--all` they are printed as they are.
"""

import subprocess
import sys
from pathlib import Path

from absl import flags

from experiments import program, run_log
from experiments.tables.registry import COMMANDS, MEASUREMENTS, QUICKSTART, TABLES

_ALL = flags.DEFINE_bool("all", False, "Every table.")
_RUNS = flags.DEFINE_string("runs", "results/quickstart", "Folder whose run folders are read.")
_MEASURE = flags.DEFINE_bool("measure", False, "Make the tables' runs first.")
_QUICK = flags.DEFINE_bool("quick", False, "With --measure: short settings.")


def check(words: list[str]) -> list[str]:
  """The names of the tables to print."""
  unknown = [word for word in words if word not in TABLES]
  if unknown:
    raise ValueError(f"There is no table {unknown[0]!r}; the tables are {', '.join(TABLES)}.")
  if bool(words) == _ALL.value:
    raise ValueError(f"Give --all or the names of tables: {', '.join(TABLES)}.")
  if _QUICK.value and not _MEASURE.value:
    raise ValueError("--quick says how to measure; give --measure too.")
  if not _MEASURE.value and not Path(_RUNS.value).is_dir():
    raise ValueError(f"--runs={_RUNS.value} is no folder; run scripts/quickstart, or --measure.")
  run_log.check_workdir(program.workdir(), program.name())
  names = list(TABLES) if _ALL.value else words
  for name in _MEASURE.value * names:
    if name in COMMANDS and not _ALL.value:
      command = COMMANDS[name].format(runs=_RUNS.value)
      raise ValueError(f"--measure does not make the table {name}: {command} measures it.")
    if name in MEASUREMENTS:
      MEASUREMENTS[name].check(Path(_RUNS.value), quick=_QUICK.value)
  return names


def main(names: list[str]) -> None:
  if _MEASURE.value:
    _measure(names)
  log = run_log.RunLog.start(program.workdir(), program.name())
  tables = [TABLES[name](Path(_RUNS.value)) for name in names]
  for table in tables:
    print(table.markdown())
    (log.workdir / f"{table.name}.md").write_text(table.markdown())
  rows = {t.name: [dict(zip(t.columns, row, strict=True)) for row in t.rows] for t in tables}
  log.finish({"rows": rows}, f"{len(tables)} tables")


def _measure(names: list[str]) -> None:
  if set(names) & set(QUICKSTART):
    command = ["-m", "experiments.quickstart", f"--workdir={_RUNS.value}"]
    if subprocess.run([sys.executable, *command, *["--quick"] * _QUICK.value]).returncode:
      raise program.Mistake("--measure: the quickstart did not finish; it says why above.")
  for name in names:
    if name in MEASUREMENTS:
      MEASUREMENTS[name].measure(Path(_RUNS.value), quick=_QUICK.value)


if __name__ == "__main__":
  program.run(main, check, words=True)
