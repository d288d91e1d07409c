"""Chooses homes and rings for a schedule under memory budgets.

There are a few structures (`candidates`), and for each of them a linear program says which share of
every vector stays in host memory. The fastest one wins.
"""

import bisect
import dataclasses
import math

from schedules.candidates import (
  Budgets,
  count_of,
  on_device,
  on_host,
  smallest_structure,
)
from schedules.moves import reaches_ssd
from schedules.pools import CUT, PAGE, Pools, Sizes, cut
from schedules.registry import Schedule
from schedules.shares import Case, Solution, solve
from schedules.simulate import Profile, Shared
from schedules.steps import DEVICE_QUEUES, SSD_QUEUES, Kind, Part, Queue, Tier, Work
from schedules.structure import BOUNDARIES, moves

_DEPTHS = (3, 2, 1)  # of the host's rings of units; with one, reads, updates and writes take turns
_SHALLOWER = 0.9  # rings with less room to read ahead have to save a tenth,
_MANY_UNITS = 20  # which the room of one unit among so many cannot
# For a machine that nobody has measured: all transfers add up, and a byte on the SSD costs as much
# as eight on the device's link.
UNMEASURED = Profile(
  *(0.0, 0.0, 0.0),
  {
    Queue.SSD_READ: 1.0,
    Queue.SSD_WRITE: 1.0,
    Queue.HOST_TO_DEVICE: 8.0,
    Queue.DEVICE_TO_HOST: 8.0,
    Queue.HOST_UPDATE: float("inf"),
  },
  (Shared("transfers", 1.0, dict.fromkeys(Queue, 1.0)),),
)


def smallest(sizes: Sizes, work: Work, master_is_parameter: bool, depth: int = 3) -> Pools:
  """Everything on SSD; host rings at most `depth` deep."""
  vectors = {kind: cut(sizes.elements, 0.0) for kind in CUT}
  return smallest_structure(work, master_is_parameter, depth).pools(work, sizes, vectors)


def place(
  schedule: Schedule,
  work: Work,
  sizes: Sizes,
  budgets: Budgets,
  master_is_parameter: bool = True,
  device_reserved: int = 0,
  profile: Profile = UNMEASURED,
) -> Pools:
  """The fastest placement on a machine under the budgets.

  `device_reserved` bytes of the device's budget are taken by the compiled programs.

  Raises:
    ValueError: not even one unit fits, or the delayed gradients do not; says which tier lacks how
      much, and the flag.
  """
  check_room(work, sizes, budgets, master_is_parameter, device_reserved)
  room = without(budgets, device_reserved)
  given = (schedule, work, sizes, room, master_is_parameter, profile)
  best = fastest(*given, sizes.delayed)
  if best is None:
    raise ValueError(nothing_fits(*given))
  return rounded(best, room)


def without(budgets: Budgets, device_reserved: int) -> Budgets:
  """The budgets less what the compiled programs take."""
  limit = budgets.get(Tier.DEVICE)
  return budgets if limit is None else {**budgets, Tier.DEVICE: limit - device_reserved}


def check_room(
  work: Work,
  sizes: Sizes,
  budgets: Budgets,
  master_is_parameter: bool = True,
  device_reserved: int = 0,
) -> None:
  """Raises:
  ValueError: not even one unit and what it needs fit on a tier.
  """
  peaks = smallest(sizes, work, master_is_parameter, depth=1).peak_bytes(work)
  peaks[Tier.DEVICE] += device_reserved
  for tier in (Tier.DEVICE, Tier.HOST):
    limit = budgets.get(tier)
    if limit is not None and peaks[tier] > limit:
      resident = sizes.whole[Kind.RESIDENT] + 2 * sizes.whole[Kind.RESIDENT_GRADIENTS]
      why = (
        f" (embedding and head alone take {resident})"
        if tier is Tier.DEVICE and resident > limit
        else ""
      )
      raise ValueError(
        f"--{tier}_memory_budget={limit} is too small: a unit and what it needs take "
        f"{peaks[tier]} bytes of {tier} memory{why}; raise the budget, or take smaller or fewer "
        "micro-batches."
      )


def fastest(
  schedule: Schedule,
  work: Work,
  sizes: Sizes,
  room: Budgets,
  master_is_parameter: bool,
  profile: Profile,
  delayed: float | None,
) -> tuple[Case, Solution] | None:
  """The best structure and its shares; deeper host rings are preferred unless a shallower one saves
  a tenth, and rings of one are the last resort. None where nothing fits.

  `delayed` is the delayed fraction, or None where it is to be chosen.
  """
  best: tuple[Case, Solution] | None = None
  deepest = smallest_structure(work, master_is_parameter, _DEPTHS[0])
  start_of_all = on_device(schedule, work, sizes, room, deepest)
  for depth in _DEPTHS:
    if best is not None and (depth == 1 or work.units > _MANY_UNITS):
      break
    start = start_of_all
    for tier, kind, ring in smallest_structure(work, master_is_parameter, depth).rings:
      start = start.with_ring(tier, kind, ring) if tier is Tier.HOST else start
    for structure, spills in on_host(schedule, work, sizes, room, start):
      case = Case(
        *(moves(schedule, work, structure), structure, work, sizes, room, profile, spills)
      )
      found = _whole_spills(schedule, case, delayed)
      if found is not None:
        shallower = best is not None and depth_of(found[0]) < depth_of(best[0])
        if best is None or found[1].cost < best[1].cost * (_SHALLOWER if shallower else 1 - 1e-9):
          best = found
  return best


def depth_of(case: Case) -> int:
  return case.structure.ring(Tier.HOST, Kind.STATES, case.work)


def _whole_spills(
  schedule: Schedule, case: Case, delayed: float | None
) -> tuple[Case, Solution] | None:
  """Solves, with the micro-batches that spill rounded up to a whole number."""
  solution = solve(case, delayed)
  if solution is None or not case.spills:
    return None if solution is None else (case, solution)
  spilled = int(-(-(solution.spilled - 1e-6) // 1))
  if spilled == 0:
    return None  # another structure has it
  everything = spilled >= case.work.micro_batches
  home = (Tier.SSD, 0) if everything else (Tier.HOST, spilled)
  structure = case.structure.with_home(Kind.BOUNDARY, *home)
  exact = moves(schedule, case.work, structure)
  case = dataclasses.replace(case, moves=exact, structure=structure, spills=False)
  solution = solve(case, delayed)
  return None if solution is None else (case, solution)


def rounded(best: tuple[Case, Solution], room: Budgets) -> Pools:
  """Pools of a solution, its shares cut to whole pages: never over the budgets.

  What turns out to leave the device but never to go to SSD is at home in host memory if there is
  room for it.
  """
  case, solution = best
  pools = _cut(case, solution, 1e-6)
  if not _fits(pools, case.work, room):
    pools = _cut(case, solution, 0.0)
  for kind in BOUNDARIES:
    leaves = count_of(case.moves, kind, DEVICE_QUEUES)
    if leaves and not count_of(case.moves, kind, SSD_QUEUES):
      homes = {**pools.homes, kind: Tier.HOST}
      at_home = dataclasses.replace(pools, homes=homes)
      if pools.homes[kind] is Tier.SSD and not pools.spilled and _fits(at_home, case.work, room):
        pools = at_home
  return pools


def _cut(case: Case, solution: Solution, slack: float) -> Pools:
  vectors = {}
  for kind in CUT:
    shares = {}
    for part, count in case.sizes.elements.items():
      pages = math.floor(solution.on_host[kind][part] * count / PAGE + slack)
      whole = pages * PAGE >= count or solution.on_host[kind][part] > 1 - 1e-9
      shares[part] = 1.0 if whole else (pages + 0.5) * PAGE / count
    vectors[kind] = cut(case.sizes.elements, shares)
  return case.structure.pools(case.work, case.sizes, vectors, reaches_ssd(case.moves))


def _fits(pools: Pools, work: Work, room: Budgets) -> bool:
  peaks = pools.peak_bytes(work)
  return all(limit is None or peaks[tier] <= limit for tier, limit in room.items())


def nothing_fits(
  schedule: Schedule,
  work: Work,
  sizes: Sizes,
  room: Budgets,
  master_is_parameter: bool,
  profile: Profile,
) -> str:
  """The sentence for vectors that find no room, though a unit and what it needs would: if all of
  them do but for the delayed gradients, the largest delayed fraction with which they do."""

  def fits(hundredths: int) -> bool:
    cut = sizes.delaying(hundredths / 100)
    other = dataclasses.replace(work, parts=cut.parts)
    given = (schedule, other, cut, room, master_is_parameter, profile)
    return fastest(*given, cut.delayed) is not None

  there = lambda tier: "any number" if room.get(tier) is None else str(room[tier])
  for_them = f"for which there are {there(Tier.HOST)} of host memory and {there(Tier.SSD)} on SSD: "
  mend = "raise --host_memory_budget, or name a --store on a larger disk."
  if sizes.delayed and fits(0):
    waiting = work.units * sizes.widths[Kind.GRADIENTS] * sizes.elements[Part.DELAYED]
    most = bisect.bisect_left(range(1, 100), True, key=lambda n: not fits(n)) / 100
    return (
      f"--delayed_fraction={sizes.delayed:.2g} does not fit: {waiting} bytes of gradients would "
      f"wait for their update beside all else, {for_them}take at most --delayed_fraction={most:g}, "
      f"{mend}"
    )
  whole = work.units * sum(sizes.bytes(kind) for kind in CUT)
  return f"No placement fits: parameters, states and gradients take {whole} bytes, {for_them}{mend}"
