"""The quickstart: its summary's fields, its stages' commands, and its refusals."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import quickstart

LINKS = {"ssd_read", "ssd_written", "host_to_device", "device_to_host"}


def test_the_summary_has_the_promised_fields(runs):
  summary = quickstart.summarise(runs)
  for schedule in ("horizontal", "vertical"):
    part = summary["train"][schedule]
    assert {"losses", "seconds_per_iteration", "tokens_per_second"} <= part.keys()
    assert part["bytes"].keys() == part["predicted_bytes"].keys() == LINKS
  assert summary["train"]["vertical_over_horizontal"] == pytest.approx(3.4, abs=0.5)
  for method in ("autoregressive", "window", "specattn"):
    part = summary["decode"][method]
    assert part["tokens_per_second"] > 0 and part["acceptance_length"] >= 1
    assert part["identical_to_autoregressive"] is True
  assert summary["decode"]["speedup"]["window"] == pytest.approx(340 / 210)
  assert summary["decode"]["predicted_speedup"].keys() == {"window", "specattn"}


@pytest.mark.parametrize("quick", [False, True])
def test_every_stage_names_a_program_and_flag_files_that_exist(quick):
  folder = Path("results/quickstart")
  for stage in quickstart.stages(folder, "stdlib"):
    command = stage.command(folder, quick=quick, seed=0)
    assert command[:2] == ["-m", f"experiments.{stage.program}"]
    files = [Path(flag.partition("=")[2]) for flag in command if flag.startswith("--flagfile=")]
    assert len(files) == 1 + quick
    for file in files:
      opening = file.read_text()
      assert opening.startswith("# ") and "# Takes:" in opening and "# Command:" in opening


def test_its_runs_fit_their_budgets_and_the_compared_ones_differ_in_what_crosses(tmp_path):
  """The compared runs keep activation checkpoints on the device, so that the orders differ in
  parameters and gradients alone, and vertical reads a seventh of horizontal's bytes from SSD."""
  read = {}
  for stage in quickstart.stages(tmp_path, "stdlib"):
    if stage.program != "train":
      continue
    command = [*stage.command(tmp_path, quick=False, seed=0), "--dry_run"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Homes: boundary on device, boundary_gradient on device," in done.stdout
    read[stage.name] = float(re.findall(r"ssd_read ([\d.]+) MiB", done.stdout)[0])
  assert read["horizontal"] / read["vertical"] >= 7
  assert not any(tmp_path.iterdir())


def test_a_short_text_is_refused_and_nothing_written(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data/a.txt").write_text("short")
  (tmp_path / "data/b.txt").write_text("shorter")
  flags = [f"--data={tmp_path / 'data'}", f"--workdir={tmp_path / 'out'}"]
  result = subprocess.run(
    [sys.executable, "-m", "experiments.quickstart", *flags], capture_output=True, text=True
  )
  assert result.returncode == 2 and result.stderr.count("\n") == 1
  assert "fewer than a prompt of 8,192" in result.stderr
  assert not (tmp_path / "out").exists()
