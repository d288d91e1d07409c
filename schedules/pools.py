"""Where objects live: a home for every kind, and a ring of equal buffers on each tier it passes."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping

from schedules.steps import RESIDENT_UNIT, Kind, Object, Part, Queue, Tier, Work

PERSISTENT = (Kind.PARAMETERS, Kind.STATES)  # what outlives an iteration
UPDATED = (*PERSISTENT, Kind.GRADIENTS)  # what updates read in host memory
_DEPTH = {Tier.DEVICE: 0, Tier.HOST: 1, Tier.SSD: 2}
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

  def __post_init__(self):
    on_device = [kind for kind in UPDATED if self.homes.get(kind) is Tier.DEVICE]
    if on_device:
      raise ValueError(
        f"{on_device[0]} cannot be at home on the device, since updates run on the host: give the "
        "device a ring of as many buffers as there are units."
      )

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
    """Buffers that the kind takes on a tier: one per object at home there, and the ring through
    which those pass whose home is further down."""
    homes = collections.Counter(self.home(item, work) for item in objects(kind, work))
    passing = any(_DEPTH[home] > _DEPTH[tier] for home in homes)
    return homes[tier] + (self.rings.get((tier, kind), 0) if passing else 0)

  def peak_bytes(self, work: Work, sizes: Sizes) -> dict[Tier, int]:
    """Bytes of all buffers of a tier: known before anything runs, and never exceeded."""
    return {
      tier: sum(self.buffers(tier, kind, work) * sizes.whole(kind) for kind in Kind)
      for tier in Tier
    }


def objects(kind: Kind, work: Work) -> list[Object]:
  """All objects of a kind."""
  if kind in _BOUNDARIES:
    pairs = itertools.product(range(work.last), range(work.micro_batches))
    return [Object(kind, u, m) for u, m in pairs]
  if kind is Kind.RESIDENT:
    return [Object(kind, RESIDENT_UNIT)]
  units = sorted({0, work.last}) if kind is Kind.RESIDENT_GRADIENTS else range(work.units)
  return [Object(kind, u) for u in units]
