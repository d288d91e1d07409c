"""The table of transformers beside ours says what a summary holds."""

from experiments.tables import assisted
from experiments.tables.table import NOT_MEASURED


def _runs(*rates):
  peer = {"logit_difference": 1e-6, "versions": {"transformers": "5"}}
  return [{"tokens_per_second": r, "tokens_per_pass": 1.0, **peer} for r in rates]


def _summary(machine):
  results = {
    "autoregressive": _runs(12.0, 33.0, 20.0),
    "specattn": _runs(25.0, 66.0, 40.0),
    "dynamic": _runs(10.0, 30.0, 20.0),
    "static": [{"failed": "no such cache"}] * 3,
    "lookup": _runs(8.0, 8.0, 8.0),
  }
  verdicts = {
    "autoregressive": {"identical_to_autoregressive": True, "near_ties": 0},
    "specattn": {"identical_to_autoregressive": True, "near_ties": 2},
    "dynamic": {"identical_to_autoregressive": False, "near_ties": 0},
  }
  names = ("length", "new_tokens", "lookup_tokens", "draft_length", "page")
  settings = {**dict.fromkeys(names, 8), "kind": "editing", "kv_budget": "0.07"}
  return {**settings, "results": results, "verdicts": verdicts, "machine": machine}


def test_ratios_are_of_runs_of_one_round():
  machine = {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**30, "platform": "cpu"}
  machine |= {"devices": ["cpu"], "python": "3.11", "jax": "0.10.2"}
  table = assisted.of_summary(_summary(machine))
  rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
  ours, spec = rows["ours, autoregressive"], rows["ours, specattn"]
  assert ours["over transformers' generate"] == "1.10×"  # of 1.2, 1.1 and 1
  assert (ours["tokens per second"], spec["tokens per second"]) == ("20.0", "40.0")
  same = "same tokens as ours, autoregressive"
  assert [rows[title][same] for title in assisted.SYSTEMS.values()] == [
    *("yes", "yes, 2 near-ties", "no", NOT_MEASURED, NOT_MEASURED),
  ]
  assert any("static cache failed: no such cache" in note for note in table.notes)


def test_nothing_measured(tmp_path):
  assert NOT_MEASURED in assisted.table(tmp_path).markdown()
