"""Each rule of the checker, broken once: the step is named, and so is the reason."""

import dataclasses

import pytest

from schedules import registry
from schedules.check import ScheduleError, check_schedule
from schedules.registry import SCHEDULES
from schedules.steps import RESIDENT_UNIT, Action, Part, Work, backward, forward, update

WORK = Work(3, 2, (Part.NOW, Part.DELAYED))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("parts", [(Part.NOW,), (Part.DELAYED,), (Part.NOW, Part.DELAYED)])
@pytest.mark.parametrize("units, micro_batches", [(1, 1), (1, 3), (2, 1), (5, 4)])
def test_the_named_schedules_pass(name, parts, units, micro_batches):
  check_schedule(SCHEDULES[name], Work(units, micro_batches, parts))


def without(*gone):
  return lambda order: [c for c in order if c not in gone]


def moved(one, before):
  def change(order):
    rest = [c for c in order if c != one]
    at = rest.index(before)
    return [*rest[:at], one, *rest[at:]]

  return change


FAULTS = {
  "backward is missing": (
    without(backward(1, 1)),
    r"update\(unit 1, now part\) of iteration 0 .*backward of micro-batch 1: .*not complete",
  ),
  "backward and update are missing": (
    without(backward(0, 1), update(0)),
    r"backward\(unit 0, micro-batch 1\) of iteration 0 is missing",
  ),
  "forward is missing": (without(forward(1, 0)), r"backward\(unit 2, micro-batch 0\).*no input"),
  "update is missing": (without(update(1)), r"update\(unit 1\) .*is missing"),
  "update before its gradients": (
    moved(update(1), backward(1, 0)),
    r"update\(unit 1, now part\).*micro-batch 0: its gradients are not complete",
  ),
  "backward after its unit's update": (
    lambda order: [*without(backward(0, 1), update(0))(order), update(0), backward(0, 1)],
    r"update\(unit 0, now part\).*not complete",
  ),
  "forward twice": (lambda order: [forward(0, 0), *order], r"forward\(unit 0, .* 0\).*twice"),
  "backward twice": (lambda order: [*order, backward(0, 0)], r"backward\(unit 0.*too new"),
  "update twice": (lambda order: [*order, update(2)], r"update\(unit 2, now part\).*twice"),
  "backward before the next unit's": (
    moved(backward(0, 1), backward(1, 1)),
    r"backward\(unit 0, micro-batch 1\).*no gradient yet",
  ),
  "delayed update left out": (
    without(update(1, Part.DELAYED)),
    r"forward\(unit 1, .*\) of iteration 1 comes before the delayed update",
  ),
  "forward before the delayed update": (
    lambda order: (
      [c for c in order if c.part is not Part.DELAYED]
      + [c for c in order if c.part is Part.DELAYED]
    ),
    r"forward\(unit 0, micro-batch 0\) of iteration 1 .*delayed",
  ),
  "the resident parameters": (
    lambda order: [*order, update(RESIDENT_UNIT)],
    r"update\(resident.* updated once, of themselves",
  ),
  "forward of the resident parameters": (
    lambda order: [forward(RESIDENT_UNIT, 0), *order],
    r"forward\(resident.* updated once, of themselves",
  ),
  "a schedule that fails": (lambda order: order[1000], "fails with IndexError"),
  "no such unit": (lambda order: [*order, update(3)], "units 0 to 2"),
  "no such micro-batch": (lambda order: [forward(0, 2), *order], "micro-batches 0 to 1"),
  "the last unit's forward": (lambda order: [*order[:6], forward(2, 0)], "no forward of its own"),
  "nonsense": (lambda order: ["forward"], r"fails with \w+: .* has to yield forward"),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_named(change, message):
  with pytest.raises(ScheduleError, match=message):
    check_schedule(lambda work: change(list(SCHEDULES["vertical"](work))), WORK)


def test_a_schedule_from_outside_the_tree(tmp_path, monkeypatch):
  (tmp_path / "my_module.py").write_text(
    "from schedules.vertical import vertical\n"
    "def my_schedule(work):\n  yield from vertical(work)\n"
    "number = 3\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  found = registry.find("my_module.my_schedule")
  check_schedule(found, WORK)
  pending = dataclasses.replace(WORK, pending=True)
  assert sum(c.action is Action.UPDATE for c in found(pending)) == 6


@pytest.mark.parametrize(
  "name, message",
  [
    ("diagonal", "unknown: take one of in_memory"),
    ("no_such_module.order", "cannot be imported"),
    ("schedules.vertical.no_such_name", "cannot be imported"),
    ("schedules.steps.RESIDENT_UNIT", "no function"),
  ],
)
def test_a_schedule_that_is_not_there(name, message):
  with pytest.raises(ValueError, match=message):
    registry.find(name)
