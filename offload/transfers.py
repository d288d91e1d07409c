"""What the steps between tiers move."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax

from offload.arrays import Arrays, HostSlots
from offload.buffers import Arena
from offload.device_slots import DeviceSlots
from offload.layout import Layout
from offload.transport import Room, Transport
from schedules.pools import PERSISTENT
from schedules.steps import Access, Kind, Queue, Step
from schedules.traffic import LINKS


class Transfers:
  """Between the device, host buffers and the store.

  What an iteration that `commits` names writes to SSD has its checksum noted, for a commit.

  Attributes:
    moved: bytes by link and kind, counted as they move.
  """

  def __init__(
    self,
    layout: Layout,
    transport: Transport,
    device: DeviceSlots,
    host: HostSlots,
    arrays: Arrays,
    commits: Callable[[int], bool] = lambda iteration: False,
  ):
    self._layout, self._transport = layout, transport
    self._device, self._host, self._arrays = device, host, arrays
    self._commits = commits
    arena = Arena()
    self._rooms: dict[int | None, Room] = defaultdict(lambda: Room(arena))  # by slot
    self.moved: dict[Queue, dict[Kind, int]] = {link: defaultdict(int) for link in LINKS}

  def perform(self, step: Step) -> None:
    """Returns when the copy is complete, on SSD durable."""
    transfer = {
      Queue.HOST_TO_DEVICE: self._up,
      Queue.DEVICE_TO_HOST: self._down,
      Queue.SSD_READ: self._read_ssd,
      Queue.SSD_WRITE: self._write_ssd,
    }[step.queue]
    self.moved[step.queue][step.moved[0]] += transfer(step)

  def _read_ssd(self, step: Step) -> int:
    (source,), (target,) = step.sources, step.targets
    return self._arrays.read(source.object, source.slices, self._host[target])

  def _write_ssd(self, step: Step) -> int:
    (source,), (target,) = step.sources, step.targets
    checksum = target.object.kind in PERSISTENT and self._commits(step.iteration)
    return self._arrays.write(target.object, target.slices, self._host[source], checksum=checksum)

  def _up(self, step: Step) -> int:
    (target,) = step.targets
    views = self._host_tree(step.sources)
    # Parameters come from nowhere else and are given to nobody: neither donated nor overwritten.
    is_parameters = target.object.kind is Kind.PARAMETERS
    room = self._rooms[target.slot] if is_parameters else None
    self._device[target] = self._transport.up(views, room)
    return _bytes(views)

  def _down(self, step: Step) -> int:
    (source,) = step.sources
    views = self._host_tree(step.targets)
    self._transport.down(self._device[source], views)
    if source.object.micro_batch is None:
      self._layout.scatter(views, self._host.runs(step.targets))
    return _bytes(views)

  def _host_tree(self, accesses: tuple[Access, ...]) -> Any:
    """Host buffers as the tree that the device holds. A unit crosses the link whole."""
    if accesses[0].object.micro_batch is not None:
      return self._host[accesses[0]]
    return self._layout.gather(self._host.runs(accesses))


def _bytes(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
