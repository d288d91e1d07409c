"""Where objects live: a home for every slice, and rings of equal buffers that they pass through."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping

from schedules.steps import RESIDENT_UNIT, Kind, Object, Part, Queue, Slice, Tier, Work

PERSISTENT = (Kind.PARAMETERS, Kind.STATES)  # what outlives an iteration
CUT = (*PERSISTENT, Kind.GRADIENTS)  # flat vectors, cut into slices; updates read them on the host
PAGE = 2048  # elements: a disk page in bfloat16 and two in float32; slices begin and end at one
_DEPTH = {Tier.DEVICE: 0, Tier.HOST: 1, Tier.SSD: 2}
_BOUNDARIES = (Kind.BOUNDARY, Kind.BOUNDARY_GRADIENT)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Bytes and elements of one object of each kind, before anything is placed.

  Attributes:
    widths: bytes for each element of the kinds that are cut, all the optimizer's vectors together.
    elements: of each part of a unit's flat vector, padding included.
    payload: bytes that cross the device's link, which carries no padding.
    whole: bytes of the kinds that are not cut.
  """

  widths: Mapping[Kind, int]
  elements: Mapping[Part, int]
  payload: Mapping[Kind, int]
  whole: Mapping[Kind, int]

  def delaying(self, fraction: float) -> "Sizes":
    """The same at a delayed fraction, whose part ends at a whole page."""
    total = sum(self.elements.values())
    first = min(math.ceil(fraction * total / PAGE) * PAGE, total)
    parts = {Part.NOW: total - first, Part.DELAYED: first}
    return dataclasses.replace(self, elements={part: n for part, n in parts.items() if n})

  @property
  def parts(self) -> tuple[Part, ...]:
    return tuple(part for part in (Part.NOW, Part.DELAYED) if part in self.elements)

  @property
  def delayed(self) -> float:
    """The delayed fraction."""
    return self.elements.get(Part.DELAYED, 0) / sum(self.elements.values())

  @property
  def fraction(self) -> float:
    """The shortest decimal that `delaying` cuts the same parts for."""
    rounded = (math.floor(self.delayed * 10**n) / 10**n for n in range(1, 17))
    inside = self.delayed - PAGE / 2 / sum(self.elements.values())  # of the last page
    return next((f for f in rounded if self.delaying(f).elements == self.elements), inside)

  def bytes(self, kind: Kind) -> int:
    """Of one object, padding included."""
    if kind in CUT:
      return self.widths[kind] * sum(self.elements.values())
    return self.whole[kind]


def cut(elements: Mapping[Part, int], on_host: float | Mapping[Part, float]) -> dict[Slice, int]:
  """Slices of a vector of which a share has its home on the host, the rest on SSD.

  Host slices end at a whole page, rounded down. The slices on SSD lie side by side in the vector,
  between the host's, so that a host buffer through which they stream is one run of the vector.
  """
  kept, streamed = {}, {}
  for part, count in elements.items():
    share = on_host if isinstance(on_host, float | int) else on_host[part]
    kept[part] = count if share >= 1 else min(count, math.floor(share * count / PAGE) * PAGE)
    streamed[part] = count - kept[part]
  order = [
    (Slice(Part.DELAYED, Tier.HOST), kept),
    (Slice(Part.DELAYED, Tier.SSD), streamed),
    (Slice(Part.NOW, Tier.SSD), streamed),
    (Slice(Part.NOW, Tier.HOST), kept),
  ]
  return {s: counts[s.part] for s, counts in order if counts.get(s.part)}


@dataclasses.dataclass(frozen=True)
class Pools:
  """Homes and rings.

  An object at home has a buffer of its own. Below its home it never goes; on the tiers above it
  passes through the kind's ring, whose buffers are reused oldest first (`residency` says what makes
  one old). A host ring of a kind that is cut has buffers for its slices on SSD alone: the others
  have theirs at home.

  Attributes:
    vectors: elements of each slice of the kinds that are cut, alike for all units, in the vector's
      order; their homes are the host and the SSD.
    homes: of boundaries and their gradients.
    spilled: so many of the micro-batches keep their boundaries on SSD though the home is the host.
    master_is_parameter: the optimizer's master values are the parameters themselves (float32),
      which an update then has to read.
    stays_above: the (kind, part) that never reach the SSD, though it is the home of some of them:
      what nobody reads again is dropped, gradients that have been applied say.
  """

  sizes: Sizes
  vectors: Mapping[Kind, Mapping[Slice, int]]
  homes: Mapping[Kind, Tier]
  rings: Mapping[tuple[Tier, Kind], int]
  spilled: int = 0
  master_is_parameter: bool = True
  stays_above: frozenset[tuple[Kind, Part]] = frozenset()

  def __post_init__(self):
    for kind, vector in self.vectors.items():
      if any(piece.home not in (Tier.HOST, Tier.SSD) for piece in vector):
        raise ValueError(
          f"{kind} cannot be at home on the device, since updates run on the host: give the device "
          "a ring of as many buffers as there are units."
        )

  def slices(self, kind: Kind, parts: tuple[Part, ...]) -> tuple[Slice, ...]:
    """The slices of some parts of a kind that is cut."""
    return tuple(piece for piece in self.vectors[kind] if piece.part in parts)

  def home(self, item: Object, piece: Slice, work: Work) -> Tier:
    if piece.home is not None:
      return piece.home
    home = self.homes.get(item.kind, Tier.DEVICE)
    if item.kind in _BOUNDARIES and home is Tier.HOST and item.micro_batch is not None:
      return Tier.SSD if item.micro_batch >= work.micro_batches - self.spilled else home
    return home

  def home_slot(self, item: Object, tier: Tier, work: Work) -> int:
    """The buffer of an object at home on a tier; they are numbered after the ring's."""
    ring = self.rings.get((tier, item.kind), 0)
    if item.micro_batch is None:
      return ring + max(item.unit, 0)
    return ring + item.unit * work.micro_batches + item.micro_batch

  def bytes(self, kind: Kind, slices: Iterable[Slice]) -> int:
    """Of slices of one object, in a buffer or on SSD."""
    if kind not in CUT:
      return self.sizes.whole[kind]
    return self.sizes.widths[kind] * sum(self.vectors[kind][piece] for piece in slices)

  def moved(self, queue: Queue, kind: Kind, slices: Iterable[Slice]) -> int:
    """Bytes that a transfer of an object's slices moves; the device's link takes objects whole."""
    if queue in (Queue.SSD_READ, Queue.SSD_WRITE):
      return self.bytes(kind, slices)
    return self.sizes.payload[kind]

  def peak_bytes(self, work: Work) -> dict[Tier, int]:
    """Bytes of all buffers of a tier: known before anything runs, and never exceeded.

    On SSD: of what gets there.
    """
    kinds = [kind for kind in Kind if kind is not Kind.NORM]  # a number takes no buffer
    return {tier: sum(self._tier_bytes(tier, kind, work) for kind in kinds) for tier in Tier}

  def disk_bytes(self, work: Work, keep: int) -> int:
    """Bytes on SSD of a run that keeps `keep` commits: everything that outlives an iteration once
    for each of them, and once as it changes."""
    persistent = work.units * sum(self.sizes.bytes(kind) for kind in PERSISTENT)
    on_ssd = work.units * sum(
      self.bytes(kind, [piece for piece in self.vectors[kind] if piece.home is Tier.SSD])
      for kind in PERSISTENT
    )
    resident = self.sizes.whole[Kind.RESIDENT]
    return self.peak_bytes(work)[Tier.SSD] - on_ssd + (keep + 1) * (persistent + resident)

  def _tier_bytes(self, tier: Tier, kind: Kind, work: Work) -> int:
    ring = self.rings.get((tier, kind), 0)
    if kind not in CUT:
      homes = self._homes(kind, work)
      passing = any(n and _DEPTH[home] > _DEPTH[tier] for home, n in homes.items())
      gone = tier is Tier.SSD and (kind, Part.WHOLE) in self.stays_above
      return (0 if gone else homes.get(tier, 0) + ring * passing) * self.sizes.whole[kind]
    at_home = [
      piece
      for piece in self.vectors[kind]
      if piece.home is tier and (tier is Tier.HOST or (kind, piece.part) not in self.stays_above)
    ]
    passing = [piece for piece in self.vectors[kind] if _DEPTH[_home(piece)] > _DEPTH[tier]]
    return work.units * self.bytes(kind, at_home) + ring * self.bytes(kind, passing)

  def _homes(self, kind: Kind, work: Work) -> dict[Tier, int]:
    """How many objects of a kind that is not cut are at home on each tier."""
    home, count = self.homes.get(kind, Tier.DEVICE), object_count(kind, work)
    if kind not in _BOUNDARIES or home is not Tier.HOST:
      return {home: count}
    spilled = work.last * min(self.spilled, work.micro_batches)
    return {home: count - spilled, Tier.SSD: spilled}


def _home(piece: Slice) -> Tier:
  assert piece.home is not None
  return piece.home


def object_count(kind: Kind, work: Work) -> int:
  """How many objects of a kind there are, as `objects` lists them."""
  if kind in _BOUNDARIES:
    return work.last * work.micro_batches
  alone = {Kind.RESIDENT: 1, Kind.RESIDENT_GRADIENTS: len({0, work.last})}
  return alone.get(kind, work.units)


def objects(kind: Kind, work: Work) -> list[Object]:
  """All objects of a kind that has buffers."""
  if kind in _BOUNDARIES:
    pairs = itertools.product(range(work.last), range(work.micro_batches))
    return [Object(kind, u, m) for u, m in pairs]
  if kind is Kind.RESIDENT:
    return [Object(kind, RESIDENT_UNIT)]
  units = sorted({0, work.last}) if kind is Kind.RESIDENT_GRADIENTS else range(work.units)
  return [Object(kind, u) for u in units]
