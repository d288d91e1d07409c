"""Schedules, transports, placements, pools and delays change no bit of what is trained."""

import itertools
import random

import pytest

from schedules.steps import Tier
from schedules.vertical import snake


def ascending(unit, micro_batches):
  return range(micro_batches)


REFERENCE = {"vertical": snake, "horizontal": ascending}
SMALL, SPLIT = "smallest", 320_000  # everything streams; some of it stays in that many bytes
GRID = list(
  itertools.product(
    ("vertical", "horizontal"),
    ("llama", "gpt", "tied"),
    ("float32", "bfloat16"),
    (0.0, 0.25, 0.5, 1.0),
    (SMALL, SPLIT, None),
    ("copy", "callback"),
    (1, 2, 3, 5),
  )
)
CHOSEN = [
  ("vertical", "llama", "float32", 0.0, SMALL, "copy", 3),
  ("horizontal", "gpt", "float32", 0.0, SMALL, "copy", 3),
  *random.Random(0).sample(GRID, 7),
]


@pytest.mark.parametrize("schedule, model, dtype, delayed, host, transport, m", CHOSEN)
def test_bits_equal_the_reference(
  train, reference, schedule, model, dtype, delayed, host, transport, m
):
  trained = train(
    model, schedule, m, dtype, delayed, host=host, device=None if host is None else 500_000,
    transport=transport,
  )  # fmt: skip
  trained.assert_equal(reference(model, REFERENCE[schedule], m, dtype))
  moved = {link: dict(kinds) for link, kinds in trained.result.moved.items()}
  assert moved == trained.predicted


@pytest.mark.parametrize("name", ["in_memory", "in_memory_ascending"])
def test_the_product_own_reference_orders(train, reference, name):
  order = snake if name == "in_memory" else ascending
  train("llama", name).assert_equal(reference("llama", order))


def test_orders_differ_in_bits_but_not_beyond_rounding(reference, assert_close):
  """The order of summation matters to the bit: otherwise the tests above would show nothing."""
  one, other = reference("llama", snake), reference("llama", ascending)
  pairs = list(zip(one.parameters, other.parameters, strict=True))
  assert any((a != b).any() for a, b in pairs)
  for a, b in pairs:
    assert_close(a, b, scale=50)


def test_without_overlap_the_bits_are_the_same(train):
  train("gpt", "vertical", host=SMALL, overlap=False).assert_equal(
    train("gpt", "vertical", host=SMALL)
  )


def test_buffers_stay_within_the_plan(train):
  budget = 190_000
  trained = train("llama", "vertical", host=budget)
  assert trained.planned[Tier.HOST] <= budget
  assert trained.peak["host"] <= trained.planned[Tier.HOST]
  assert trained.peak["ssd"] <= trained.planned[Tier.SSD]
  states = sum(vector.nbytes for vector in trained.states)
  assert states > budget  # the run held less than its optimizer's states in memory
