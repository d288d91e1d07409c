"""Holds an order of computations against the rules that make training right.

A schedule from anywhere is checked before it runs. The first rule that it breaks is named together
with the computation that breaks it.
"""

from collections import defaultdict
from collections.abc import Iterable

from schedules.iterations import iterations
from schedules.registry import Schedule
from schedules.steps import RESIDENT_UNIT, Action, Computation, Part, Work

_ITERATIONS = 3  # one with nothing pending, one in the middle, one that ends in a flush


class ScheduleError(ValueError):
  """An order of computations, or a derived list, that would train wrongly."""


def check_schedule(schedule: Schedule, work: Work) -> None:
  """Checks all the orders that a schedule yields for `work`.

  A schedule is a function of `Work` alone, so that three iterations show all of them.

  Raises:
    ScheduleError: names the computation and the rule that it breaks.
  """
  try:
    batches = list(iterations(schedule, work, 0, _ITERATIONS))
    check_order(batches, work)
  except ScheduleError:
    raise
  except Exception as error:  # the schedule may be anybody's code
    raise ScheduleError(
      f"The schedule fails with {type(error).__name__}: {error}. It has to yield forward(u, m), "
      "backward(u, m) and update(u, part) of schedules.steps."
    ) from error


def check_order(batches: Iterable[list[Computation]], work: Work) -> None:
  """Checks computations of consecutive iterations; see `check_schedule`."""
  order = _Order(work)
  for batch in batches:
    for computation in batch:
      order.take(computation)
    order.end_iteration(batch[-1].iteration if batch else 0)


class _Order:
  def __init__(self, work: Work):
    self._work = work
    self._forward: set[tuple[int, int]] = set()
    self._backward: dict[int, set[int]] = defaultdict(set)
    self._updated: set[tuple[int, Part]] = set()
    self._resident_updated = False
    self._pending: set[int] = set()  # units whose delayed part still waits for its update

  def take(self, c: Computation) -> None:
    if c.unit == RESIDENT_UNIT:
      self._take_resident(c)
      return
    self._within_range(c)
    if c.action is Action.UPDATE:
      self._take_update(c)
      return
    self._parameters_are_current(c)
    (self._take_forward if c.action is Action.FORWARD else self._take_backward)(c)

  def end_iteration(self, iteration: int) -> None:
    """Everything that an iteration owes has been done; what it delays is pending."""
    work = self._work
    for u in range(work.units):
      for m in range(work.micro_batches):
        if u < work.last and (u, m) not in self._forward:
          raise ScheduleError(
            f"forward(unit {u}, micro-batch {m}) of iteration {iteration} is missing."
          )
        if m not in self._backward[u]:
          raise ScheduleError(
            f"backward(unit {u}, micro-batch {m}) of iteration {iteration} is missing."
          )
      if Part.NOW in work.parts and (u, Part.NOW) not in self._updated:
        raise ScheduleError(f"update(unit {u}) of iteration {iteration} is missing.")
    if Part.DELAYED in work.parts:
      self._pending = {u for u in range(work.units) if (u, Part.DELAYED) not in self._updated}
    self._resident_updated = False
    self._forward.clear()
    self._backward.clear()
    self._updated.clear()

  def _take_resident(self, c: Computation) -> None:
    """`iterations` appends the one update; a schedule has no part in it."""
    if c.action is not Action.UPDATE or self._resident_updated:
      raise ScheduleError(f"{c}: the resident parameters are updated once, of themselves.")
    self._resident_updated = True

  def _within_range(self, c: Computation) -> None:
    work = self._work
    if not 0 <= c.unit < work.units:
      raise ScheduleError(f"{c}: there are units 0 to {work.last}.")
    if c.action is Action.UPDATE:
      if c.part not in work.parts:
        raise ScheduleError(f"{c}: the parts are {', '.join(work.parts)}.")
    elif c.micro_batch is None or not 0 <= c.micro_batch < work.micro_batches:
      raise ScheduleError(f"{c}: there are micro-batches 0 to {work.micro_batches - 1}.")

  def _parameters_are_current(self, c: Computation) -> None:
    if c.unit in self._pending:
      raise ScheduleError(f"{c} comes before the delayed update of its unit's parameters.")
    if (c.unit, Part.NOW) in self._updated:
      raise ScheduleError(f"{c} comes after the update of its unit: its parameters are too new.")

  def _take_forward(self, c: Computation) -> None:
    u, m = c.unit, c.micro_batch
    assert m is not None
    if u == self._work.last:
      raise ScheduleError(f"{c}: the last unit has no forward of its own, backward does it all.")
    if (u, m) in self._forward:
      raise ScheduleError(f"{c} comes twice.")
    self._input_exists(c)
    self._forward.add((u, m))

  def _take_backward(self, c: Computation) -> None:
    u, m = c.unit, c.micro_batch
    assert m is not None
    if m in self._backward[u]:
      raise ScheduleError(f"{c} comes twice.")
    self._input_exists(c)
    if u < self._work.last and m not in self._backward[u + 1]:
      raise ScheduleError(f"{c} comes before the backward of unit {u + 1}: it has no gradient yet.")
    self._backward[u].add(m)

  def _input_exists(self, c: Computation) -> None:
    if c.unit > 0 and (c.unit - 1, c.micro_batch) not in self._forward:
      raise ScheduleError(
        f"{c} comes before the forward of unit {c.unit - 1}: it has no input yet."
      )

  def _take_update(self, c: Computation) -> None:
    if c.part is Part.DELAYED and c.unit in self._pending:
      self._pending.remove(c.unit)
      return
    if (c.unit, c.part) in self._updated:
      raise ScheduleError(f"{c} comes twice.")
    missing = set(range(self._work.micro_batches)) - self._backward[c.unit]
    if missing:
      raise ScheduleError(
        f"{c} comes before the backward of micro-batch {min(missing)}: its gradients are not "
        "complete."
      )
    self._updated.add((c.unit, c.part))
