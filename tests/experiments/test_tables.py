"""Tables say what the run folders hold, and no more."""

import shutil
import subprocess
import sys

import pytest

from experiments.tables import decoding, training
from experiments.tables.table import NOT_MEASURED, Table, bytes_text, number_text, steady_seconds


def _cells(table, row):
  return dict(zip(table.columns, next(r for r in table.rows if r[0] == row), strict=True))


def test_training_table(runs):
  table = training.table(runs)
  read = _cells(table, "SSD read")
  assert read["horizontal, measured"] == read["horizontal, predicted"] == "149 MB"
  assert read["vertical, measured"] == "48 MB"
  ratio = _cells(table, "throughput, vertical over horizontal")
  assert ratio["paper"] == "1.96×"
  assert ratio["vertical, measured"] == f"{training.vertical_over_horizontal(runs):.2f}×"
  assert "cores" in table.machine


def test_decoding_table(runs):
  table = decoding.table(runs)
  window = _cells(table, "window")
  assert window["measured speed-up"] == f"{340 / 210:.2f}×"
  assert window["predicted speed-up"] == "2.10×"
  assert window["same tokens as autoregressive"] == "yes"


def test_what_was_not_run_is_not_measured(runs):
  shutil.rmtree(runs / "horizontal")
  shutil.rmtree(runs / "decode_specattn")
  (runs / "decode_window/summary.json").unlink()
  assert _cells(training.table(runs), "SSD read")["horizontal, measured"] == NOT_MEASURED
  assert training.vertical_over_horizontal(runs) is None
  assert _cells(decoding.table(runs), "specattn")["tokens per second"] == NOT_MEASURED
  for table in (training.table(runs / "nowhere"), decoding.table(runs / "nowhere")):
    assert table.machine == "" and NOT_MEASURED in table.markdown()


def test_markdown_is_aligned():
  table = Table("t", "Title", ("name", "number"), (("a", "1"), ("longer", "22")), ("A note.",), "m")
  assert table.markdown().splitlines() == [
    "### Title",
    "",
    "| name   | number |",
    "| ------ | -----: |",
    "| a      |      1 |",
    "| longer |     22 |",
    "",
    "A note.",
    "Measured on m.",
  ]


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0 B"), (999, "999 B"), (12_345_678, "12.3 MB"), (999_700, "1000 kB"), (2e12, "2 TB")],
)
def test_bytes(count, text):
  assert bytes_text(count) == text


@pytest.mark.parametrize(
  ("value", "text"), [(0, "0"), (0.05432, "0.0543"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers(value, text):
  assert number_text(value) == text


def test_the_first_iteration_compiles_and_is_left_out():
  assert steady_seconds({"seconds_per_iteration": [9.0, 1.0, 3.0, 2.0]}) == 2.0
  assert steady_seconds({"seconds_per_iteration": [9.0]}) == 9.0


def test_the_program(runs, tmp_path):
  def run(*words):
    command = [sys.executable, "-m", "experiments.tables", *words]
    return subprocess.run(command, capture_output=True, text=True)

  good = run("training", f"--runs={runs}", f"--workdir={tmp_path / 'out'}")
  assert good.returncode == 0 and "| SSD read" in good.stdout
  assert (tmp_path / "out/training.md").read_text() in good.stdout
  for words, says in (
    (("trianing",), "no table 'trianing'; the tables are training, decoding"),
    ((), "Give --all or the names of tables"),
    (("training", "--quick"), "give --measure too"),
    (("peers", "--measure", f"--runs={tmp_path}"), f"zero_infinity --workdir={tmp_path}/peers"),
    (("training", f"--runs={tmp_path / 'missing'}"), "is no folder"),
  ):
    bad = run(*words)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and says in bad.stderr
