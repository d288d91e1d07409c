"""The plan program as a user runs it."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from experiments import hardware, plan_report

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("--model=bytes-3m", "--micro_batch_size=2", "--sequence_length=64")
TINY = ("--model=bytes-tiny", "--micro_batch_size=2", "--sequence_length=32")


def plan(*flags):
  return subprocess.run(
    [sys.executable, "-m", "experiments.plan", *map(str, flags)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope="module")
def gpt_65b(tmp_path_factory):
  folder = tmp_path_factory.mktemp("plan") / "run"
  done = plan(
    *("--model=gpt-65b", "--hardware=a100-paper", "--micro_batches=60", "--micro_batch_size=2"),
    *("--sequence_length=2048", f"--workdir={folder}"),
  )
  assert done.returncode == 0, done.stderr
  return json.loads((folder / "summary.json").read_text()), done.stdout


def test_gpt_65b_beside_the_paper(gpt_65b):
  summary, said = gpt_65b
  rows = summary["sensitivity"]
  assert rows["as assumed"]["published"] == pytest.approx(1.95, rel=0.02)
  assert rows["4-byte gradients in both"]["published"] == pytest.approx(2.84, rel=0.02)
  assert rows["as assumed"]["ours"] == pytest.approx(summary["vertical_over_horizontal"], rel=0.01)
  assert rows["1 sequence a micro-batch, as many tokens"]["ours"] > rows["as assumed"]["ours"]
  assert rows["link x 2.0"]["ours"] < rows["as assumed"]["ours"]
  assert "the paper reports 1.96" in said and "assumed: 55% of 312 TFLOP/s" in said


def test_the_summary_holds_the_choice(gpt_65b):
  summary, said = gpt_65b
  assert summary["flags"]["micro_batches"] == 60 and summary["flags"]["schedule"] == "vertical"
  assert summary["flags"]["model"] == "gpt-65b"
  assert summary["flags"]["parameter_dtype"] == "bfloat16"
  assert summary["flags"]["micro_batch_size"] == 2
  assert summary["flags"]["sequence_length"] == 2048
  reserved = summary["flags"]["device_memory_budget"] - summary["peak_bytes"]["device"]
  assert reserved > 1e9 and summary["flags"]["device_memory_budget"] <= 80e9
  assert summary["hardware"]["name"] == "a100-paper"
  assert summary["hardware"]["flops"] == pytest.approx(0.55 * 312e12, rel=0.01)
  assert summary["binding"] == "device"
  assert summary["predicted_seconds_per_iteration"] == pytest.approx(777, rel=0.02)
  assert set(summary["peak_bytes"]) == {"device", "host", "ssd"}
  assert summary["peak_bytes"]["host"] <= 400e9 and summary["peak_bytes"]["device"] <= 80e9
  assert set(summary["schedules"]) == {"vertical", "horizontal"}
  assert {"device", "ssd_read", "host_update", "link"} <= set(summary["predicted_busy_seconds"])
  assert "bound by device" in said


def test_without_micro_batches_the_curve_is_printed(tmp_path):
  done = plan(*(*SMALL, "--hardware=h200", "--delayed_fraction=0"), f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert [row["micro_batches"] for row in summary["curve"]][:3] == [1, 2, 3]
  assert "<- chosen" in done.stdout
  assert summary["peak_bytes"]["ssd"] == 0
  assert "Everything fits in memory: nothing goes to or comes from an SSD." in done.stdout


def test_edges_of_a_plan_have_their_sentence(tmp_path):
  """One micro-batch, on a disk that is too small for all the gradients that would wait on it."""
  found = json.loads((hardware.FOLDER / "h200.json").read_text())
  found["figures"]["ssd_capacity"]["value"] = 40_000_000
  (tmp_path / "own.json").write_text(json.dumps(found))
  flags = (*SMALL, "--host_memory_budget=24MiB")
  done = plan(*flags, "--hardware=h200", "--micro_batches=1", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  assert "With one micro-batch both orders take units alike" in done.stdout
  flags = (*flags, f"--hardware={tmp_path / 'own.json'}", "--delayed_fraction=1")
  done = plan(*flags, f"--workdir={tmp_path / 'other'}")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert re.search(
    r"--delayed_fraction=1 does not fit: .* take at most --delayed_fraction=0\.\d+", done.stderr
  )


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (("--hardware=nowhere",), "--hardware=nowhere is no profile: take one of a100-paper, h200"),
    (("--hardware=h200", "--host_memory_budget=1MiB"), "--host_memory_budget=1048576 is too small"),
    (("--hardware=h200", "--sequence_length=99999999"), "exceeds the context"),
    (("--hardware=h200", "--delayed_fraction=1.5"), "--delayed_fraction=1.5 must be in [0, 1]"),
    (("--hardware=h200", "--delayed_fraction=nan"), "--delayed_fraction=nan must be in [0, 1]"),
    (
      ("--hardware=h200", "--schedule=horizontal", "--delayed_fraction=0.5"),
      "--delayed_fraction=0.5 is not planned for --schedule=horizontal",
    ),
  ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, flags, sentence):
  done = plan(*SMALL, *flags, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2
  assert sentence in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", hardware.names())
def test_every_figure_of_a_profile_has_its_source(name):
  machine = hardware.load(name)
  assert all(
    source.split(":")[0] in ("measured", "stated", "assumed", "unlimited")
    for source in machine.sources.values()
  )


@pytest.mark.parametrize("broken, told", [("missing", "ssd_read missing"), (0, "ssd_read=0 must")])
def test_a_profile_without_a_bandwidth_is_refused(tmp_path, broken, told):
  found = json.loads((hardware.FOLDER / "h200.json").read_text())
  if broken == "missing":
    del found["figures"]["ssd_read"]
  else:
    found["figures"]["ssd_read"]["value"] = broken
  path = tmp_path / "own.json"
  path.write_text(json.dumps(found))
  with pytest.raises(ValueError, match=told):
    hardware.load(str(path))


def test_the_papers_ratios_are_told_for_its_models_alone():
  assert plan_report.PUBLISHED == {"gpt-65b": 1.96, "gpt-175b": 2.53}


@pytest.mark.parametrize(
  "name, value, sentence",
  [
    ("flops", "Infinity", "flops=inf must be a finite number above zero"),
    ("update", "true", "update=True must be a finite number above zero"),
    ("link_shared", '"no"', "link_shared='no' must be true or false"),
    ("ssd_capacity", "-1", "ssd_capacity=-1 must be bytes, or null"),
    ("ssd_capacity", "true", "ssd_capacity=True must be bytes, or null"),
  ],
)
def test_a_hardware_file_with_a_bad_figure_is_refused(tmp_path, name, value, sentence):
  found = json.loads((hardware.FOLDER / "h200.json").read_text())
  found["figures"][name]["value"] = json.loads(value)
  path = tmp_path / "own.json"
  path.write_text(json.dumps(found))
  with pytest.raises(ValueError, match=re.escape(sentence)):
    hardware.load(str(path))


PAIRS = """
from schedules.steps import backward, forward, update

def pairs(work):
  for first in range(0, work.micro_batches, 2):
    pair = range(first, min(first + 2, work.micro_batches))
    for u in range(work.last):
      yield from (forward(u, m) for m in pair)
    for u in reversed(range(work.units)):
      yield from (backward(u, m) for m in pair)
  yield from (update(u) for u in range(work.units))

def forgetful(work):
  return [c for c in pairs(work) if c != update(1)]

def broken(work):
  return [work.nothing]
"""


def test_an_order_of_ones_own_is_planned_or_refused(tmp_path):
  (tmp_path / "own.py").write_text(PAIRS)
  more = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
  start = f"import sys, runpy; sys.path[:0] = [{str(ROOT)!r}, '.']; sys.argv[0] = 'plan'; "
  start += "runpy.run_module('experiments.plan', run_name='__main__')"

  def said(*flags):
    words = [sys.executable, "-B", "-c", start, *TINY, "--hardware=h200", "--workdir=run", *flags]
    return subprocess.run(words, **more)

  done = said("--schedule=own.pairs", "--micro_batches=4")
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  assert summary["flags"]["schedule"] == "own.pairs" and summary["delayed_fraction"] == 0
  for flags, sentence in (
    (("--schedule=own.pairs", "--delayed_fraction=0.5"), "comes before the delayed update"),
    (("--schedule=own.forgetful",), "update(unit 1"),
    (("--schedule=own.broken", "--micro_batches=4"), "The schedule fails with AttributeError"),
  ):
    done = said(*flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sentence in done.stderr, done.stderr


@pytest.mark.parametrize("flag", ["--clip_norm=1", "--parameter_dtype=float16"])
def test_steps_that_are_decided_on_as_a_whole_are_planned_so(tmp_path, flag):
  flags = (*TINY, "--hardware=h200", "--micro_batches=2", flag, f"--workdir={tmp_path / 'run'}")
  done = plan(*flags)
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  assert summary["flags"]["delayed_fraction"] == 1
  assert summary["schedules"]["horizontal"]["delayed_fraction"] == 0
  for schedule in ("horizontal", "in_memory"):  # vertical is only beside it
    done = plan(*flags, "--delayed_fraction=0", f"--schedule={schedule}", "--dry_run")
    assert (
      done.returncode == 0 and "vertical: --micro_batches=2 --delayed_fraction=1" in done.stdout
    )
  refused = plan(*flags, "--delayed_fraction=0.5")
  assert refused.returncode == 2 and "set --delayed_fraction=1" in refused.stderr


def test_a_dry_run_writes_nothing_and_trains_flags_are_taken(tmp_path):
  flags = (*TINY, "--hardware=h200", "--micro_batches=4")
  flags += ("--host_memory_budget=300KiB", "--delayed_fraction=0.1", "--parameter_dtype=float32")
  assert (
    "vertical over horizontal"
    in plan(*flags, "--dry_run", f"--workdir={tmp_path}/run").stdout.lower()
  )
  assert not (tmp_path / "run").exists()
  done = plan(*flags, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  words = [f"--{name}={value}" for name, value in summary["flags"].items()]
  words = [
    sys.executable,
    "-m",
    "experiments.train",
    *words,
    "--dry_run",
    f"--workdir={tmp_path}/x",
  ]
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert "gradients on host" in done.stdout


def test_rows_are_of_as_many_tokens(tmp_path):
  flags = (*SMALL, "--hardware=h200", "--micro_batches=1", "--delayed_fraction=1")
  done = plan(*flags, "--host_memory_budget=24MiB", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  rows = summary["sensitivity"]
  assert rows["as assumed"]["ours"] == pytest.approx(summary["vertical_over_horizontal"], rel=0.01)
  assert [row.split()[0] for row in rows if "as many tokens" in row] == ["1"]
