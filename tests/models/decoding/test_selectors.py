"""Budgets, the window, the settings of the scored rule, and selectors from outside the tree."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.selectors import Budget, Observation, Scored, Window, make_selector


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
  seen = observed(mass, [20], 4, [2])
  lengths = jnp.array([23], jnp.int32)
  top = lambda scores, k: sorted(np.argsort(-scores[:21])[:k].tolist())
  pick = lambda selector, state: chosen(selector.select(state, lengths, 1, 32), 0, 0)

  every = Scored(Budget.parse("6"), rows="all")
  assert pick(every, every.init(seen)) == top(mass[0, 0, 0].mean(axis=0), 6)

  of_the_text = Scored(Budget.parse("6"), rows="all", rejected_rows_vote=False)
  assert pick(of_the_text, of_the_text.init(seen)) == top(mass[0, 0, 0, :3].mean(axis=0), 6)

  charged = Scored(Budget.parse("6"), rows="all", charge_tail=True)
  assert pick(charged, charged.init(seen)) == top(mass[0, 0, 0].mean(axis=0), 4)

  kept = Scored(Budget.parse("6"), rows="all", sink=2, recent=3)
  scores = mass[0, 0, 0].mean(axis=0)
  scores[[0, 1, 18, 19, 20]] = 9
  assert pick(kept, kept.init(seen)) == top(scores, 6)

  fading = Scored(Budget.parse("6"), rows="all", decay=0.5)
  more = np.random.default_rng(1).random((1, 1, 1, 4, 32))
  state = fading.observe(fading.init(seen), observed(more, [20], 4, [2]))
  assert pick(fading, state) == top((0.5 * mass + more)[0, 0, 0].mean(axis=0), 6)


def test_pages_end_where_candidates_do():
  mass = np.ones((1, 1, 1, 2, 8))
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
