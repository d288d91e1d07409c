"""Tables of runs that are processes of their own: what they say, and that the runs can be made."""

import json
import re
import subprocess
import sys

import pytest

from experiments.tables import engine, memory, orders, runs, transports
from experiments.tables.runs import Run
from experiments.tables.table import NOT_MEASURED

MACHINE = {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**30, "platform": "cpu"}
MACHINE |= {"python": "3", "jax": "0", "devices": ["cpu"]}


def _leave(folder, name, seconds, **more):
  """A finished run of three equal iterations."""
  folder = folder / name
  folder.mkdir(parents=True)
  summary = {
    "machine": MACHINE,
    "seconds_per_iteration": [9.0, seconds, seconds],
    "tokens_per_second": 1.0,
    "bound_seconds_per_iteration": 1.0,
    "predicted_seconds_per_iteration": 2.0,
    "resource_seconds": {"ssd_read": 1.0, "cores": 0.5},
    "optimizer_state_bytes": 500,
    "profile": {"rates": {"host_to_device": 1e9, "device_to_host": 2e9}},
  }
  (folder / "summary.json").write_text(json.dumps(summary | more))
  (folder / "outside.json").write_text(json.dumps({"peak_resident_bytes": 1000}))


def _row(table, name):
  return dict(zip(table.columns, next(row for row in table.rows if row[0] == name), strict=True))


def test_engine_takes_ratios_within_a_round(tmp_path):
  for i, seconds in enumerate((1.0, 4.0, 3.0)):  # a machine that slows down, and half again
    _leave(tmp_path / "engine", f"compute_bound.{i}", seconds)
    _leave(tmp_path / "engine", f"compute_bound-in_memory.{i}", seconds / 1.5)
  row = _row(engine.table(tmp_path), "computations")
  assert row["over its time"] == "3.00×" and row["over predicted"] == "1.50×"
  assert row["over in memory"] == "1.50×" and row["spread"] == "4.00×"
  assert row["busiest resource"] == "ssd read"


def test_orders_puts_measured_beside_predicted(tmp_path):
  for name, seconds in (("horizontal-4-0", 3.0), ("vertical-4-0", 1.5), ("vertical-4-0_5", 1.0)):
    _leave(tmp_path / "orders", f"{name}.0", seconds)
  table = orders.table(tmp_path)
  assert _row(table, "M = 4")["measured ratio"] == "2.00×"
  assert _row(table, "M = 4")["predicted ratio"] == "1.00×"
  assert _row(table, "alpha = 0.5, M = 4")["measured ratio"] == "1.50×"
  assert _row(table, "M = 8")["measured ratio"] == NOT_MEASURED


@pytest.mark.parametrize("schedule", orders.SCHEDULES)
def test_orders_compares_runs_that_keep_their_boundaries_on_the_device(tmp_path, schedule):
  """At the most micro-batches, so that the orders differ in parameters and gradients alone."""
  own = (f"--flagfile={engine.FLAGS / 'orders.flags'}", f"--schedule={schedule}")
  more = (f"--micro_batches={max(orders.MICRO_BATCHES)}", "--dry_run", f"--workdir={tmp_path}")
  command = [sys.executable, "-m", "experiments.train", *own, *more]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "Homes: boundary on device, boundary_gradient on device," in done.stdout


@pytest.mark.parametrize("module", [engine, orders, memory, transports])
def test_what_was_not_run_is_not_measured(module, tmp_path):
  table = module.table(tmp_path)
  assert NOT_MEASURED in table.markdown() and table.machine == ""


def test_flag_files_tell_the_memory_budgets(tmp_path):
  (tmp_path / "flags.txt").write_text(
    "# python\n--host_memory_budget=3MiB\n--device_memory_budget=7\n--nosave_model\n"
  )
  assert memory.budgets_of(tmp_path) == {"host": 3 * 2**20, "device": 7}


@pytest.mark.parametrize(("platform", "most"), [("cpu", "1.04 kB"), ("gpu", "1 kB")])
def test_only_a_cpu_holds_the_device_in_its_resident_set(tmp_path, platform, most):
  for name in ("tiny", "large"):
    _leave(tmp_path / "memory", f"{name}.0", 1.0, machine=MACHINE | {"platform": platform})
    flags = "--host_memory_budget=3\n--device_memory_budget=40\n"
    (tmp_path / "memory" / f"{name}.0" / "flags.txt").write_text(flags)
  rows = dict(memory.table(tmp_path).rows)
  assert rows["resident set, at most"] == most and rows["resident set, peak"] == "1 kB"
  assert ("budget, device" in rows) == (platform == "cpu")


def test_one_program_in_memory_trains_alike(tmp_path):
  small = ("--flagfile=experiments/flags/tiny.flags", "--iterations=4")
  runs.measure(
    tmp_path / "own", {"train": Run(small), "whole": Run(small, "peers.whole_program")}, 1
  )
  found = runs.read(tmp_path / "own")
  losses = [found[name][0]["losses"] for name in ("train", "whole")]
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
  assert found["train"][0]["block_io"].keys() <= {"ssd_read", "ssd_written"}
  assert losses[0][0] > losses[0][-1]
  command = [sys.executable, "-m", "experiments.peers.whole_program", *small]
  again = subprocess.run([*command, f"--workdir={tmp_path / 'own' / 'whole.0'}"])
  assert again.returncode == 0  # its own folder is no stranger's


def test_the_resident_set_stays_within_the_budgets(tmp_path):
  """States of 5 times the host's budget; with all of them in memory it would be far above."""
  memory.measure(tmp_path, quick=True)
  found = {name: each[0] for name, each in runs.read(tmp_path / "memory").items()}
  budgets = memory.budgets_of(tmp_path / "memory" / "large.0")
  assert found["large"]["optimizer_state_bytes"] >= 5 * budgets["host"]
  over = found["large"]["peak_resident_bytes"] - found["tiny"]["peak_resident_bytes"]
  assert over <= sum(budgets.values())


def test_a_run_that_fails_is_named(tmp_path):
  from experiments import program

  with pytest.raises(program.Mistake, match=re.escape("bad.0 ended badly: train: ")):
    runs.measure(tmp_path / "own", {"bad": Run(("--model=none",))}, 1)


@pytest.mark.parametrize("marked", [False, True])
def test_files_that_are_not_ours_are_refused_and_stay(tmp_path, marked):
  folder = tmp_path / "orders"
  folder.mkdir()
  (folder / "invoice.txt").write_text("42")
  (folder / "vertical-1-0.0").mkdir()
  if marked:
    (folder / "flags.txt").write_text("# python -m experiments.tables\n")
  with pytest.raises(ValueError, match="that no table's measurement made"):
    runs.measure(folder, {}, 1)
  assert (folder / "invoice.txt").read_text() == "42" and (folder / "vertical-1-0.0").is_dir()


def test_an_earlier_measurement_is_replaced(tmp_path):
  folder = tmp_path / "orders"
  runs.measure(folder, {}, 1)
  _leave(folder, "vertical-1-0.0", 1.0)
  (folder / "vertical-2-0.0.txt").write_text("killed")
  runs.measure(folder, {}, 1)
  assert [path.name for path in folder.iterdir()] == ["flags.txt"]


def test_a_link_is_not_followed(tmp_path):
  folder, own = tmp_path / "orders", tmp_path / "own"
  runs.measure(folder, {}, 1)
  own.mkdir()
  (folder / "vertical-1-0.0").symlink_to(own)
  with pytest.raises(ValueError, match=re.escape("holds vertical-1-0.0 that no table")):
    runs.measure(folder, {}, 1)
  assert own.is_dir()


@pytest.mark.parametrize("module", [engine, orders, memory, transports])
def test_notes_say_what_was_run_and_that_it_was_short(module, tmp_path):
  folder = tmp_path / module.__name__.rpartition(".")[2]
  for run in ("tiny.0", "large.0", "large.1"):
    _leave(folder, run, 1.0)
    flags = "--model=bytes-tiny\n--micro_batch_size=1\n--sequence_length=32\n"
    lines = flags + "--host_memory_budget=1\n--device_memory_budget=1\n"
    (folder / run / "flags.txt").write_text("# python -m experiments.train\n" + lines)
  said = "Runs of bytes-tiny, micro-batches of 1 x 32 tokens; 2 rounds."
  assert said in module.table(tmp_path).notes
  (folder / "flags.txt").write_text("# python -m experiments.tables\n--measure\n--quick\n")
  assert any(note.startswith(f"{said} With --quick") for note in module.table(tmp_path).notes)


def test_quick_orders_have_the_setting_that_delayed_steps_are_compared_with(tmp_path, monkeypatch):
  made = {}
  monkeypatch.setattr(runs, "measure", lambda folder, todo, rounds: made.update(todo))
  monkeypatch.setattr("experiments.report.curves.orders", lambda *_: None)
  orders.measure(tmp_path, quick=True)
  assert {"horizontal-4-0", "vertical-4-0", "vertical-4-0_5"} <= set(made)


def test_tiny_flags_run_as_their_header_says(tmp_path):
  command = [sys.executable, "-m", "experiments.train", "--flagfile=experiments/flags/tiny.flags"]
  done = subprocess.run([*command, "--dry_run"], capture_output=True, text=True)
  assert done.returncode == 0 and "states on ssd" in done.stdout
