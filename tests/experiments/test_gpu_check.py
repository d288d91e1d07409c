"""The GPU check's orchestration, with parts made up for it, and the tables of what it leaves."""

import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from experiments import machine, run_log
from experiments.gpu_check import orchestrate, parts
from experiments.gpu_check.orchestrate import Part
from experiments.tables import bandwidth, conformance
from models.weights import checkpoint


def code(text):
  return ("-c", text)


def statuses(results):
  return {result["part"]: result["status"] for result in results}


def test_parts_run_in_order_and_a_failure_loses_nothing(tmp_path):
  say = lambda word: code(f"open({str(tmp_path / 'order')!r}, 'a').write('{word} ')")
  made = [
    Part("first", "", 10, (say("a"), code("import sys; print('it broke'); sys.exit(3)"), say("b"))),
    Part("second", "", 10, (code("raise ValueError('a bug')"),)),
    Part("third", "", 10, (say("c"), code("import os; print(os.environ['PLACE'])"))),
    Part("own", "", 10, (code("import os; print(os.environ['PLACE'])"),), {"PLACE": "there"}),
  ]
  results = list(orchestrate.run(made, tmp_path, 60.0, {"PLACE": "here"}))
  assert statuses(results) == {
    "first": "failed",
    "second": "failed",
    "third": "passed",
    "own": "passed",
  }
  assert results[3]["commands"][0]["said"] == "there"
  assert (tmp_path / "order").read_text() == "a b c "
  assert [command["exit_code"] for command in results[0]["commands"]] == [0, 3, 0]
  assert results[0]["commands"][1]["said"] == "it broke"
  assert "a bug" in results[1]["commands"][0]["said"]
  assert results[2]["commands"][1]["said"] == "here"
  assert "it broke" in (tmp_path / "first.log").read_text()


def test_a_part_that_hangs_is_ended_with_its_children(tmp_path):
  child = tmp_path / "child"
  hangs = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(child)!r}, "w").write(str(child.pid))
time.sleep(600)
"""
  after = code("print('still here')")
  made = [Part("hangs", "", 4, (code(hangs), after)), Part("next", "", 16, (after,))]
  results = list(orchestrate.run(made, tmp_path, 20.0, {}))
  assert statuses(results) == {"hangs": "timed out", "next": "passed"}
  assert [command["exit_code"] for command in results[0]["commands"]] == [None, None]
  assert not _runs(int(child.read_text()))
  assert "ended after" in (tmp_path / "hangs.log").read_text()


def _runs(pid):
  for _ in range(50):  # a signal takes its time
    try:
      state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
      return False
    if state == "Z":
      return False
    time.sleep(0.1)
  return True


def test_time_that_a_part_leaves_goes_to_the_next(tmp_path):
  made = [Part("quick", "", 30, (code(""),)), Part("last", "", 30, (code(""),))]
  first, last = orchestrate.run(made, tmp_path, 600.0, {})
  assert first["allowed_seconds"] == pytest.approx(300, abs=1)
  assert last["allowed_seconds"] > 500


def test_what_matters_most_comes_first_and_all_fits_nine_minutes(tmp_path):
  made = parts.parts(tmp_path, parts.FULL, "gpt-bytes-58m")
  wanted = ["conformance", "bandwidth", "rounds", "training", "decoding"]
  assert [part.name for part in made] == wanted
  assert sum(part.seconds for part in made) <= 9 * 60 - 20
  runs = {Path(folder).name: name for part in made for folder, name in part.runs()}
  assert runs["conformance_triton"] == "gpu_check.conformance"
  assert runs["decode_specattn"] == "generate"
  assert runs["horizontal"] == runs["vertical"] == "train"
  assert runs["rounds"] == "round_costs"
  for scale in (parts.FULL, parts.QUICK):
    assert scale.prompt_bytes < checkpoint.load_model(parts.CHECKPOINT).config.context


@pytest.mark.parametrize(
  ("free", "minutes", "model"),
  [
    (1e12, 9.0, "gpt-bytes-400m"),
    (6.4e10, 15.0, "qwen3-1.7b"),
    (1e12, 1e6, "llama-3-8b"),
    (1e13, 1e6, "gpt-175b"),
    (5e9, 1e6, "gpt-bytes-58m"),
  ],
)
def test_the_largest_model_fits_disk_and_time(free, minutes, model, tmp_path, monkeypatch):
  usage = namedtuple("usage", "free")
  monkeypatch.setattr(parts.shutil, "disk_usage", lambda _: usage(free))
  assert parts.largest_model(tmp_path / "not" / "there", minutes) == model


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
  command = [sys.executable, "-m", "experiments.gpu_check", f"--workdir={tmp_path / 'check'}"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2
  assert done.stderr.startswith("gpu_check: JAX sees no GPU here")
  assert len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "check").exists()


def test_a_dry_run_prints_commands(tmp_path):
  command = [sys.executable, "-m", "experiments.gpu_check", "--dry_run", "--part=training"]
  done = subprocess.run(
    [*command, f"--workdir={tmp_path / 'check'}"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("python -m experiments.train") == 2
  assert not os.listdir(tmp_path)


def test_tables_render_what_a_check_leaves(tmp_path):
  log = run_log.RunLog.start(tmp_path / "conformance_triton", "gpu_check.conformance")
  log.metric(test="one", outcome="passed")
  log.metric(test="two", outcome="failed")
  rows = {row[0]: row[1:] for row in conformance.table(tmp_path).rows}
  assert rows["triton"] == ("1", "1", "0", "no: it was ended")
  assert rows["xla"][0] == "«not measured»"
  assert "Failed: two." in conformance.table(tmp_path).notes

  assert "«not measured»" in bandwidth.table(tmp_path / "nowhere").markdown()
  log = run_log.RunLog.start(tmp_path / "bandwidth", "gpu_check.bandwidth")
  log.metric(machine=machine.describe())
  shared = {"setting": "4 rows", "bytes": 3_000_000, "copy_bytes_per_second": 4e12}
  log.metric(**shared, name="attention_with_mass, triton", seconds=1e-6)
  log.metric(**shared, name="cuDNN", problem="RuntimeError: no such library")
  table = bandwidth.table(tmp_path)
  assert table.rows[0] == (
    *("4 rows", "attention_with_mass, triton"),
    *("1.00", "3,000", "0.750", "at least 0.85"),
  )
  assert table.rows[1][2:] == (*["«not measured»"] * 3, "")
  assert "cuDNN: RuntimeError: no such library." in table.notes
