"""The reference orders: nothing needs to move, and gradients are summed in a chosen order.

Each unit's gradients are summed in the snake's order (`in_memory`), to be held against `vertical`,
or in ascending order (`in_memory_ascending`), to be held against `horizontal`: bit for bit.
"""

from collections.abc import Callable, Iterator

from schedules.steps import Computation, Part, Work, backward, forward, update
from schedules.vertical import snake


def in_memory(work: Work, order: Callable[[int, int], range] = snake) -> Iterator[Computation]:
  if work.pending:
    for u in range(work.units):
      yield update(u, Part.DELAYED)
  for m in range(work.micro_batches):
    for u in range(work.last):
      yield forward(u, m)
  for u in reversed(range(work.units)):
    for m in order(u, work.micro_batches):
      yield backward(u, m)
  if Part.NOW in work.parts:
    for u in range(work.units):
      yield update(u)


def in_memory_ascending(work: Work) -> Iterator[Computation]:
  return in_memory(work, order=lambda unit, micro_batches: range(micro_batches))
