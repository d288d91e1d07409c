"""The throughput table and the methods that its runs are given as text."""

import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import run_log
from experiments import throughput as program
from experiments.tables import throughput
from experiments.tables.table import NOT_MEASURED
from models.config import ModelConfig
from models.decoding.draft_length import LENGTHS
from models.decoding.generate import Generator, slots_for
from models.decoding.method import Method
from models.transformer import Transformer

SMALL = ModelConfig("llama", 2, 32, 4, 2, 8, 48, 256, 64)


def _own(seconds, speedup, predicted=None, **phases):
  return {
    "seconds": seconds, "speedup": speedup, "tokens_per_second": 10.0, "acceptance_length": 3.0,
    "roofline_speedup": 2.5, "phases_speedup": predicted, "phases": phases,
    "identical_to_autoregressive": True, "near_ties": 0,
  }  # fmt: skip


def _cell():
  phases = {"select": 1.0, "gather": 2.0, "draft": 3.0, "verify": 13.0, "score": 1.0, "round": 21.0}
  methods = {
    "autoregressive": _own([9.0, 9.0, 9.0], 1.0),
    "specattn": _own([7.0, 7.0, 7.0], 1.3),
    "specattn,page_size=16": _own([3.0, 4.5, 3.0], 3.0, 3.2, **phases),
    "window": _own([6.0, 4.5, 4.5], 2.0),
    "quest,draft_length=4": _own([4.0, 5.0, 9.0], 1.8),
    "pillar": _own([1.0, 1.0, 1.0], 9.0),
  }
  return {
    "kind": "editing", "length": 16_384, "batch_size": 1, "batches": 4, "methods": methods
  }  # fmt: skip


def test_the_fastest_unscored_selector_is_compared_round_by_round():
  assert throughput.over_unscored(_cell()) == 1.5  # of 2, 1 and 1.5, by window
  assert throughput.over_unscored({"methods": {}}) is None


def test_shares_are_of_the_phases_without_the_round():
  cell = _cell()
  own = cell["methods"]["specattn,page_size=16"]
  row = throughput._row(cell, "specattn,page_size=16", own)
  cells = dict(zip(throughput._COLUMNS, row, strict=True))
  assert cells["verify"] == "65.0%" and cells["score, select"] == "10.0%"
  assert cells["round over its phases"] == "1.05×" and cells["of that"] == "0.938"


def test_each_kind_of_prompts_is_told_with_its_own_tokens(monkeypatch, tmp_path):
  recall = _cell() | {"kind": "recall", "new_tokens": 24}
  notes = " ".join(throughput._notes([_cell() | {"new_tokens": 192}, recall]))
  assert "4 prompts a cell of the kind editing, 192 new tokens" in notes
  assert "kind recall, 24 new tokens" in notes
  planned = {}
  monkeypatch.setattr(throughput.runs, "measure", lambda folder, todo, rounds: planned.update(todo))
  throughput.measure(tmp_path, quick=False)
  last = dict(flag.removeprefix("--").split("=", 1) for flag in planned["recall"].flags[:2])
  assert last == {"length": "16384", "batch_size": "4"}
  assert {"--kind=recall", "--new_tokens=24", "--nophases"} <= {*planned["recall"].flags}
  assert "--batches=4" in planned["16384x1"].flags and "--batches=1" in planned["16384x4"].flags
  assert len(planned) == 9 and not any("--kind=" in f for f in planned["16384x1"].flags)


def test_nothing_measured(tmp_path):
  assert NOT_MEASURED in throughput.table(tmp_path).markdown()


@pytest.fixture
def parsed():
  """Flags as a command line without any leaves them."""
  flags.FLAGS.mark_as_parsed()
  yield
  flags.FLAGS.unparse_flags()


def test_methods_as_text(parsed):
  made = program.method_of("quest,draft_length=4,kv_budget=0.05,page_size=32")
  assert (made.draft_length, made.selector.page_size, made.selector.dense_layers) == (4, 32, 2)
  assert float(made.selector.budget.ratio) == 0.05
  assert program.method_of("window,draft_length=auto").draft_lengths == LENGTHS


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("spec", "--methods=spec: --method=spec is neither autoregressive nor a selector"),
    ("window,length=8", "--methods=window,length=8: length is none of kv_budget"),
    ("specattn,page_size=1024", "--page_size=1024 is beyond"),
    ("window,page_size=x", "--methods=window,page_size=x: "),
    ("window,rows=all", "--rows is no setting of the selector window"),
    ("window,draft_length=0", "--draft_length=0 drafts nothing"),
  ],
)
def test_methods_that_are_none(parsed, text, sentence):
  with pytest.raises(ValueError, match=sentence):
    program.method_of(text)


@pytest.mark.usefixtures("parsed")
@flagsaver.flagsaver(length=512, batch_size=2, batches=3, new_tokens=100)
def test_a_method_is_summarized_over_all_its_batches(monkeypatch):
  """Batches in turn, each done when its slowest sequence is; the first token is a step's."""
  phases = {"select": 0.0, "gather": 0.1, "draft": 0.2, "verify": 0.6, "score": 0.1, "round": 9.0}
  base = {"seconds": [60.0, 90.0, 60.0]}  # 300 steps, of 0.2 s
  own = {
    "seconds": [30.0, 40.0, 20.0], "speedups": [2.0, 2.25, 3.0], "phases": phases,
    "acceptances": [[0, 3], [1, 3], [9, 1], [0, 1], [0, 2], [2, 2]],  # slowest: 4, 10, 4
    "rounds_by_draft_length": {},
  }  # fmt: skip
  bound = types.SimpleNamespace(rho=0.0, speedup=lambda length: 7 * length)
  monkeypatch.setattr(program.roofline, "of", lambda *args, **kwargs: bound)
  plan = program.Plan(Transformer(SMALL), {}, [], 0)
  found = program._summarized(plan, {"w": np.zeros(1, np.float32)}, Method(), own, base)
  assert found["tokens_per_second"] == 600 / 30 and found["speedup"] == 2.25
  assert found["phases_speedup"] == pytest.approx(60 / (3 * 0.2 + 18 * 1.0))
  assert found["acceptance_length"] == pytest.approx(1 + 12 / 24)
  assert found["roofline_speedup"] == pytest.approx(7 * 1.5)


@pytest.mark.usefixtures("parsed")
@flagsaver.flagsaver(batch_size=2, batches=2, new_tokens=8, rounds=2)
def test_batches_are_measured_one_after_the_other(tmp_path):
  """Each prompt's text is that of its own batch, and seconds are summed turn by turn."""
  model = Transformer(SMALL)
  parameters = model.init(jax.random.key(0))
  generators = {name: Generator(model, parameters, Method()) for name in ("autoregressive", "x")}
  log, prompts = run_log.RunLog.start(tmp_path, "throughput"), [b"A", b"BC", b"D", b"E"]
  batches = program._batches(prompts)
  assert batches == [[b"A", b"BC"], [b"D", b"E"]]
  found = program._measure(generators, batches, slots_for(SMALL, Method(), 2, 8), log)
  texts = generators["x"].generate(prompts, 8)
  lines = run_log.read_metrics(tmp_path)
  for name, own in found.items():
    assert own["texts"] == texts and len(own["acceptances"]) == 4 and own["phases"] == {}
    taken = [
      sum(line["decode_seconds"] for line in lines if line["method"] == name and line["round"] == n)
      for n in (1, 2)
    ]
    assert own["seconds"] == pytest.approx(taken)
  pairs = zip(found["autoregressive"]["seconds"], found["x"]["seconds"], strict=True)
  assert found["x"]["speedups"] == pytest.approx([base / seconds for base, seconds in pairs])
