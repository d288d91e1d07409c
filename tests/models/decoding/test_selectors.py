"""Budgets, the window, the settings of the scored rule, and selectors from outside the tree."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.selectors import (
  SELECTORS,
  Budget,
  Observation,
  Scored,
  Window,
  make_selector,
)
from models.decoding.selectors.scored import smooth


@pytest.mark.parametrize(
  ("text", "length", "tokens"),
  [("0.07", 10_000, 700), ("0.07", 100, 100), ("0.07", 300, 256), ("0.1", 9999, 1000),
   ("512", 10_000, 512), ("512", 40, 40), ("1.0", 777, 777)],
)  # fmt: skip
def test_budgets(text, length, tokens):
  budget = Budget.parse(text)
  assert budget.at(length) == tokens
  assert min(int(budget.of(jnp.array([length], jnp.int32))[0]), length) == tokens


@pytest.mark.parametrize("text", ["0", "-3", "0.0", "1.5", "many", "-0.5", "nan.", "1e3"])
def test_budgets_that_make_no_sense_are_refused(text):
  with pytest.raises(ValueError, match=f"--kv_budget={text} selects nothing"):
    Budget.parse(text)


def chosen(selection, layer, b, z=0):
  pages = np.asarray(selection.pages[layer, b, z])
  return pages[len(pages) - int(selection.counts[layer, b]) :].tolist()


def test_window_is_the_sink_and_the_latest():
  window = Window(Budget.parse("8"), page_size=1, sink=3)
  selection = window.select(None, jnp.array([30, 5, 8], jnp.int32), 2, 64)
  assert chosen(selection, 1, 0) == [0, 1, 2, 25, 26, 27, 28, 29]
  assert chosen(selection, 0, 1) == [0, 1, 2, 3, 4]
  assert chosen(selection, 0, 2) == [*range(8)]
  assert selection.tail.tolist() == [30, 5, 8]


def test_window_of_pages_leaves_the_last_page_to_the_tail():
  selection = Window(Budget.parse("16"), page_size=4, sink=4).select(
    None, jnp.array([30, 3], jnp.int32), 1, 64
  )
  assert chosen(selection, 0, 0) == [0, 4, 5, 6]
  assert chosen(selection, 0, 1) == []
  assert selection.tail.tolist() == [28, 0]


def observed(mass, lengths, rows, accepted):
  return Observation(
    jnp.asarray(mass, jnp.float32),
    jnp.array(lengths, jnp.int32),
    rows,
    jnp.array(accepted, jnp.int32),
  )


def test_scored_settings():
  """One sequence of 20 tokens and 4 rows; two of three drafts stood."""
  mass = np.random.default_rng(0).random((1, 1, 1, 4, 32))
  summed = mass.sum(axis=3, keepdims=True)  # what leaves a layer if rejected rows vote too
  every_row, seen = observed(mass, [20], 4, [2]), observed(summed, [20], 4, [2])
  lengths = jnp.array([23], jnp.int32)
  top = lambda scores, k: sorted(np.argsort(-scores[:21])[:k].tolist())
  pick = lambda selector, state: chosen(selector.select(state, lengths, 1, 32), 0, 0)

  every = Scored(Budget.parse("6"), rows="all")
  assert pick(every, every.init(seen)) == top(mass[0, 0, 0].mean(axis=0), 6)

  of_the_text = Scored(Budget.parse("6"), rows="all", rejected_rows_vote=False)
  assert pick(of_the_text, of_the_text.init(every_row)) == top(mass[0, 0, 0, :3].mean(axis=0), 6)

  charged = Scored(Budget.parse("6"), rows="all", charge_tail=True)
  assert pick(charged, charged.init(seen)) == top(mass[0, 0, 0].mean(axis=0), 3)

  kept = Scored(Budget.parse("6"), rows="all", sink=2, recent=3)
  scores = mass[0, 0, 0].mean(axis=0)
  scores[[0, 1, 18, 19, 20]] = 9
  assert pick(kept, kept.init(seen)) == top(scores, 6)

  fading = Scored(Budget.parse("6"), rows="all", decay=0.5)
  more = np.random.default_rng(1).random((1, 1, 1, 4, 32))
  state = fading.observe(fading.init(seen), observed(more.sum(axis=3, keepdims=True), [20], 4, [2]))
  assert pick(fading, state) == top((0.5 * mass + more)[0, 0, 0].mean(axis=0), 6)


def test_pages_end_where_candidates_do():
  mass = np.ones((1, 1, 1, 1, 8))
  selector = Scored(Budget.parse("1.0"), page_size=4)
  state = selector.init(observed(mass, [20], 2, [1]))  # 21 candidates: five pages and one entry
  selection = selector.select(state, jnp.array([22], jnp.int32), 1, 32)
  assert chosen(selection, 0, 0) == [0, 1, 2, 3, 4]
  assert selection.tail.tolist() == [20]


def test_a_selector_from_outside_the_tree(monkeypatch):
  module = types.ModuleType("outside")
  module.Mine = Window
  monkeypatch.setitem(sys.modules, "outside", module)
  assert isinstance(make_selector("outside.Mine", Budget.parse("9")), Window)
  for name, says in (
    ("nowhere.Mine", "No module"),
    ("outside.Theirs", "Theirs"),
    ("foo", "choose"),
  ):
    with pytest.raises(ValueError, match=says):
      make_selector(name, Budget.parse("9"))


def test_a_selector_is_made_of_the_settings_that_it_has():
  budget = Budget.parse("0.05")
  assert make_selector("pillar", budget, rows="last", page_size=16).rows == "last"
  assert make_selector("quest", budget).page_size == 16
  for name in SELECTORS:
    assert make_selector(name, budget, page_size=4, dense_layers=1).page_size == 4
  for name, setting in (("window", "rows"), ("quest", "refresh"), ("oracle", "smoothing")):
    with pytest.raises(ValueError, match=f"--{setting} is no setting of the selector {name}"):
      make_selector(name, budget, **{setting: 1})


@pytest.mark.parametrize(
  ("name", "settings", "says"),
  [
    ("specattn", {"page_size": 12}, "--page_size=12 must be a power of two"),
    ("specattn", {"dense_layers": -1}, "--dense_layers=-1 must be 0 or more"),
    ("window", {"refresh": -1}, "--refresh=-1 must be 0"),
    ("h2o", {"decay": 1.5}, "--decay=1.5 must be in"),
    ("h2o", {"recent": 1.5}, "--recent=1.5 is more than the whole budget"),
    ("snapkv", {"smoothing": 0}, "--smoothing=0 must be at least 1"),
    ("specattn", {"coverage": 1.2}, "--coverage=1.2 must be in"),
    ("specattn", {"coverage": 0.9, "metric": "logit"}, "leave out --metric=logit"),
    ("h2o", {"metric": "logit"}, "--decay adds up attention weights: leave out --metric=logit"),
    ("snapkv", {"metric": "logit"}, "--smoothing adds up attention weights"),
  ],
)
def test_settings_that_make_no_sense_are_refused(name, settings, says):
  with pytest.raises(ValueError, match=says):
    make_selector(name, Budget.parse("9"), **settings)


def test_random_pages_differ_between_layers_and_rounds_but_not_between_batches():
  selector = make_selector("random", Budget.parse("6"))
  both = selector.select(None, jnp.array([40, 30], jnp.int32), 2, 64)
  alone = selector.select(None, jnp.array([30], jnp.int32), 2, 64)
  later = selector.select(None, jnp.array([41, 31], jnp.int32), 2, 64)
  first = chosen(both, 0, 1)
  assert len(set(first)) == 6 and max(first) < 30 and first == sorted(first)
  assert first == chosen(alone, 0, 0)
  assert first != chosen(both, 1, 1) and first != chosen(later, 0, 1)


@pytest.mark.parametrize(("kind", "width"), [("mean", 5), ("max", 7), ("mean", 4), ("max", 1)])
def test_smoothing_is_a_pool_of_one_dimension(kind, width):
  mass = np.random.default_rng(0).random((2, 3, 20))
  found = smooth(jnp.asarray(mass, jnp.float32), width, kind)
  left, right = (width - 1) // 2, width // 2
  for at in range(20):
    around = mass[..., max(at - left, 0) : at + right + 1]
    expected = around.max(axis=-1) if kind == "max" else around.sum(axis=-1) / width
    np.testing.assert_allclose(found[..., at], expected, rtol=1e-6)


def test_coverage_takes_what_a_layer_needs_and_the_budget_caps_it():
  """Of three layers, one attends to two tokens, one to ten, one to all alike."""
  mass = np.full((3, 1, 2, 1, 64), 1e-6)
  mass[0, :, :, :, [3, 9]] = 0.5
  mass[1, :, :, :, 10:20] = 0.1
  mass[2] = 1 / 41
  selector = Scored(Budget.parse("16"), head_sets="group", coverage=0.95)
  state = selector.init(observed(mass, [40], 1, [0]))
  selection = selector.select(state, jnp.array([41], jnp.int32), 3, 64)
  assert selection.counts[:, 0].tolist() == [2, 10, 16]
  assert chosen(selection, 0, 0, 1) == [3, 9]
  kept = Scored(Budget.parse("16"), coverage=0.5, sink=4, recent=4)
  assert kept.select(kept.init(observed(mass[:, :, :1], [40], 1, [0])),
                     jnp.array([41], jnp.int32), 3, 64).counts[0, 0] == 9  # fmt: skip


@pytest.mark.parametrize(
  ("settings", "rows"),
  [({}, (0, 6)), ({"rows": "all"}, tuple(range(7))), ({"rows": "first"}, (0,)),
   ({"rows": "last"}, (6,))],
)  # fmt: skip
def test_rows_that_vote(settings, rows):
  selector = Scored(Budget.parse("6"), **settings)
  assert selector.rows_scored(7) == rows
  assert selector.rows_scored(1) == (0,)


def test_metric_and_aggregation_over_heads():
  rng = np.random.default_rng(0)
  page_lse, lse = rng.normal(size=(1, 4, 2, 8)), rng.normal(size=(1, 4, 2)) + 3
  arguments = jnp.asarray(page_lse, jnp.float32), jnp.asarray(lse, jnp.float32), 2
  weight = np.exp(page_lse - lse[..., None])
  for settings, expected in (
    ({}, weight.mean(axis=1, keepdims=True)),
    ({"head_aggregation": "max"}, weight.max(axis=1, keepdims=True)),
    ({"metric": "logit"}, page_lse.mean(axis=1, keepdims=True)),
    ({"head_sets": "group"}, weight.reshape(1, 2, 2, 2, 8).mean(axis=2)),
  ):
    scores = Scored(Budget.parse("6"), **settings).score(*arguments)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
