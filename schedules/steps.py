"""The words of the language that schedules are written in.

A schedule orders *computations*. From their order `residency` derives *steps*: the same
computations on their queues, with every transfer that they need and the steps that each one waits
for. A step names the *objects* it touches and the *slots* (buffers of a pool) that hold them.
"""

import dataclasses
import enum
from typing import NamedTuple

RESIDENT_UNIT = -1  # the embedding and the head: always on the device, updated there


class Tier(enum.StrEnum):
  DEVICE = "device"
  HOST = "host"
  SSD = "ssd"

  @property
  def below(self) -> "Tier":
    return {Tier.DEVICE: Tier.HOST, Tier.HOST: Tier.SSD}[self]


class Queue(enum.StrEnum):
  """Each queue has one worker; queues run at the same time."""

  DEVICE = "device"
  HOST_TO_DEVICE = "host_to_device"
  DEVICE_TO_HOST = "device_to_host"
  SSD_READ = "ssd_read"
  SSD_WRITE = "ssd_write"
  HOST_UPDATE = "host_update"


DEVICE_QUEUES = (Queue.HOST_TO_DEVICE, Queue.DEVICE_TO_HOST)  # both ways of the device's link
SSD_QUEUES = (Queue.SSD_READ, Queue.SSD_WRITE)


class Kind(enum.StrEnum):
  PARAMETERS = "parameters"  # of one unit
  STATES = "states"  # the optimizer's vectors of one unit
  GRADIENTS = "gradients"  # of one unit, summed over micro-batches
  BOUNDARY = "boundary"  # the activation between two units, of one micro-batch
  BOUNDARY_GRADIENT = "boundary_gradient"
  RESIDENT = "resident"
  RESIDENT_GRADIENTS = "resident_gradients"  # unit 0: the embedding's, last unit: the head's
  NORM = "norm"  # of all gradients of an iteration: a number on the device


class Part(enum.StrEnum):
  """Parts of a unit's flat vectors by update time: together they cover it, and do not overlap."""

  NOW = "now"  # updated in the iteration that made the gradient
  DELAYED = "delayed"  # updated during the next iteration's forward pass
  WHOLE = "whole"  # objects that are not cut


class Slice(NamedTuple):
  """A part of a flat vector with one home and one update time.

  The home of what is not cut is its object's (`Pools.home`).
  """

  part: Part
  home: Tier | None = None

  def __str__(self) -> str:
    return f"{self.part}/{self.home}" if self.home else str(self.part)


WHOLE = Slice(Part.WHOLE)


class Action(enum.StrEnum):
  FORWARD = "forward"
  BACKWARD = "backward"
  UPDATE = "update"


class Mode(enum.StrEnum):
  READ = "read"
  WRITE = "write"
  MODIFY = "modify"  # read, then write in place

  @property
  def reads(self) -> bool:
    return self is not Mode.WRITE

  @property
  def writes(self) -> bool:
    return self is not Mode.READ


@dataclasses.dataclass(frozen=True)
class Computation:
  """`backward` recomputes its unit; the last unit's is forward, loss and backward in one.

  `iteration` is the one whose gradient an update applies; a schedule leaves it to `iterations`.
  """

  action: Action
  unit: int
  micro_batch: int | None = None
  part: Part = Part.WHOLE
  iteration: int = 0

  def __str__(self) -> str:
    unit = "resident" if self.unit == RESIDENT_UNIT else f"unit {self.unit}"
    last = f", micro-batch {self.micro_batch}" if self.micro_batch is not None else ""
    last += f", {self.part} part" if self.part is not Part.WHOLE else ""
    return f"{self.action}({unit}{last}) of iteration {self.iteration}"


def forward(unit: int, micro_batch: int) -> Computation:
  return Computation(Action.FORWARD, unit, micro_batch)


def backward(unit: int, micro_batch: int) -> Computation:
  return Computation(Action.BACKWARD, unit, micro_batch)


def update(unit: int, part: Part = Part.NOW) -> Computation:
  return Computation(Action.UPDATE, unit, part=part)


@dataclasses.dataclass(frozen=True)
class Work:
  """What one iteration has to do.

  `parts` are the parts a unit is cut into: NOW and DELAYED, or one of them where the delayed
  fraction is 0 or 1. `pending` says that the iteration before left its DELAYED parts to this one.
  `whole_step` says that every update waits for the norm of all gradients, so that they can be
  clipped by it, or the step skipped (`schedules.whole_step`).
  """

  units: int
  micro_batches: int
  parts: tuple[Part, ...] = (Part.NOW,)
  pending: bool = False
  whole_step: bool = False

  @property
  def last(self) -> int:
    return self.units - 1


@dataclasses.dataclass(frozen=True)
class Object:
  """Something that lives on a tier and may move."""

  kind: Kind
  unit: int
  micro_batch: int | None = None

  def __str__(self) -> str:
    last = f", micro-batch {self.micro_batch}" if self.micro_batch is not None else ""
    return f"{self.kind}({self.unit}{last})"


@dataclasses.dataclass(frozen=True)
class Access:
  """A step's use of slices of an object on a tier, in a slot of that tier's pool for the kind (on
  SSD the object is its own slot).

  On the host an object whose slices have several homes has several slots, and an access for each.
  """

  tier: Tier
  object: Object
  mode: Mode
  slices: tuple[Slice, ...] = (WHOLE,)
  slot: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
  """One entry of the derived list. `waits` are indices of earlier steps."""

  index: int
  queue: Queue
  iteration: int
  computation: Computation | None  # None for a transfer
  accesses: tuple[Access, ...]
  waits: tuple[int, ...]

  def access(self, tier: Tier, kind: Kind, *, writes: bool | None = None) -> Access:
    """The step's first access to a kind on a tier; `writes` picks the written one or the other."""
    found = self.accesses_to(tier, kind, writes=writes)
    if not found:
      raise LookupError(f"{self} has no access to {kind} on {tier}.")
    return found[0]

  def accesses_to(
    self, tier: Tier, kind: Kind, *, writes: bool | None = None
  ) -> tuple[Access, ...]:
    return tuple(
      a
      for a in self.accesses
      if a.tier is tier and a.object.kind is kind and writes in (None, a.mode.writes)
    )

  @property
  def sources(self) -> tuple[Access, ...]:
    """What a transfer reads."""
    return tuple(access for access in self.accesses if not access.mode.writes)

  @property
  def targets(self) -> tuple[Access, ...]:
    """What a transfer writes: the slices of its sources."""
    return tuple(access for access in self.accesses if access.mode.writes)

  @property
  def moved(self) -> tuple[Kind, tuple[Slice, ...]]:
    """The kind and the slices that a transfer moves."""
    sources = self.sources
    return sources[0].object.kind, tuple(s for access in sources for s in access.slices)

  def __str__(self) -> str:
    if self.computation is not None:
      return str(self.computation)
    slices = "" if self.moved[1] == (WHOLE,) else f" {'+'.join(map(str, self.moved[1]))}"
    return f"{self.queue} {self.accesses[0].object}{slices} of iteration {self.iteration}"
