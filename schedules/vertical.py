"""The vertical order (GreedySnake, arXiv 2512.17570): all micro-batches of a unit, then the next.

A unit's parameters are needed once per pass however many micro-batches there are. Micro-batches
ascend in even units and descend in odd ones, so that two consecutive units share the micro-batch at
the turn and its activation never leaves the device.
"""

from collections.abc import Iterator

from schedules.steps import Computation, Part, Work, backward, forward, update


def snake(unit: int, micro_batches: int) -> range:
  """The order in which a unit takes its micro-batches, and sums their gradients."""
  ascending = range(micro_batches)
  return ascending if unit % 2 == 0 else ascending[::-1]


def vertical(work: Work) -> Iterator[Computation]:
  for u in range(work.units):
    if work.pending:
      yield update(u, Part.DELAYED)
    if u < work.last:
      for m in snake(u, work.micro_batches):
        yield forward(u, m)
  for u in reversed(range(work.units)):
    for m in snake(u, work.micro_batches):
      yield backward(u, m)
    if Part.NOW in work.parts:
      yield update(u)
