"""Every part of a step is taken with its own iteration's count and rate, however late it is."""

import pytest

from schedules.vertical import snake


@pytest.mark.parametrize("rule", ["lion", "momentum", "groups"])
def test_any_optimizer_delayed_by_any_fraction(train, reference, rule):
  """`groups` has another rate and decay for some leaves, with a boundary inside each part."""
  expected = reference("llama", snake, 2, "bfloat16", rule)
  for delayed in (0.25, 1.0):
    train("llama", "vertical", 2, "bfloat16", delayed, "slices", rule=rule).assert_equal(expected)


def test_flushing_changes_nothing(train):
  """After every step, and once more when nothing is pending."""
  once = train("llama", "vertical", 2, delayed_fraction=0.25, homes="ssd")
  often = train("llama", "vertical", 2, delayed_fraction=0.25, homes="ssd", runs=(1, 0, 1, 1, 0))
  often.assert_equal(once)
