"""The orders of computations, written out by hand and held against the rules."""

import itertools

import pytest

from schedules.iterations import iterations
from schedules.registry import SCHEDULES
from schedules.steps import RESIDENT_UNIT, Action, Part, Work

BOTH = (Part.NOW, Part.DELAYED)


def spell(schedule: str, work: Work) -> str:
  """F01 is forward(unit 0, micro-batch 1), B a backward, U0n an update of the NOW part."""
  out = []
  for c in SCHEDULES[schedule](work):
    last = c.part[0] if c.action is Action.UPDATE else c.micro_batch
    out.append(f"{c.action[0].upper()}{c.unit}{last}")
  return " ".join(out)


def test_vertical_is_the_snake():
  assert spell("vertical", Work(3, 3)) == (
    "F00 F01 F02 F12 F11 F10 B20 B21 B22 U2n B12 B11 B10 U1n B00 B01 B02 U0n"
  )


def test_horizontal_takes_micro_batches_one_after_another():
  assert spell("horizontal", Work(3, 2)) == ("F00 F10 B20 B10 B00 F01 F11 B21 B11 B01 U0n U1n U2n")


def test_in_memory_sums_in_the_order_of_the_schedule_it_stands_for():
  assert spell("in_memory", Work(2, 2)) == "F00 F01 B11 B10 B00 B01 U0n U1n"
  assert spell("in_memory_ascending", Work(2, 2)) == "F00 F01 B10 B11 B00 B01 U0n U1n"


def test_delayed_parts_are_updated_before_their_unit_is_read_again():
  assert spell("vertical", Work(2, 1, BOTH, pending=True)) == "U0d F00 U1d B10 U1n B00 U0n"


@pytest.mark.parametrize("units", range(1, 7))
@pytest.mark.parametrize("micro_batches", range(1, 7))
def test_vertical_stages_share_the_micro_batch_at_the_turn(units, micro_batches):
  order = [
    c for c in SCHEDULES["vertical"](Work(units, micro_batches)) if c.micro_batch is not None
  ]
  assert len(order) == (2 * units - 1) * micro_batches
  turns = [(a, b) for a, b in itertools.pairwise(order) if a.unit != b.unit]
  assert all(a.micro_batch == b.micro_batch for a, b in turns)


def test_iterations_number_updates_by_the_gradients_they_apply():
  work = Work(2, 1, BOTH)
  first, second = iterations(SCHEDULES["vertical"], work, 5, 2)
  delayed = [c.iteration for c in first + second if c.part is Part.DELAYED]
  assert delayed == [5, 5, 6, 6]  # those of 5 in the second list, those of 6 in its flush
  assert [c.iteration for c in second if c.unit == RESIDENT_UNIT] == [6]
  assert not any(c.part is Part.DELAYED for c in first)
