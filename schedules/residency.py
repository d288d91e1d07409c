"""What moves, derived from an order of computations by one rule for every schedule.

On each tier, from the device down, the rule is the same. What a step reads is brought up if it is
not there. The oldest buffer that is not in use makes room. What has left and is read again was
carried down, once, right after it was produced; what nobody reads again is dropped. What an update
changes is written through to its home and stays usable where it is. Slices with their home on a
tier have a buffer of their own there, and never leave it.

Buffers are reused oldest first even when a younger one is free: a ring through which everything
streams keeps two transfers in flight, where the buffer freed last would be waited for. One grows
young again when it is read, but for an update's result in a ring of at most half of the units. The
next pass reads that while it is still being written to SSD, so such buffers are given up in the
order in which their writes end. The price is one read that waits for a later load where no write is
under way.

Optimizer states for updates in the backward pass are read from SSD after the last read of
parameters that stands before them in the list. Their buffers may be free sooner, while parameters
wait for ones that are being written. But to read states then takes the disk from these writes, and
at the turn from forward to backward pass, when nothing can be written before the first update,
nothing is left to read. Where the SSD is the bottleneck an iteration takes 0.93 of the time so (18
units of 3.2M parameters; 2 cores). Where reads and writes do not share a disk it costs what a ring
of states could have been read ahead, which counts with few units only (simulated: up to 1.09 with
four).

The derivation is incremental: it holds a few iterations at a time, since the list has no end.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from schedules.demands import Demands, queue_of
from schedules.pools import PERSISTENT, Pools
from schedules.steps import (
  Access,
  Computation,
  Kind,
  Mode,
  Object,
  Part,
  Queue,
  Slice,
  Step,
  Tier,
  Work,
)

_UP = {Tier.DEVICE: Queue.HOST_TO_DEVICE, Tier.HOST: Queue.SSD_READ}
_DOWN = {Tier.DEVICE: Queue.DEVICE_TO_HOST, Tier.HOST: Queue.SSD_WRITE}


@dataclasses.dataclass(eq=False)
class _Draft:
  """A step in the making. `carried` grows while later steps turn out to need what it wrote."""

  queue: Queue
  iteration: int
  computation: Computation | None
  accesses: list[Access]
  loads: list["_Draft"] = dataclasses.field(default_factory=list)
  carried: dict[Object, list[Slice]] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    return str(self.computation or f"{self.queue} of {self.accesses[0].object}")

  def carry(self, item: Object, slices: Iterable[Slice]) -> None:
    """Has `slices` of what this step writes carried one tier down."""
    known = self.carried.setdefault(item, [])
    known += [piece for piece in slices if piece not in known]


def derive(
  batches: Iterable[list[Computation]], work: Work, pools: Pools, *, waits: bool = True
) -> Iterator[Step]:
  """Yields the steps of the computations of whole iterations, in list order.

  Without `waits` they are left out: what only counts steps need not pay for them.

  Raises:
    ValueError: a pool is too small for a computation, or one reads what nothing has produced.
  """
  demands = Demands(work, pools)
  drafts = ([_draft(c, demands) for c in batch] for batch in batches)
  for tier in (Tier.DEVICE, Tier.HOST):
    drafts = _TierPass(tier, work, pools).run(drafts)
  if waits:
    return _with_waits(drafts)
  listed = (draft for batch in drafts for draft in batch)
  return (_step(i, draft, ()) for i, draft in enumerate(listed))


def _step(index: int, draft: _Draft, waits: Iterable[int]) -> Step:
  return Step(
    *(index, draft.queue, draft.iteration, draft.computation),
    *(tuple(draft.accesses), tuple(sorted(waits))),
  )


def _draft(c: Computation, demands: Demands) -> _Draft:
  return _Draft(queue_of(c), c.iteration, c, list(demands.of(c)))


class _TierPass:
  """Walks the drafts and gives one tier's accesses their slots, loads and carries."""

  def __init__(self, tier: Tier, work: Work, pools: Pools):
    self._tier, self._work, self._pools = tier, work, pools
    self._slot: dict[Object, int] = {}  # of the ring
    self._valid: dict[Object, set[Slice]] = {}
    self._writer: dict[Object, dict[Slice, _Draft]] = {}  # the newest value was produced up here
    self._rings: dict[object, dict[int, Object | None]] = {}  # slot -> occupant, the oldest first
    self._updated: set[Object] = set()  # whose ring buffer holds an update's result

  def run(self, batches: Iterable[list[_Draft]]) -> Iterator[list[_Draft]]:
    """One batch behind: by then it is known what of it was read again after it had left."""
    before: list[_Draft] | None = None
    for batch in batches:
      for draft in batch:
        self._visit(draft)
      if before is not None:
        yield self._emit(before)
      before = batch
    if before is not None:
      yield self._emit(before)

  def _visit(self, draft: _Draft) -> None:
    in_use: set[tuple[object, int]] = set()
    accesses: list[Access] = []
    for access in draft.accesses:
      if access.tier is self._tier:
        accesses += [self._place(draft, a, in_use) for a in self._by_home(access)]
        continue
      accesses.append(access)
      if access.tier is self._tier.below and draft.computation is not None:
        self._use_below(access)
    draft.accesses = accesses

  def _place(self, draft: _Draft, access: Access, in_use: set[tuple[object, int]]) -> Access:
    """Gives an access its slot there, and brings up what it reads."""
    item = access.object
    if self._is_home(item, access.slices[0]):
      slot = self._pools.home_slot(item, self._tier, self._work)
    else:
      slot = self._ring_slot(access, in_use, draft)
      in_use.add((item.kind, slot))
    placed = Access(access.tier, item, access.mode, access.slices, slot)
    if access.mode.reads:
      self._bring(draft, placed)
    if access.mode.writes:
      self._produce(draft, placed)
    return placed

  def _by_home(self, access: Access) -> list[Access]:
    """An access for the slices at home on this tier, and one for those that pass through."""
    groups: dict[bool, list[Slice]] = {}
    for piece in access.slices:
      groups.setdefault(self._is_home(access.object, piece), []).append(piece)
    if len(groups) == 1:
      return [access]
    return [dataclasses.replace(access, slices=tuple(slices)) for slices in groups.values()]

  def _is_home(self, item: Object, piece: Slice) -> bool:
    return self._pools.home(item, piece, self._work) is self._tier

  def _bring(self, draft: _Draft, access: Access) -> None:
    item = access.object
    missing = tuple(piece for piece in access.slices if not self._is_there(item, piece))
    if not missing:
      return
    self._carry(item, missing)
    if item.kind not in PERSISTENT and not self._was_written(item, missing):
      raise ValueError(f"{draft} reads {item}, which nothing has produced.")
    source = Access(self._tier.below, item, Mode.READ, missing)
    target = Access(self._tier, item, Mode.WRITE, missing, access.slot)
    draft.loads.append(_Draft(_UP[self._tier], draft.iteration, None, [source, target]))
    self._valid.setdefault(item, set()).update(missing)

  def _is_there(self, item: Object, piece: Slice) -> bool:
    if piece in self._valid.get(item, ()):
      return True
    return item.kind in (*PERSISTENT, Kind.RESIDENT) and self._is_home(item, piece)

  def _produce(self, draft: _Draft, access: Access) -> None:
    item = access.object
    self._valid.setdefault(item, set()).update(access.slices)
    self._writer.setdefault(item, {}).update(dict.fromkeys(access.slices, draft))
    if item.kind in PERSISTENT and not self._is_home(item, access.slices[0]):
      draft.carry(item, access.slices)

  def _use_below(self, access: Access) -> None:
    """A step of the tier below reads or overwrites something that may be newer up here."""
    if access.mode.reads:
      self._carry(access.object, access.slices)
    if access.mode.writes:
      self._valid.get(access.object, set()).difference_update(access.slices)
      for piece in access.slices:
        self._writer.get(access.object, {}).pop(piece, None)

  def _carry(self, item: Object, slices: Iterable[Slice]) -> None:
    for piece in slices:
      if piece in self._writer.get(item, {}):
        self._writer[item][piece].carry(item, [piece])

  def _was_written(self, item: Object, slices: Iterable[Slice]) -> bool:
    return all(piece in self._writer.get(item, {}) for piece in slices)

  def _ring_slot(self, access: Access, in_use: set[tuple[object, int]], draft: _Draft) -> int:
    item = access.object
    size = self._pools.rings.get((self._tier, item.kind), 0)
    ring = self._rings.setdefault(item.kind, dict.fromkeys(range(size)))
    slot = self._slot.get(item)
    if slot is None:
      slot = next((s for s in ring if (item.kind, s) not in in_use), None)
      if slot is None:
        raise ValueError(
          f"{draft} needs more than the {size} {item.kind} buffers of the {self._tier}'s pool."
        )
      self._evict(ring[slot])
      self._slot[item] = slot
    if access.mode.writes or not self._stays_old(item, size):
      ring.pop(slot)
      ring[slot] = item  # youngest
    if access.mode.writes and item.kind in PERSISTENT:
      self._updated.add(item)
    return slot

  def _stays_old(self, item: Object, size: int) -> bool:
    """Whether reads leave its buffer as old as an update has made it. Not in a ring of more than
    half of the units, which still holds some of them when the backward pass comes: to give those up
    would cost reads."""
    return item in self._updated and 2 * size <= self._work.units

  def _evict(self, item: Object | None) -> None:
    if item is not None:
      self._slot.pop(item)
      self._updated.discard(item)
      self._valid[item] = {s for s in self._valid.get(item, ()) if self._is_home(item, s)}

  def _emit(self, batch: list[_Draft]) -> list[_Draft]:
    out: list[_Draft] = []
    for draft in batch:
      out += [*draft.loads, draft]
      for item, slices in draft.carried.items():
        out.append(self._save(draft, item, tuple(slices)))
      draft.loads, draft.carried = [], {}
    return out

  def _save(self, draft: _Draft, item: Object, slices: tuple[Slice, ...]) -> _Draft:
    written = (a for a in draft.accesses if a.object == item and a.mode.writes)
    slot = next(a.slot for a in written if a.tier is self._tier and slices[0] in a.slices)
    source = Access(self._tier, item, Mode.READ, slices, slot)
    target = Access(self._tier.below, item, Mode.WRITE, slices)
    return _Draft(_DOWN[self._tier], draft.iteration, None, [source, target])


def _with_waits(batches: Iterable[list[_Draft]]) -> Iterator[Step]:
  """Numbers the steps and derives the waits.

  A step waits for what wrote what it reads, for the readers of what it overwrites, and for whoever
  wrote there before; a read of states for the last one of parameters, too. All of these stand
  earlier in the list, so nothing can wait for ever.
  """
  writer: dict[tuple, int] = {}
  readers: dict[tuple, list[int]] = {}
  parameters_read: int | None = None  # the last such read from SSD
  index = 0
  for batch in batches:
    for draft in batch:
      waits: set[int] = set()
      for access in draft.accesses:
        for place in places(access):
          if place in writer:
            waits.add(writer[place])
          if access.mode.writes:
            waits.update(readers.pop(place, ()))
      for access in draft.accesses:
        for place in places(access):
          if access.mode.writes:
            writer[place] = index
          else:
            readers.setdefault(place, []).append(index)
      if draft.queue is Queue.SSD_READ:
        source = draft.accesses[0]
        if source.object.kind is Kind.PARAMETERS:
          parameters_read = index
        elif parameters_read is not None and _is_for_update_now(source):
          waits.add(parameters_read)
      waits.discard(index)
      yield _step(index, draft, waits)
      index += 1


def _is_for_update_now(source: Access) -> bool:
  is_now = all(piece.part is Part.NOW for piece in source.slices)
  return source.object.kind is Kind.STATES and is_now


def places(access: Access) -> list[tuple]:
  """The memory that an access touches: a slot's slices, or on SSD the object's own."""
  where = access.object if access.tier is Tier.SSD else access.slot
  return [(access.tier, access.object.kind, where, piece) for piece in access.slices]
