"""The horizontal order (ZeRO-Infinity, arXiv 2104.07857): all units for one micro-batch, then the
next; every update after the last backward."""

from collections.abc import Iterator

from schedules.steps import Computation, Part, Work, backward, forward, update


def horizontal(work: Work) -> Iterator[Computation]:
  if work.pending:
    for u in range(work.units):
      yield update(u, Part.DELAYED)
  for m in range(work.micro_batches):
    for u in range(work.last):
      yield forward(u, m)
    for u in reversed(range(work.units)):
      yield backward(u, m)
  if Part.NOW in work.parts:
    for u in range(work.units):
      yield update(u)
