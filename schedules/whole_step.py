"""Whether an optimizer step can be decided on as a whole: clipped by the norm of all gradients, or
skipped.

It can where every update of an iteration comes after its every backward. Delayed updates always do;
others do in an order such as `horizontal`.
"""

import dataclasses

from schedules.iterations import iterations
from schedules.registry import Schedule
from schedules.steps import RESIDENT_UNIT, Action, Work


def with_whole_step(schedule: Schedule, work: Work) -> Work:
  """`work`, with `whole_step` as the schedule's order allows it.

  An iteration with nothing pending and one in the middle show all orders that a schedule has.
  """
  computations = [c for batch in iterations(schedule, work, 0, 2) for c in batch]
  last = {c.iteration: i for i, c in enumerate(computations) if c.action is Action.BACKWARD}
  updates = (
    (i, c)
    for i, c in enumerate(computations)
    if c.action is Action.UPDATE and c.unit != RESIDENT_UNIT
  )
  return dataclasses.replace(work, whole_step=all(i > last[c.iteration] for i, c in updates))
