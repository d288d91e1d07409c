"""The table of peers says what the runs' results say, failures included."""

import json

from experiments import run_log
from experiments.tables import peers
from experiments.tables.table import NOT_MEASURED


def _run(seconds, losses=(5.0, 4.0, 3.5), **more):
  moved = [{"ssd_read": 2e9, "ssd_written": 1e9}] * 3
  return {
    "losses": list(losses),
    "seconds_per_iteration": [99.0, seconds, seconds],
    "bytes_per_iteration": moved,
    "peak_resident_bytes": 5e8,
    **more,
  }


def _summary(**results):
  case = {
    "model": "gpt-bytes-58m",
    "parameters": 58_054_656,
    "micro_batches": 4,
    "results": {
      "ours": [_run(4.0), _run(5.0), _run(6.0)],
      "zero_infinity": [_run(10.0, (5.0, 4.0, 3.50001), versions={"deepspeed": "0.19.8"})],
      "jax": [_run(4.0)],
      "torch": [_run(3.0)],
      **results,
    },
  }
  machine = {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**30, "platform": "cpu"}
  machine |= {"devices": ["cpu"], "python": "3.11", "jax": "0.10.2"}
  return {"cases": [case], "not_switched_on": ["read-ahead"], "machine": machine}


def test_ratios_and_differences():
  table = peers.of_summary(_summary())
  cells = dict(zip(table.columns, table.rows[0], strict=True))
  assert cells["ours, from SSD, s"] == "5.00"
  assert cells["ours over ZeRO-Infinity"] == "2.00×"
  assert cells["most to win"] == "2.50×"
  assert cells["wanted (0.85 of it, at least 1)"] == "2.12×"
  assert cells["ZeRO-Infinity: read, written"] == "2 GB, 1 GB"
  assert any("1e-05" in cell for cell in table.rows[0])
  assert any("read-ahead" in note for note in table.notes)
  assert any("deepspeed 0.19.8" in note for note in table.notes)
  assert any("over 1 to 3 interleaved runs" in note for note in table.notes)


def test_as_many_runs_are_named_as_there_were():
  once = _summary(ours=[_run(4.0)])
  assert any("over one run of" in note for note in peers.of_summary(once).notes)
  twice = {name: [_run(4.0, versions={})] * 2 for name in peers.SYSTEMS}
  assert any("over 2 interleaved" in note for note in peers.of_summary(_summary(**twice)).notes)


def test_a_peer_that_failed_is_named(tmp_path):
  failed = _summary(zero_infinity=[{"failed": "Not enough buffers"}])
  (tmp_path / "peers").mkdir()
  (tmp_path / "peers" / run_log.SUMMARY_FILE).write_text(json.dumps(failed))
  table = peers.table(tmp_path)
  cells = dict(zip(table.columns, table.rows[0], strict=True))
  assert cells["ours over ZeRO-Infinity"] == cells["most to win"] == NOT_MEASURED
  assert any("Not enough buffers" in note for note in table.notes)


def test_what_was_not_run_is_not_measured(tmp_path):
  assert NOT_MEASURED in peers.table(tmp_path).markdown()
