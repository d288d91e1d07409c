"""Where objects live: a home for every kind, and a ring of equal buffers on each tier it passes."""

import dataclasses
from collections.abc import Mapping

from schedules.steps import Kind, Object, Part, Queue, Tier, Work

PERSISTENT = (Kind.PARAMETERS, Kind.STATES)  # what outlives an iteration
_BOUNDARIES = (Kind.BOUNDARY, Kind.BOUNDARY_GRADIENT)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Bytes of one object of each kind, by part.

  `bytes` are those of a buffer and of an SSD array, padding included; `payload` are those that
  cross the device's link, which carries no padding.
  """

  bytes: Mapping[tuple[Kind, Part], int]
  payload: Mapping[tuple[Kind, Part], int]

  def moved(self, queue: Queue, kind: Kind, parts: tuple[Part, ...]) -> int:
    """Bytes that a transfer of an object's parts moves."""
    on_ssd = queue in (Queue.SSD_READ, Queue.SSD_WRITE)
    sizes = self.bytes if on_ssd else self.payload
    return sum(sizes[kind, part] for part in parts)

  def whole(self, kind: Kind) -> int:
    return sum(size for (k, _), size in self.bytes.items() if k is kind)


@dataclasses.dataclass(frozen=True)
class Pools:
  """Homes and rings.

  An object at home has a buffer of its own. Below its home it never goes; on the tiers above it
  passes through the kind's ring, whose buffers are reused oldest first.

  `spilled` of the micro-batches keep their boundaries on SSD though the kind's home is the host.
  `master_is_parameter` says that the optimizer's master values are the parameters themselves
  (float32), which an update then has to read.
  """

  homes: Mapping[Kind, Tier]
  rings: Mapping[tuple[Tier, Kind], int]
  spilled: int = 0
  master_is_parameter: bool = True

  def home(self, item: Object, work: Work) -> Tier:
    home = self.homes.get(item.kind, Tier.DEVICE)
    if item.kind in _BOUNDARIES and home is Tier.HOST and item.micro_batch is not None:
      return Tier.SSD if item.micro_batch >= work.micro_batches - self.spilled else home
    return home

  def home_slot(self, item: Object, work: Work) -> int:
    """The buffer of an object on its home tier; they are numbered after the ring's."""
    ring = self.rings.get((self.homes.get(item.kind, Tier.DEVICE), item.kind), 0)
    if item.micro_batch is None:
      return ring + max(item.unit, 0)
    return ring + item.unit * work.micro_batches + item.micro_batch

  def buffers(self, tier: Tier, kind: Kind, work: Work) -> int:
    """Buffers that the kind takes on a tier: one per object at home there, and the ring."""
    count = objects(kind, work)
    home = self.homes.get(kind, Tier.DEVICE)
    spilled = kind in _BOUNDARIES and home is Tier.HOST and self.spilled > 0
    at_home = count if home is tier else 0
    if spilled and tier in (Tier.HOST, Tier.SSD):
      gone = count // work.micro_batches * min(self.spilled, work.micro_batches)
      at_home = gone if tier is Tier.SSD else count - gone
    passes = home is not tier or spilled
    return at_home + (self.rings.get((tier, kind), 0) if passes else 0)

  def peak_bytes(self, work: Work, sizes: Sizes) -> dict[Tier, int]:
    """Bytes of all buffers of a tier: known before anything runs, and never exceeded."""
    return {
      tier: sum(self.buffers(tier, kind, work) * sizes.whole(kind) for kind in Kind)
      for tier in Tier
    }


def objects(kind: Kind, work: Work) -> int:
  """How many objects of a kind there are."""
  if kind in _BOUNDARIES:
    return work.last * work.micro_batches
  return {Kind.RESIDENT: 1, Kind.RESIDENT_GRADIENTS: min(2, work.units)}.get(kind, work.units)
