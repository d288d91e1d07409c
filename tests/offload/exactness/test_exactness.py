"""Schedules, transports, placements, pools and delays change no bit of what is trained."""

import itertools
import random

from schedules.steps import Tier
from schedules.vertical import snake


def ascending(unit, micro_batches):
  return range(micro_batches)


REFERENCE = {
  "vertical": snake,
  "in_memory": snake,
  "horizontal": ascending,
  "in_memory_ascending": ascending,
}
AXES = {
  "schedule": tuple(REFERENCE),
  "model": ("llama", "gpt", "tied"),
  "dtype": ("float32", "bfloat16"),
  "delayed": (0.0, 0.25, 0.5, 1.0),
  "homes": ("host", "slices", "ssd"),
  "pools": ("smallest", "ample"),
  "transport": ("copy", "callback"),
  "m": (1, 2, 3, 5),
}


def pytest_generate_tests(metafunc):
  """The whole grid where it is asked for; otherwise points in which every two settings meet."""
  if "pools" in metafunc.fixturenames:
    whole = list(itertools.product(*AXES.values()))
    points = whole if metafunc.config.getoption("whole_grid") else pairwise(whole)
    metafunc.parametrize(tuple(AXES), points)


def pairwise(points):
  """Points of a grid such that any two values of two axes meet in one of them."""
  rng = random.Random(0)
  pairs = lambda point: set(itertools.combinations(enumerate(point), 2))
  missing = set().union(*map(pairs, points))
  chosen = []
  while missing:
    best = max(rng.sample(points, 200), key=lambda point: len(pairs(point) & missing))
    if gained := pairs(best) & missing:
      chosen.append(best)
      missing -= gained
  return chosen


def test_bits_equal_the_reference(
  train, reference, schedule, model, dtype, delayed, homes, pools, transport, m
):
  trained = train(
    model, schedule, m, dtype, delayed, homes=homes, ample=pools == "ample", transport=transport
  )
  trained.assert_equal(reference(model, REFERENCE[schedule], m, dtype))
  moved = {link: dict(kinds) for link, kinds in trained.result.moved.items()}
  assert moved == trained.predicted


def test_orders_differ_in_bits_but_not_beyond_rounding(reference, assert_close):
  """The order of summation matters to the bit: otherwise the tests above would show nothing."""
  one, other = reference("llama", snake), reference("llama", ascending)
  pairs = list(zip(one.parameters, other.parameters, strict=True))
  assert any((a != b).any() for a, b in pairs)
  for a, b in pairs:
    assert_close(a, b, scale=50)


def test_without_overlap_the_bits_are_the_same(train):
  train("gpt", "vertical", homes="ssd", overlap=False).assert_equal(
    train("gpt", "vertical", homes="ssd")
  )


def test_buffers_stay_within_the_plan(train):
  budget = 390_000
  trained = train("llama", "vertical", budget=budget)
  assert trained.planned[Tier.HOST] <= budget
  assert trained.peak["host"] <= trained.planned[Tier.HOST]
  assert trained.peak["ssd"] <= trained.planned[Tier.SSD]
  states = sum(vector.nbytes for vector in trained.states)
  assert states > budget  # the run held less than its optimizer's states in memory
