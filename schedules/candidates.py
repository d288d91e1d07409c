"""The structures that a placement chooses among.

The device's memory goes to what saves the most transfers for its size: boundary gradients first,
then boundaries, gradients, parameters. For the host there are a few structures: how deep the rings
are, and where boundaries are at home.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from schedules.moves import Move
from schedules.pools import CUT, Sizes
from schedules.registry import Schedule
from schedules.steps import DEVICE_QUEUES, SSD_QUEUES, Kind, Queue, Tier, Work
from schedules.structure import BOUNDARIES, Depth, Structure, moves_of

Budgets = Mapping[Tier, int | None]  # bytes; None where there is no limit

# Two buffers keep a transfer in flight beside a computation; boundaries are small and many.
_DEVICE_RINGS = {
  Kind.PARAMETERS: 2,
  Kind.GRADIENTS: 2,
  Kind.BOUNDARY: 4,
  Kind.BOUNDARY_GRADIENT: 4,
}
_HOST_RINGS = {  # those of parameters and states are as deep as is tried
  Kind.GRADIENTS: 2,
  Kind.BOUNDARY: 4,
  Kind.BOUNDARY_GRADIENT: 4,
}
_ALL_UNITS, _A_STAGE = Depth(0, per_unit=1), Depth(0, per_micro_batch=3)


def smallest_structure(work: Work, master_is_parameter: bool, depth: int) -> Structure:
  rings = [(Tier.DEVICE, kind, Depth(size)) for kind, size in _DEVICE_RINGS.items()]
  most = 2 if depth == 1 else 4
  rings += [(Tier.HOST, kind, Depth(min(size, most))) for kind, size in _HOST_RINGS.items()]
  rings += [(Tier.HOST, kind, Depth(depth)) for kind in (Kind.PARAMETERS, Kind.STATES)]
  return Structure(tuple(rings), master_is_parameter=master_is_parameter)


def on_device(
  schedule: Schedule, work: Work, sizes: Sizes, room: Budgets, structure: Structure
) -> Structure:
  """Raises what fits and saves transfers."""
  limit = room.get(Tier.DEVICE)
  for kind in (Kind.BOUNDARY_GRADIENT, Kind.BOUNDARY, Kind.GRADIENTS, Kind.PARAMETERS):
    for raised in _raised(kind, work, sizes, structure, limit):
      fits = limit is None or _device_bytes(raised, work, sizes) <= limit
      if fits and _saves(schedule, work, structure, raised, kind):
        structure = raised
        break
  return structure


def _saves(
  schedule: Schedule, work: Work, structure: Structure, raised: Structure, kind: Kind
) -> bool:
  """Whether more room on the device saves transfers: all of them where boundaries are concerned,
  whose rings are meant for exactly that."""
  if kind in BOUNDARIES and _leaves(schedule, work, raised, kind, DEVICE_QUEUES):
    return False  # few of them tell it sooner than all
  transfers = lambda s: count_of(moves_of(schedule, work, s, kind), kind, DEVICE_QUEUES)
  left = transfers(raised)
  return left < transfers(structure) and not (kind in BOUNDARIES and left)


def _raised(
  kind: Kind, work: Work, sizes: Sizes, structure: Structure, limit: int | None
) -> Iterator[Structure]:
  """More room for a kind on the device, the better first: the most generous, but for boundary
  gradients, of which no more are alive at a time than a stage and its neighbours have."""
  if kind in BOUNDARIES:
    at_home = structure.with_home(kind, Tier.DEVICE)
    if kind is Kind.BOUNDARY_GRADIENT:
      yield from (structure.with_ring(Tier.DEVICE, kind, _A_STAGE), at_home)
    else:
      yield from (at_home, structure.with_ring(Tier.DEVICE, kind, _ALL_UNITS))
    return
  yield structure.with_ring(Tier.DEVICE, kind, _ALL_UNITS)
  if kind is Kind.PARAMETERS and limit is not None:
    left = limit - _device_bytes(structure, work, sizes)
    ring = structure.ring(Tier.DEVICE, kind, work) + left // sizes.bytes(kind)
    if _DEVICE_RINGS[kind] < ring < work.units:
      yield structure.with_ring(Tier.DEVICE, kind, Depth(ring))


def _device_bytes(structure: Structure, work: Work, sizes: Sizes) -> int:
  rings = (structure.ring(Tier.DEVICE, kind, work) * sizes.bytes(kind) for kind in CUT)
  return structure.whole_bytes(work, sizes)[Tier.DEVICE] + sum(rings)


def count_of(counted: Mapping[Move, int], kind: Kind, queues: tuple[Queue, ...]) -> int:
  return sum(n for move, n in counted.items() if move.what is kind and move.queue in queues)


def on_host(
  schedule: Schedule, work: Work, sizes: Sizes, room: Budgets, structure: Structure
) -> Iterator[tuple[Structure, bool]]:
  """Structures with homes and host rings for boundaries; True where some are to spill."""
  limit = room.get(Tier.HOST)
  rings = sum(structure.ring(Tier.HOST, kind, work) * sizes.bytes(kind) for kind in CUT)

  def takes(placed: Structure) -> int:
    return placed.whole_bytes(work, sizes)[Tier.HOST]

  def is_ample(placed: Structure) -> bool:
    return limit is None or takes(placed) <= min(limit / 2, limit - rings)

  for gradients in _homes(schedule, work, structure, Kind.BOUNDARY_GRADIENT, _A_STAGE):
    for both in _homes(schedule, work, gradients, Kind.BOUNDARY, _ALL_UNITS):
      if limit is None or takes(both) <= limit:
        yield both, False
      if both.home(Kind.BOUNDARY) is Tier.HOST:
        reference = max(1, work.micro_batches - 2)
        yield both.with_home(Kind.BOUNDARY, Tier.HOST, reference), True
      elif is_ample(both):
        break
    if is_ample(gradients):
      break  # nothing is worth its room more than boundary gradients are


def _homes(
  schedule: Schedule, work: Work, structure: Structure, kind: Kind, ring: Depth
) -> Iterator[Structure]:
  """A home for a kind of boundary, the best first: the device or nowhere, a ring on the host that
  they never leave, the host, a small ring above the SSD."""
  on_ssd = structure.with_home(kind, Tier.SSD)
  deep = on_ssd.with_ring(Tier.HOST, kind, ring)
  if structure.home(kind) is Tier.DEVICE:
    yield structure
    return
  if not _leaves(schedule, work, structure, kind, DEVICE_QUEUES):
    yield on_ssd.with_ring(Tier.HOST, kind, Depth(0))
    return
  at_most = work.last * work.micro_batches
  if ring.at(work) < at_most and not _leaves(schedule, work, deep, kind, SSD_QUEUES):
    yield deep
  elif kind is Kind.BOUNDARY_GRADIENT:
    yield structure.with_home(kind, Tier.HOST)
  yield on_ssd if kind is Kind.BOUNDARY_GRADIENT else structure.with_home(kind, Tier.HOST)


def _leaves(
  schedule: Schedule, work: Work, structure: Structure, kind: Kind, queues: tuple[Queue, ...]
) -> bool:
  """Whether objects of a kind ever leave a tier's ring, tried on few of them."""
  deepest = max(_DEVICE_RINGS.values())  # fewer micro-batches would stay in it
  units, micro_batches = min(work.units, 8), min(work.micro_batches, deepest + 2)
  few = dataclasses.replace(work, units=units, micro_batches=micro_batches)
  return count_of(moves_of(schedule, few, structure, kind), kind, queues) > 0
