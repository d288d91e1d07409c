"""The table of chosen and fixed draft lengths, from a cell made up for it."""

from experiments.tables import draft_lengths
from experiments.tables.table import NOT_MEASURED


def cell(**seconds):
  methods = {"autoregressive": {"seconds": [8.0, 8.0, 8.0], "speedup": 1.0}}
  for name, own in seconds.items():
    text = f"{draft_lengths.SELECTOR},draft_length={name.removeprefix('g')}"
    rounds = {"0": 10, "4": 30} if name == "auto" else {}
    speedup = sorted(8 / second for second in own)[1]
    methods[text] = {
      "seconds": own,
      "speedup": speedup,
      "rounds_by_draft_length": rounds,
      "measuring_seconds": 9.4,
    }
  return {"kind": "editing", "length": 4096, "batch_size": 1, "batches": 12, "methods": methods}


FIXED = {"g2": [5.0, 5.0, 5.0], "g4": [4.0, 2.0, 4.0], "g8": [6.0] * 3, "g12": [7.0] * 3}


def test_auto_is_held_against_the_fastest_of_the_others_round_by_round():
  assert draft_lengths.over_best(cell(**FIXED, auto=[5.0, 5.0, 4.0])) == 0.8  # of .8, .4 and 1
  slow = {name: [16.0] * 3 for name in FIXED}
  assert draft_lengths.over_best(cell(**slow, auto=[10.0] * 3)) == 0.8  # autoregressive


def test_a_row():
  row = draft_lengths._row(cell(**FIXED, auto=[5.0, 5.0, 4.0]))
  assert row == (
    *("editing, 4,096 x 1", "1.60×", "2.00×", "1.33×", "1.14×", "1.60×"),
    *("0.800", "at least 0.95", "3.00"),
  )


def test_the_prompts_of_a_cell_are_told(monkeypatch, tmp_path):
  notes = draft_lengths._notes([cell(**FIXED, auto=[5.0] * 3)])
  assert "12 prompts a cell, medians over 3 rounds" in notes[0]
  planned = {}
  monkeypatch.setattr(draft_lengths.runs, "measure", lambda folder, todo, _: planned.update(todo))
  draft_lengths.measure(tmp_path, quick=False)
  assert "--batches=12" in planned["editing-1024x1"].flags
  assert "--batches=3" in planned["continuation-16384x4"].flags


def test_nothing_measured(tmp_path):
  assert NOT_MEASURED in draft_lengths.table(tmp_path).markdown()
