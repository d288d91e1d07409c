"""What each computation reads and writes, and where: the dataflow that all schedules share.

The backward that completes a unit's gradients adds their squares to the norm, the first unit's also
those of the resident parameters: from the last unit to the first in every order, since a gradient
comes from the unit above. Updates of a whole step read the norm, and so wait for it.
"""

from collections import Counter

from schedules.pools import CUT, Pools
from schedules.steps import (
  RESIDENT_UNIT,
  WHOLE,
  Access,
  Action,
  Computation,
  Kind,
  Mode,
  Object,
  Queue,
  Tier,
  Work,
)

_NORM = Object(Kind.NORM, RESIDENT_UNIT)


def queue_of(c: Computation) -> Queue:
  """Updates run on the host, but for the resident parameters' own."""
  if c.action is Action.UPDATE and c.unit != RESIDENT_UNIT:
    return Queue.HOST_UPDATE
  return Queue.DEVICE


class Demands:
  """Turns a computation into its accesses; remembers which sums an iteration has begun."""

  def __init__(self, work: Work, pools: Pools):
    self._work = work
    self._master_is_parameter = pools.master_is_parameter
    self._slices = {
      (kind, parts): pools.slices(kind, parts)
      for kind in CUT
      for parts in {work.parts, *((part,) for part in work.parts)}
    }
    self._begun: set[Object] = set()
    self._summed: Counter[int] = Counter()  # micro-batches in each unit's gradients

  def of(self, c: Computation) -> tuple[Access, ...]:
    if c.action is Action.FORWARD:
      return self._forward(c.unit, c.micro_batch)
    if c.action is Action.BACKWARD:
      return self._backward(c.unit, c.micro_batch)
    return self._resident_update() if c.unit == RESIDENT_UNIT else self._update(c)

  def _forward(self, u: int, m: int | None) -> tuple[Access, ...]:
    reads = [self._parameters(u), self._input(u, m)]
    return (*reads, self._device(Object(Kind.BOUNDARY, u, m), Mode.WRITE))

  def _backward(self, u: int, m: int | None) -> tuple[Access, ...]:
    accesses = [self._parameters(u), self._input(u, m)]
    accesses.append(self._accumulate(Object(Kind.GRADIENTS, u)))
    if u < self._work.last:
      accesses.append(self._device(Object(Kind.BOUNDARY_GRADIENT, u, m), Mode.READ))
    if u > 0:
      accesses.append(self._device(Object(Kind.BOUNDARY_GRADIENT, u - 1, m), Mode.WRITE))
    if u == self._work.last:
      accesses.append(self._device(Object(Kind.RESIDENT, RESIDENT_UNIT), Mode.READ))
    if u in (0, self._work.last):
      accesses.append(self._accumulate(Object(Kind.RESIDENT_GRADIENTS, u)))
    self._summed[u] += 1
    if self._summed[u] == self._work.micro_batches:
      accesses += self._complete(u)
    return tuple(dict.fromkeys(accesses))

  def _complete(self, u: int) -> list[Access]:
    """A unit's gradients are the sum of all micro-batches: they are added to the norm."""
    del self._summed[u]
    accesses = [self._accumulate(_NORM)]
    if u == 0 < self._work.last:
      head = Object(Kind.RESIDENT_GRADIENTS, self._work.last)
      accesses.append(self._device(head, Mode.READ))
    return accesses

  def _update(self, c: Computation) -> tuple[Access, ...]:
    self._begun.discard(Object(Kind.GRADIENTS, c.unit))
    how = Mode.MODIFY if self._master_is_parameter else Mode.WRITE
    modes = {Kind.STATES: Mode.MODIFY, Kind.PARAMETERS: how, Kind.GRADIENTS: Mode.READ}
    norm = [self._device(_NORM, Mode.READ)] if self._work.whole_step else []
    vectors = (
      Access(Tier.HOST, Object(kind, c.unit), mode, self._slices[kind, (c.part,)])
      for kind, mode in modes.items()
    )
    return (*vectors, *norm)

  def _resident_update(self) -> tuple[Access, ...]:
    gradients = [Object(Kind.RESIDENT_GRADIENTS, u) for u in sorted({0, self._work.last})]
    self._begun.difference_update([*gradients, _NORM])
    return (
      self._device(Object(Kind.RESIDENT, RESIDENT_UNIT), Mode.MODIFY),
      *(self._device(item, Mode.READ) for item in (*gradients, _NORM)),
    )

  def _parameters(self, u: int) -> Access:
    return self._device(Object(Kind.PARAMETERS, u), Mode.READ)

  def _input(self, u: int, m: int | None) -> Access:
    """The first unit's input is the embedding of the tokens: it is recomputed, never stored."""
    if u == 0:
      return self._device(Object(Kind.RESIDENT, RESIDENT_UNIT), Mode.READ)
    return self._device(Object(Kind.BOUNDARY, u - 1, m), Mode.READ)

  def _accumulate(self, item: Object) -> Access:
    mode = Mode.MODIFY if item in self._begun else Mode.WRITE
    self._begun.add(item)
    return self._device(item, mode)

  def _device(self, item: Object, mode: Mode) -> Access:
    """The device holds objects whole."""
    slices = self._slices[item.kind, self._work.parts] if item.kind in CUT else (WHOLE,)
    return Access(Tier.DEVICE, item, mode, slices)
