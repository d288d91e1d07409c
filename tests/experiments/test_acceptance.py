"""Acceptance as it is measured: budgets that share a batch, cases, and what the tables say."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import acceptance_run
from experiments.report import acceptance as pictures
from experiments.tables import acceptance, staleness
from experiments.tables.table import NOT_MEASURED
from models.config import ModelConfig
from models.decoding.generate import Generator, pad, sequence_keys
from models.decoding.method import Method
from models.decoding.selectors import Budget, make_selector
from models.transformer import Transformer
from models.weights import checkpoint

CONFIG = ModelConfig("llama", 2, 32, 4, 2, 8, 48, 256, 1024)
SLOTS, WANTED = 512, 24
BUDGETS = {text: Budget.parse(text, 1) for text in ("0.05", "0.3", "0.9")}


@pytest.fixture(scope="module")
def model():
  model = Transformer(CONFIG)
  return model, jax.tree.map(lambda x: 2.5 * x, model.init(jax.random.key(1)))


@pytest.fixture(scope="module")
def prompts():
  rng = np.random.default_rng(0)
  return [bytes(rng.integers(0, 256, length).tolist()) for length in (200, 90)]


@pytest.mark.parametrize("name", ["pillar", "quest"])
def test_budgets_in_one_batch_are_as_each_alone(model, prompts, name):
  """Acceptances of a ladder's rungs, and texts, are those of a loop that has the budget itself."""
  settings = {"page_size": 4, "dense_layers": 0} if name == "quest" else {}
  method = Method(make_selector(name, BUDGETS["0.3"], **settings), 3)
  filled = acceptance_run.Cache.fill(*model, prompts, SLOTS)
  accepted, texts = {}, {}
  for own, budgets in acceptance_run.ladders(method, BUDGETS, 200):
    of_rungs, counts = acceptance_run.decode(filled, own, len(budgets), WANTED)
    texts |= dict(zip(budgets, of_rungs, strict=True))
    accepted |= dict(zip(budgets, counts.tolist(), strict=True))
  for text, budget in BUDGETS.items():
    alone = Generator(*model, Method(make_selector(name, budget, **settings), 3))
    batch = pad(prompts)
    keys = sequence_keys(jax.random.key(0), 2)
    state = alone.start(batch, alone.prefill(batch, SLOTS), keys, WANTED)
    state = alone.advance(state, WANTED)
    assert accepted[text] == np.asarray(state.acceptances).tolist()
    assert texts[text] == alone.texts(state)
  assert accepted["0.05"] != accepted["0.9"]  # else nothing is told apart


def test_a_ladder_spans_what_one_program_may_cost():
  method = Method(make_selector("specattn", BUDGETS["0.3"]), 3)
  made = acceptance_run.ladders(method, BUDGETS, 1000)
  assert [budgets for _, budgets in made] == [("0.05", "0.3"), ("0.9",)]
  full = Method(make_selector("full", BUDGETS["0.3"]), 3)
  assert acceptance_run.ladders(full, BUDGETS, 1000) == [(full, ("1.0",))]


def test_copied_from_far_back():
  far, near = b"abcdefghijklmnopqrst", b"ABCDEFGHIJKLMNOPQRST"
  prompt = far + bytes(1200) + near
  assert acceptance_run.copied_share(prompt, far + b"?" * 20) == 0.5
  assert acceptance_run.copied_share(prompt, near + far[:15]) == 0.0


def _leave(folder, kind, cases):
  """A run of three prompts, one round each, in which so many of two drafts stood."""
  folder = folder / f"{kind}.0"
  folder.mkdir(parents=True)
  one = lambda accepted: [int(accepted == i) for i in range(3)]
  rows = [
    {
      "case": case,
      "kv_budget": budget,
      "acceptance_length": 1 + np.mean(accepted),
      "acceptance_by_position": [np.mean(np.array(accepted) > i) for i in range(2)],
      "rounds_by_accepted_drafts": [one(n) for n in accepted],
    }
    for (case, budget), accepted in cases.items()
  ]
  machine = {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**30, "platform": "cpu"}
  machine |= {"python": "3", "jax": "0", "devices": ["cpu"]}
  summary = {"rows": rows, "machine": machine, "checkpoint": "x", "completions": [[1, 2]]}
  summary |= {"prompt_bytes": [2000] * 3, "draft_length": 2, "copied_share": 0.5}
  (folder / "summary.json").write_text(json.dumps(summary))
  (folder / "outside.json").write_text(json.dumps({"peak_resident_bytes": 1000}))


def test_every_case_of_the_table_has_its_line_in_the_picture():
  assert list(pictures.LINES) == list(acceptance.CASES)


def test_the_table_tells_where_specattn_is_above_and_what_beats_it(tmp_path):
  cells = {("specattn", "0.02"): (2, 1, 1), ("pillar", "0.02"): (2, 1, 0)}
  cells |= {("specattn", "0.07"): (1, 1, 1), ("pillar", "0.07"): (2, 1, 0)}
  cells |= {("window", "0.07"): (2, 2, 1), ("full", "1.0"): (2, 2, 2)}
  _leave(tmp_path / "acceptance", "editing", cells)
  table = acceptance.table(tmp_path)
  rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
  assert rows["editing: specattn"]["2%"] == "2.33"
  assert rows["editing: full"]["1%"] == rows["editing: full"]["50%"] == "3.00"
  assert rows["continuation: specattn"]["2%"] == rows["editing: h2o"]["2%"] == NOT_MEASURED
  # Prompts one by one: window is 1, 1, 0 above; without each 0.5, 0.5, 1: an error of 1/3.
  said = (
    "above every rule but oracle at 2%; at 7% below pillar by 0.00 ± 0.58, window by 0.67 ± 0.33"
  )
  assert any(said in note for note in table.notes)
  assert acceptance.positions(acceptance.read(tmp_path / "acceptance"), "editing") == {
    "full": [1.0, 1.0],
    "specattn": [1.0, 0.0],
    "pillar": pytest.approx([2 / 3, 1 / 3]),
    "window": pytest.approx([1.0, 2 / 3]),
  }


@pytest.mark.parametrize("module", [acceptance, staleness])
def test_what_was_not_run_is_not_measured(module, tmp_path):
  table = module.table(tmp_path)
  assert NOT_MEASURED in table.markdown() and table.machine == ""


def test_the_program_and_its_mistakes(model, tmp_path):
  checkpoint.save(tmp_path / "model", CONFIG, model[1])
  (tmp_path / "prompt").write_bytes(b"def f(x):\n  return x\n" * 8)

  def run(*words):
    own = (f"--checkpoint={tmp_path}/model", f"--prompt_file={tmp_path}/prompt")
    own += (f"--workdir={tmp_path}/run", "--max_new_tokens=8", "--draft_length=2", "--kv_floor=1")
    command = [sys.executable, "-m", "experiments.acceptance", *own, *words]
    return subprocess.run(command, capture_output=True, text=True)

  for words, says in (
    ("--case=window,rows=all", "--rows is no setting of the selector window"),
    ("--case=window,method=h2o", "method is none of kv_budget"),
    ("--temperature=1", "leave out --temperature"),
  ):
    bad = run(words)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and says in bad.stderr, bad.stderr
  assert not (tmp_path / "run").exists()
  good = run("--case=specattn,refresh=2,kv_budget=0.5")
  assert good.returncode == 0, good.stderr
  (row,) = json.loads((tmp_path / "run/summary.json").read_text())["rows"]
  assert row["case"] == "specattn,refresh=2,kv_budget=0.5" and row["kv_budget"] == "0.5"
  assert len(row["acceptance_by_position"]) == 2 and row["other_texts"] == 0
