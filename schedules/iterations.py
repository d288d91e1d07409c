"""From the order of one iteration to the lists of a whole run."""

import dataclasses
from collections.abc import Callable, Iterator

from schedules.registry import Schedule
from schedules.steps import RESIDENT_UNIT, Action, Computation, Part, Work, update


def iterations(
  schedule: Schedule,
  work: Work,
  first: int,
  count: int,
  stop: Callable[[], bool] = lambda: False,
) -> Iterator[list[Computation]]:
  """Yields the computations of iterations `first` to `first + count - 1`, a list each, numbered.

  The resident parameters are updated at the end of each; what the last iteration delays is flushed
  at its end. `work.pending` is ignored: nothing is pending before the first. Once `stop` says so no
  further iteration is listed, but a flush.
  """
  delays = Part.DELAYED in work.parts
  for i in range(count):
    if i and stop():
      if delays:
        yield flush(work, first + i - 1)
      return
    order = schedule(dataclasses.replace(work, pending=delays and i > 0))
    numbered = [dataclasses.replace(c, iteration=_iteration(c, first + i)) for c in order]
    numbered.append(dataclasses.replace(update(RESIDENT_UNIT), iteration=first + i))
    if delays and i == count - 1:
      numbered += flush(work, first + i)
    yield numbered


def flush(work: Work, iteration: int) -> list[Computation]:
  """The delayed updates of an iteration, without waiting for the next."""
  return [
    dataclasses.replace(update(u, Part.DELAYED), iteration=iteration) for u in range(work.units)
  ]


def _iteration(computation: Computation, current: int) -> int:
  """A delayed update applies the gradient of the iteration before the one it runs in."""
  delayed = computation.action is Action.UPDATE and computation.part is Part.DELAYED
  return current - 1 if delayed else current
