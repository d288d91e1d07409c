"""Run folders: what is written, what is refused, and that nothing foreign is overwritten."""

import json

import numpy as np
import pytest

from experiments import run_log
from experiments.program import Mistake


def test_a_run_leaves_its_flags_metrics_and_summary(tmp_path, capsys):
  log = run_log.RunLog.start(tmp_path / "run", "train")
  log.metric(iteration=0, loss=np.float32(2.5))
  log.metric(iteration=1, loss=float("nan"), parts=np.arange(2))
  log.finish({"losses": [np.float32(2.5)]}, "2 iterations")
  assert (tmp_path / "run/flags.txt").read_text().startswith("# python -m experiments.train\n")
  first, second = run_log.read_metrics(tmp_path / "run")
  assert first["loss"] == 2.5 and second["loss"] is None and second["parts"] == [0, 1]
  summary = run_log.read_summary(tmp_path / "run")
  assert summary["losses"] == [2.5] and summary["program"] == "train"
  assert summary["machine"]["cores"] >= 1
  assert capsys.readouterr().out.count("\n") == 1
  assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
    "flags.txt",
    "metrics.jsonl",
    "summary.json",
  ]


def test_the_same_program_replaces_its_own_files_and_leaves_the_rest(tmp_path):
  run_log.RunLog.start(tmp_path, "train").finish({"losses": [1]})
  (tmp_path / "notes.md").write_text("mine")
  run_log.RunLog.start(tmp_path, "train")
  assert not (tmp_path / "summary.json").exists(), "an old summary beside a new run would lie"
  assert (tmp_path / "notes.md").read_text() == "mine"


def test_foreign_folders_are_refused_untouched(tmp_path):
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign/thesis.tex").write_text("years of work")
  run_log.RunLog.start(tmp_path / "generate", "generate")
  (tmp_path / "file").write_text("")
  for name, reason in (
    ("foreign", "files that are no run's"),
    ("generate", "a run of generate"),
    ("file", "is a file"),
  ):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Mistake, match=reason):
      run_log.RunLog.start(tmp_path / name, "train")
    assert sorted(tmp_path.rglob("*")) == before


def test_json_is_written_in_one_piece(tmp_path):
  path = tmp_path / "summary.json"
  run_log.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    run_log.write_json(path, {"a": object()})
  assert json.loads(path.read_text()) == {"a": 1}


def test_an_unfinished_run_is_named(tmp_path):
  run_log.RunLog.start(tmp_path, "train")
  with pytest.raises(ValueError, match="holds no finished run"):
    run_log.read_summary(tmp_path)
