"""Chooses homes and rings for a schedule under memory budgets.

Everything starts on SSD; then one kind after another moves up wherever the budgets allow it and the
derived list moves fewer bytes for it. That is tried behind rings of several depths, and the
placement that moves the fewest bytes wins; of equals, the one with the deepest rings.
"""

import dataclasses
from collections.abc import Callable, Iterator

from schedules.iterations import iterations
from schedules.pools import CUT, Pools, Sizes, cut
from schedules.registry import Schedule
from schedules.residency import derive
from schedules.steps import Kind, Queue, Tier, Work
from schedules.traffic import count, totals

Budgets = dict[Tier, int | None]  # bytes; None where there is no limit

_ACTIVATIONS = (Kind.BOUNDARY, Kind.BOUNDARY_GRADIENT)
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
_DEPTHS = (3, 2, 1)  # of the host's rings of units
_SSD_WEIGHT = 8  # a byte on the SSD costs about as much as this many on the device's link


def smallest(sizes: Sizes, work: Work, master_is_parameter: bool, depth: int = 3) -> Pools:
  """Everything on SSD; host rings at most `depth` deep."""
  rings = {(Tier.DEVICE, kind): size for kind, size in _DEVICE_RINGS.items()}
  rings |= {(Tier.HOST, kind): min(size, depth + 1) for kind, size in _HOST_RINGS.items()}
  rings |= {(Tier.HOST, k): min(depth, work.units) for k in (Kind.PARAMETERS, Kind.STATES)}
  vectors = {kind: cut(sizes.elements, 0.0) for kind in CUT}
  homes: dict[Kind, Tier] = dict.fromkeys(_ACTIVATIONS, Tier.SSD)
  return Pools(sizes, vectors, homes, rings, 0, master_is_parameter)


def place(
  schedule: Schedule,
  work: Work,
  sizes: Sizes,
  budgets: Budgets,
  master_is_parameter: bool = True,
  device_reserved: int = 0,
) -> Pools:
  """The placement that moves the fewest bytes, as far as one pass over the kinds finds it.

  `device_reserved` bytes of the device's budget are taken by the largest compiled program.

  Raises:
    ValueError: not even one unit fits; says which tier lacks how much, and the flag.
  """
  room = dict(budgets)
  if (limit := room.get(Tier.DEVICE)) is not None:
    room[Tier.DEVICE] = limit - device_reserved
  starts = [smallest(sizes, work, master_is_parameter, depth) for depth in _DEPTHS]
  fitting = [pools for pools in starts if not _lacking(pools, work, room)]
  if not fitting:
    tier, needed = _lacking(starts[-1], work, room)[0]
    needed += device_reserved if tier is Tier.DEVICE else 0
    raise ValueError(
      f"--{tier}_memory_budget={budgets[tier]} is too small: a unit and what it needs take "
      f"{needed} bytes of {tier} memory; raise the budget, or take smaller or fewer micro-batches."
    )
  cost = lambda pools: _cost(schedule, work, pools)
  return min((_climb(pools, cost, work, room) for pools in fitting), key=cost)


def _climb(pools: Pools, cost: Callable[[Pools], int], work: Work, budgets: Budgets) -> Pools:
  """Raises one kind's home after another, where that fits and saves bytes."""
  lowest = cost(pools)
  for kind, tier in _moves():
    candidates = _raised(pools, kind, tier, work)
    fitting = (c for c in candidates if not _lacking(c, work, budgets))
    candidate = next(fitting, None)
    if candidate is not None and (cheaper := cost(candidate)) < lowest:
      pools, lowest = candidate, cheaper
  return pools


def _lacking(pools: Pools, work: Work, budgets: Budgets) -> list[tuple[Tier, int]]:
  peaks = pools.peak_bytes(work)
  return [(t, peaks[t]) for t, limit in budgets.items() if limit is not None and peaks[t] > limit]


def _moves() -> Iterator[tuple[Kind, Tier]]:
  """What is read most often for its size comes first."""
  for kind in (*_ACTIVATIONS, Kind.GRADIENTS, Kind.PARAMETERS, Kind.STATES):
    yield kind, Tier.HOST
  for kind in (*_ACTIVATIONS, Kind.GRADIENTS, Kind.PARAMETERS):
    yield kind, Tier.DEVICE


def _raised(pools: Pools, kind: Kind, tier: Tier, work: Work) -> Iterator[Pools]:
  """Candidates with a kind's home raised, the most generous first."""
  if kind in CUT:
    # They stay at home in host memory, where updates are; the device gets room for all of them.
    vectors = {**pools.vectors, kind: cut(pools.sizes.elements, 1.0)}
    rings = {**pools.rings, (tier, kind): work.units} if tier is Tier.DEVICE else pools.rings
    yield dataclasses.replace(pools, vectors=vectors, rings=rings)
    return
  homes = {**pools.homes, kind: tier}
  yield dataclasses.replace(
    pools, homes=homes, spilled=0 if kind is Kind.BOUNDARY else pools.spilled
  )
  if kind is Kind.BOUNDARY and tier is Tier.HOST:
    for spilled in range(1, work.micro_batches):
      yield dataclasses.replace(pools, homes=homes, spilled=spilled)


def _cost(schedule: Schedule, work: Work, pools: Pools) -> int:
  """Bytes of a steady iteration, those on SSD weighted."""
  steps = derive(iterations(schedule, work, 0, 3), work, pools)
  moved = totals(count((s for s in steps if s.iteration == 1), pools))
  ssd = moved[Queue.SSD_READ] + moved[Queue.SSD_WRITE]
  return _SSD_WEIGHT * ssd + moved[Queue.HOST_TO_DEVICE] + moved[Queue.DEVICE_TO_HOST]
