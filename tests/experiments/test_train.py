"""The train program as a user runs it."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  "--model=bytes-tiny",
  "--micro_batches=3",
  "--micro_batch_size=2",
  "--sequence_length=32",
  "--iterations=3",
  "--evaluation_batches=2",
  "--host_memory_budget=400KiB",
)


def train(*flags, cwd=ROOT):
  return subprocess.run(
    [sys.executable, "-m", "experiments.train", *map(str, flags)],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("train") / "run"
  done = train(*SMALL, f"--workdir={folder}")
  assert done.returncode == 0, done.stderr
  return folder, done.stdout


def test_a_run_leaves_its_folder(run):
  folder, said = run
  summary = json.loads((folder / "summary.json").read_text())
  assert len(summary["losses"]) == len(summary["seconds_per_iteration"]) == 3
  assert summary["bytes"] == summary["predicted_bytes"]
  assert summary["bytes"]["ssd_read"] > 0
  assert summary["peak_bytes"]["host"] <= 400 * 1024
  assert summary["optimizer_state_bytes"] > 0 and 0 < summary["heldout_bits_per_byte"] < 12
  assert set(summary["busy_seconds"]) == {
    *("device", "host_to_device", "device_to_host", "ssd_read", "ssd_write", "host_update"),
  }
  metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [line["loss"] for line in metrics] == summary["losses"]
  events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
  assert {"forward(unit 0, micro-batch 0) of iteration 0"} <= {event["name"] for event in events}
  assert not (folder / "store").exists()
  assert summary["bound_seconds_per_iteration"] == max(summary["resource_seconds"].values())
  assert "bottleneck" in said and said.splitlines()[-1].startswith("train: loss")


def test_the_simulated_timeline_is_that_of_the_same_steps(run):
  folder, _ = run
  steps = []
  for name in ("timeline", "simulated_timeline"):
    events = json.loads((folder / f"{name}.json").read_text())["traceEvents"]
    steps.append({(e["cat"], e["name"]) for e in events if e["ph"] == "X"})
  of_iteration = [{s for s in found if s[1].endswith("iteration 1")} for found in steps]
  assert of_iteration[0] == of_iteration[1] != set()
  assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_its_flag_file_runs_it_again(run, tmp_path):
  folder, _ = run
  again = train(f"--flagfile={folder / 'flags.txt'}", f"--workdir={tmp_path / 'again'}")
  assert again.returncode == 0, again.stderr
  losses = [
    json.loads((f / "summary.json").read_text())["losses"] for f in (folder, tmp_path / "again")
  ]
  assert losses[0] == losses[1]


def test_a_checkpoint_that_is_there_is_kept(run):
  folder, _ = run
  before = sorted(p.read_bytes() for p in (folder / "checkpoint").rglob("*") if p.is_file())
  again = train(*SMALL, f"--workdir={folder}")
  assert again.returncode == 2 and "checkpoint" in again.stderr
  assert before == sorted(p.read_bytes() for p in (folder / "checkpoint").rglob("*") if p.is_file())


BESIDE_ANOTHER = """
import subprocess, sys
from experiments import program, train
from experiments.train_check import check

def check_and_lose_the_race():
  plan = check()
  words = [sys.executable, "-m", "experiments.train", *sys.argv[1:]]
  subprocess.run(words, check=True, capture_output=True)
  return plan

sys.argv[0] = "train"
program.run(train.main, check_and_lose_the_race)
"""


@pytest.mark.parametrize(
  "more, sentence",
  [
    (["--keep_store", "--nosave_model"], "another run has trained there meanwhile"),
    ([], "holds a checkpoint"),
  ],
  ids=["with commits", "finished"],
)
def test_a_run_that_another_has_overtaken_changes_nothing(more, sentence, tmp_path):
  words = [*SMALL, f"--workdir={tmp_path / 'run'}", *more]
  done = subprocess.run(
    [sys.executable, "-c", BESIDE_ANOTHER, *words], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2 and sentence in done.stderr, done.stderr
  assert "Traceback" not in done.stderr
  losses = json.loads((tmp_path / "run/summary.json").read_text())["losses"]
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["loss"] for line in lines] == losses
  assert (tmp_path / "run/store").exists() == bool(more)
  again = train(*words)
  assert ("Goes on after iteration 3" in again.stdout) == bool(more), again.stderr


def test_a_damaged_commit_beside_a_whole_one_can_be_removed(tmp_path):
  words = [*SMALL, f"--workdir={tmp_path / 'run'}", "--commit_every=1", "--keep=2", "--keep_store"]
  words += ["--nosave_model"]
  assert train(*words).returncode == 0
  older, newer = sorted((tmp_path / "run/store/commits").iterdir())
  for damaged, other in ((newer, 2), (older, 3)):
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1])
    said = train(*words)
    assert (
      said.returncode == 1 and f"remove {damaged} to go on after iteration {other}" in said.stderr
    )
    damaged.write_bytes(whole)
  newer.unlink()
  again = train(*words)
  assert again.returncode == 0 and "Goes on after iteration 2" in again.stdout, again.stderr


BROKEN = """
from schedules.vertical import vertical
from schedules.steps import Action, backward, update

def no_backward(work):
  return [c for c in vertical(work) if c != backward(1, 0)]

def early_update(work):
  order = [c for c in vertical(work) if c != update(1)]
  return [*order[:order.index(backward(1, 0))], update(1), *order[order.index(backward(1, 0)):]]
"""

MISTAKES = {
  "--shedule=vertical": "Unknown command line flag 'shedule'",
  "--schedule=diagonal": "--schedule=diagonal is unknown: take one of in_memory",
  "--schedule=broken.no_backward": "its gradients are not complete",
  "--schedule=broken.early_update": "update(unit 1, now part) of iteration 0 comes before",
  "--host_memory_budget=1KiB": "--host_memory_budget=1024 is too small",
  "--device_memory_budget=1KiB": "--device_memory_budget=1024 is too small",
  "--sequence_length=40000": "--sequence_length=40000 exceeds the context of 32768",
  "--delayed_fraction=1.5": "--delayed_fraction=1.5 must be between 0 and 1",
  "--data=empty": "empty",
  "--store=taken": "--store=taken holds files that are no store",
}


@pytest.mark.parametrize("flag, sentence", MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(flag, sentence, tmp_path):
  (tmp_path / "broken.py").write_text(BROKEN)
  (tmp_path / "empty").mkdir()
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken/notes").write_text("mine")
  before = sorted(tmp_path.rglob("*"))
  command = f"import sys; sys.path[:0] = [{str(ROOT)!r}, '.']; sys.argv[0] = 'train'\n"
  command += "import runpy; runpy.run_module('experiments.train', run_name='__main__')"
  done = subprocess.run(
    [sys.executable, "-B", "-c", command, *SMALL, "--workdir=work", flag],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2, done.stderr
  assert sentence in done.stderr
  assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
  assert sorted(tmp_path.rglob("*")) == before
