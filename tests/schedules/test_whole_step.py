"""Whether a step can be decided on as a whole, and that its updates wait until it is."""

import dataclasses

import pytest

from schedules.check import ScheduleError
from schedules.iterations import iterations
from schedules.registry import SCHEDULES
from schedules.replay import Replay
from schedules.residency import derive
from schedules.steps import Action, Kind, Part, Queue, Tier, Work
from schedules.whole_step import with_whole_step

NOW, DELAYED, BOTH = (Part.NOW,), (Part.DELAYED,), (Part.NOW, Part.DELAYED)


def early(work):
  """Horizontal, but for one update that comes before the last backward."""
  order = list(SCHEDULES["horizontal"](work))
  last = max(i for i, c in enumerate(order) if c.action is Action.BACKWARD)
  return [*order[:last], *order[last + 1 :][-1:], order[last], *order[last + 1 : -1]]


@pytest.mark.parametrize(
  "schedule, parts, whole",
  [
    (SCHEDULES["vertical"], NOW, False),
    (SCHEDULES["vertical"], BOTH, False),
    (SCHEDULES["vertical"], DELAYED, True),
    (SCHEDULES["horizontal"], NOW, True),
    (SCHEDULES["horizontal"], BOTH, True),
    (SCHEDULES["in_memory"], BOTH, True),
    (early, NOW, False),
    (early, DELAYED, True),
  ],
)
def test_the_order_tells(schedule, parts, whole):
  assert with_whole_step(schedule, Work(3, 2, parts)).whole_step is whole


def derived(name, work, pools):
  return list(derive(iterations(SCHEDULES[name], work, 0, 3), work, pools))


@pytest.mark.parametrize("name, parts", [("vertical", DELAYED), ("horizontal", NOW)])
def test_updates_wait_for_the_norm_and_nothing_else_does(make_pools, name, parts):
  pools = make_pools(elements=dict.fromkeys(parts, 1))
  work = Work(4, 2, parts)
  free, whole = (
    derived(name, w, pools) for w in (work, dataclasses.replace(work, whole_step=True))
  )
  for one, other in zip(free, whole, strict=True):
    assert one.computation == other.computation and one.queue is other.queue
    gained = set(other.waits) - set(one.waits)
    if other.queue is not Queue.HOST_UPDATE:
      assert not gained or other.computation.action is Action.BACKWARD
      continue
    known = next(
      step.index
      for step in whole
      if step.iteration == other.iteration
      and step.computation is not None
      and (step.computation.action, step.computation.unit) == (Action.BACKWARD, 0)
      and step.accesses_to(Tier.DEVICE, Kind.NORM)
    )
    assert known in other.waits
  assert max(step.index for step in whole) == max(step.index for step in free)


def test_an_update_that_does_not_wait_for_the_norm_is_found(make_pools):
  work, pools = Work(3, 2, NOW, whole_step=True), make_pools()
  steps = derived("horizontal", work, pools)
  adds = [s.index for s in steps if s.accesses_to(Tier.DEVICE, Kind.NORM, writes=True)]
  update = next(s for s in steps if str(s).startswith("update(unit 2"))
  needed = {*update.waits} - {adds[2]}
  first = [s for s in steps if s.index < adds[2] or s.index in needed]
  with pytest.raises(ScheduleError, match=r"update\(unit 2, now part\).* finds norm"):
    Replay(work, pools).run([*first, update])


def test_a_step_that_is_not_whole_is_refused(make_pools):
  work = Work(3, 2, NOW, whole_step=True)
  with pytest.raises((ValueError, ScheduleError), match="norm"):
    Replay(work, make_pools()).run(derived("vertical", work, make_pools()))
