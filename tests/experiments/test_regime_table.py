"""The table of rounds of large shapes, from lines made up for it."""

import json

from experiments import machine, run_log
from experiments.tables import regime

CELL = {"model": "qwen3-4b", "context": 100_000, "batch_size": 4}
METHOD = "specattn,draft_length=6,page_size=16"


def lines(*more):
  first = {"machine": machine.describe(), "dtype": "bfloat16", "copy_bytes_per_second": 1e12}
  step = {**CELL, "method": "autoregressive", "bytes": 20e9}
  return [
    first,
    {**step, "depth": 2, "rounds": [0.002, 0.003, 0.9]},
    {**step, "depth": 4, "rounds": [0.005]},  # a layer takes a millisecond: 37 of them
    {**CELL, "method": METHOD, "depth": 2, "bytes": 70e9, "rounds": [0.006]},
    {**CELL, "method": METHOD, "depth": 4, "bytes": 70e9, "rounds": [0.012]},
    *more,
  ]


def written(folder, *more):
  run = folder / "rounds"
  run.mkdir()
  text = "".join(json.dumps(line) + "\n" for line in lines(*more))
  (run / run_log.METRICS_FILE).write_text(text)
  return regime.table(folder)


def test_rounds_are_of_the_whole_model(tmp_path):
  step, own = written(tmp_path).rows
  assert step[:3] == ("qwen3-4b, 100,000 x 4: autoregressive", "37.0", "0.541")
  assert own[1:3] == ("108", "0.648")
  assert own[3:5] == ("«not measured»", "«not measured»")
  assert own[5:] == ("6.24", f"{6.24 * 37 / 108:.2f}×", "2.81×")


def test_what_was_not_timed_at_both_depths_is_left_out(tmp_path):
  problem = {**CELL, "method": "window,draft_length=6", "depth": 2, "problem": "no memory"}
  alone = {**CELL, "method": "quest,draft_length=6", "depth": 2, "bytes": 1.0, "rounds": [1.0]}
  table = written(tmp_path, alone, problem)
  assert len(table.rows) == 2
  *_, failed, alone = table.notes
  assert failed == "qwen3-4b, 100,000 x 4: window, draft_length=6, 2 layers: no memory."
  assert alone.startswith("Timed at one depth alone") and "quest, draft_length=6" in alone


def test_lengths_of_the_trained_model_are_those_of_the_same_settings(tmp_path):
  row = {"case": "specattn,page_size=16", "kv_budget": "0.07", "acceptance_length": 5.4}
  run = tmp_path / "acceptance" / "editing.0"
  run_log.RunLog.start(run, "acceptance").finish({"rows": [row]}, "")
  run_log.write_json(run / "outside.json", {})
  assert written(tmp_path).rows[1][3:5] == ("5.40", f"{5.4 * 37 / 108:.2f}×")


def test_published_lengths_are_of_their_draft_length(tmp_path):
  others = ("specattn,draft_length=4", "specattn,kv_budget=0.02", "specattn")
  lines = [
    {**CELL, "method": method, "bytes": 1.0, "depth": depth, "rounds": [0.01]}
    for method in others
    for depth in (2, 4)
  ]
  *_, short, small, default = written(tmp_path, *lines).rows
  assert short[3:7] == small[3:7] == ("«not measured»",) * 4
  assert default[5] == "6.24"


def test_nothing_measured_says_how(tmp_path):
  assert "experiments.round_costs" in regime.table(tmp_path).markdown()
