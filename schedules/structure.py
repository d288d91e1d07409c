"""All of a placement but its lengths, and how often it lets each slice move.

The counts come from derived lists, for any schedule. Beyond small edges all of them are bilinear in
units and micro-batches, linear in the device's ring of parameters and in the micro-batches that
spill. So a few small lists tell the counts of a large one. One list more checks that; where it
disagrees, the large list itself is derived.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Container, Mapping
from typing import NamedTuple

from schedules.moves import Move, count_moves
from schedules.pools import CUT, PAGE, Pools, Sizes, cut, object_count
from schedules.registry import Schedule
from schedules.steps import SSD_QUEUES, Kind, Part, Slice, Tier, Work

BOUNDARIES = (Kind.BOUNDARY, Kind.BOUNDARY_GRADIENT)
_HOMES = (Tier.HOST, Tier.SSD)
_EDGE = 5  # beyond this a ring of parameters and the spilled micro-batches count linearly
_UNITS = 10  # the smaller of the small lists' units, or one more: counts depend on their parity
_MICRO_BATCHES = {_HOMES: 2, _HOMES[:1]: 7}  # what unit kinds, and what boundaries need
_GROUPS = {CUT: _HOMES, BOUNDARIES[:1]: _HOMES[:1], BOUNDARIES[1:]: _HOMES[:1]}


class Depth(NamedTuple):
  """A ring's buffers: constant + per_unit * units + per_micro_batch * micro_batches."""

  constant: int
  per_unit: int = 0
  per_micro_batch: int = 0

  def at(self, work: Work) -> int:
    return self.constant + self.per_unit * work.units + self.per_micro_batch * work.micro_batches


@dataclasses.dataclass(frozen=True)
class Structure:
  """Rings, and the homes of what is not cut.

  Attributes:
    rings: (tier, kind, depth) of each.
    boundaries: home of the boundaries and of their gradients.
    spilled: see `Pools`.
    streamed: the (kind, part) that have a slice on SSD, or None for all of them.
  """

  rings: tuple[tuple[Tier, Kind, Depth], ...]
  boundaries: tuple[Tier, Tier] = (Tier.SSD, Tier.SSD)
  spilled: int = 0
  master_is_parameter: bool = True
  streamed: frozenset[tuple[Kind, Part]] | None = None

  def depth(self, tier: Tier, kind: Kind) -> Depth:
    return next((d for t, k, d in self.rings if (t, k) == (tier, kind)), Depth(0))

  def home(self, kind: Kind) -> Tier:
    return self.boundaries[BOUNDARIES.index(kind)]

  def with_ring(self, tier: Tier, kind: Kind, depth: Depth) -> "Structure":
    others = tuple(ring for ring in self.rings if ring[:2] != (tier, kind))
    return dataclasses.replace(self, rings=(*others, (tier, kind, depth)))

  def with_home(self, kind: Kind, home: Tier, spilled: int = 0) -> "Structure":
    pair = tuple(home if k is kind else self.home(k) for k in BOUNDARIES)
    spilled = spilled if kind is Kind.BOUNDARY else self.spilled
    return dataclasses.replace(self, boundaries=pair, spilled=spilled)

  def streaming(self, pools: Pools) -> "Structure":
    """The same with slices on SSD where the pools have them. Slices of one vector pass through one
    buffer, so that which there are can change how often they come by, though not how long they are.
    """
    there = ((kind, piece) for kind, vector in pools.vectors.items() for piece in vector)
    streamed = frozenset((kind, piece.part) for kind, piece in there if piece.home is Tier.SSD)
    homes = tuple(pools.homes[kind] for kind in BOUNDARIES)
    return dataclasses.replace(self, streamed=streamed, boundaries=homes, spilled=pools.spilled)

  def ring(self, tier: Tier, kind: Kind, work: Work) -> int:
    """Buffers of a ring: never more than there are objects."""
    return min(self.depth(tier, kind).at(work), object_count(kind, work))

  def whole_bytes(
    self, work: Work, sizes: Sizes, reached: Container[tuple[Kind, Part]] | None = None
  ) -> dict[Tier, int]:
    """Bytes of the kinds that are not cut; `reached` are the (kind, part) that get to the SSD, all
    of them by default."""
    return self.pools(work, sizes, {kind: {} for kind in CUT}, reached).peak_bytes(work)

  def pools(
    self,
    work: Work,
    sizes: Sizes,
    vectors: Mapping[Kind, Mapping[Slice, int]],
    reached: Container[tuple[Kind, Part]] | None = None,
  ) -> Pools:
    """The pools of vectors that are cut so; `reached` as in `whole_bytes`."""
    rings = {(tier, kind): self.ring(tier, kind, work) for tier, kind, _ in self.rings}
    homes: dict[Kind, Tier] = {kind: self.home(kind) for kind in BOUNDARIES}
    passing = [(Kind.GRADIENTS, part) for part in work.parts]
    passing += [(kind, Part.WHOLE) for kind in BOUNDARIES]
    above = frozenset(at for at in passing if reached is not None and at not in reached)
    return Pools(sizes, vectors, homes, rings, self.spilled, self.master_is_parameter, above)


def moves(schedule: Schedule, work: Work, structure: Structure) -> Counter[Move]:
  """Steps of a steady iteration, in which each vector has a slice on every tier."""
  found: Counter[Move] = Counter()
  for group in _GROUPS:
    found += moves_of(schedule, work, structure, group[0])
  return found


def moves_of(schedule: Schedule, work: Work, structure: Structure, kind: Kind) -> Counter[Move]:
  """Those that touch a kind's group; the computations are with the vectors.

  Kinds do not touch each other's pools, so each group is counted where the others do not move.
  """
  group = next(group for group in _GROUPS if kind in group)
  if group is not CUT and Part.NOW in work.parts:  # how units are cut does not move boundaries
    work = dataclasses.replace(work, parts=(Part.NOW,))
  counted = _extended(schedule, work, _alone(structure, group), _GROUPS[group])
  ours = lambda what: what in group if isinstance(what, Kind) else group is CUT
  return Counter({move: n for move, n in counted.items() if ours(move.what)})


def _alone(structure: Structure, group: tuple[Kind, ...]) -> Structure:
  """What the group's counts depend on: all other kinds stay where they are."""
  streamed = structure.streamed if group is CUT else None
  out = Structure((), (Tier.DEVICE, Tier.DEVICE), 0, structure.master_is_parameter, streamed)
  for kind in (*CUT, *BOUNDARIES):
    for tier in (Tier.DEVICE, Tier.HOST):
      depth = structure.depth(tier, kind) if kind in group else Depth(0, per_unit=1)
      out = out.with_ring(tier, kind, depth)
  for kind in BOUNDARIES:
    if kind in group:
      out = dataclasses.replace(
        out.with_home(kind, structure.home(kind)), spilled=structure.spilled
      )
  return out


class _Axis(NamedTuple):
  """A number that the small lists vary: its two values there, and the true one."""

  low: int
  step: int
  true: int

  @property
  def corners(self) -> tuple[int, int]:
    return self.low, self.low + self.step

  def weights(self, value: int) -> dict[int, int]:
    """How much each corner counts at a value, on a straight line through both."""
    steps = (value - self.low) // self.step
    return {self.low: 1 - steps, self.low + self.step: steps}


def _extended(
  schedule: Schedule, work: Work, structure: Structure, homes: tuple[Tier, ...]
) -> Counter[Move]:
  """Counts at two values of each number that is large, extended along straight lines."""
  depth = structure.depth(Tier.DEVICE, Kind.PARAMETERS)
  if depth.at(work) > work.units - _EDGE:  # as good as all units: grows with them
    depth = Depth(depth.at(work) - work.units, per_unit=1)
    structure = structure.with_ring(Tier.DEVICE, Kind.PARAMETERS, depth)
  axes = {
    "units": _Axis(_UNITS + work.units % 2, 2, work.units),
    "micro_batches": _Axis(_MICRO_BATCHES[homes], 1, work.micro_batches),
    "depth": _Axis(_EDGE - 1, 1, depth.constant),
  }
  axes = {name: axis for name, axis in axes.items() if axis.true > axis.corners[1]}
  if "units" not in axes:
    axes.pop("depth", None)
  corners = {
    point: _at(schedule, work, structure, homes, dict(zip(axes, point, strict=True)))
    for point in itertools.product(*(axis.corners for axis in axes.values()))
  }
  beyond = {name: axis.low + 2 * axis.step for name, axis in axes.items()}
  if axes and _on_lines(corners, axes, beyond, work) != _at(
    schedule, work, structure, homes, beyond
  ):
    return _counted(schedule, work, structure, homes)
  return _on_lines(corners, axes, {}, work, structure.spilled)


def _at(
  schedule: Schedule,
  work: Work,
  structure: Structure,
  homes: tuple[Tier, ...],
  point: dict[str, int],
) -> Counter[Move]:
  """Counts with some numbers in the place of the true ones."""
  small = dataclasses.replace(
    work,
    units=point.get("units", work.units),
    micro_batches=point.get("micro_batches", work.micro_batches),
  )
  if "depth" in point:
    structure = structure.with_ring(Tier.DEVICE, Kind.PARAMETERS, Depth(point["depth"]))
  kept = min(work.micro_batches - structure.spilled, 2)
  if structure.spilled > _EDGE and "micro_batches" in point:
    structure = dataclasses.replace(structure, spilled=small.micro_batches - kept)
  return _counted(schedule, small, structure, homes)


def _on_lines(
  corners: dict[tuple[int, ...], Counter[Move]],
  axes: dict[str, _Axis],
  point: dict[str, int],
  work: Work,
  spilled: int = 0,
) -> Counter[Move]:
  """The counts at a point, by default the true one.

  Boundaries move to and from SSD as often as their number that spills says, whatever the number of
  micro-batches: the small lists keep two at home, or as many as the true one.
  """
  out: Counter[Move] = Counter()
  for corner, counts in corners.items():
    for move, n in counts.items():
      weight = 1
      for value, (name, axis) in zip(corner, axes.items(), strict=True):
        at = point.get(name, axis.true)
        if name == "micro_batches" and _EDGE < spilled < at and _is_spill(move):
          at = min(at, spilled + 2)
        weight *= axis.weights(at)[value]
      out[move] += weight * n
  return Counter({move: n for move, n in out.items() if n})


def _is_spill(move: Move) -> bool:
  return move.what in BOUNDARIES and move.queue in SSD_QUEUES


@functools.lru_cache(maxsize=4096)
def _counted(
  schedule: Schedule, work: Work, structure: Structure, homes: tuple[Tier, ...]
) -> Counter[Move]:
  """Counts from the derived list, of pools whose vectors have a page at each home."""
  elements = dict.fromkeys(work.parts, 2 * PAGE)

  def on_host(kind: Kind, part: Part) -> float:
    streams = structure.streamed is None or (kind, part) in structure.streamed
    return 0.5 if streams and Tier.SSD in homes else 1.0

  vectors = {
    kind: cut(elements, {part: on_host(kind, part) for part in work.parts}) for kind in CUT
  }
  ones = dict.fromkeys(Kind, 1)
  sizes = Sizes(dict.fromkeys(CUT, 1), elements, ones, ones)
  return count_moves(schedule, work, structure.pools(work, sizes, vectors))
