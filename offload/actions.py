"""What each step of a derived list does to arrays."""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from offload.arrays import Arrays, HostSlots
from offload.cuts import Cuts, Run, together
from offload.layout import Layout
from offload.programs import Programs, Where
from offload.resident import Resident
from offload.transport import Transport
from offload.update import Updater
from schedules.pools import PERSISTENT
from schedules.steps import RESIDENT_UNIT, Access, Action, Kind, Mode, Queue, Step, Tier, Work
from schedules.traffic import LINKS


class Batch(NamedTuple):
  """One micro-batch, int32 [B, T] each; negative targets do not count in the loss."""

  inputs: np.ndarray
  targets: np.ndarray
  positions: np.ndarray


Batches = Callable[[int, int], Batch]  # of (iteration, micro-batch) alone: the same at every call


class Actions:
  """Performs steps; safe to call from one thread for each queue.

  Attributes:
    losses: iteration -> micro-batch -> loss in nats, summed over its tokens.
    moved: bytes by link and kind, counted as they move.

  From iteration `checksums_from` on, what is written to SSD has its checksum noted, for a commit.
  """

  def __init__(
    self,
    work: Work,
    layout: Layout,
    cuts: Cuts,
    programs: Programs,
    updater: Updater,
    resident: Resident,
    transport: Transport,
    host: HostSlots,
    arrays: Arrays,
    batches: Batches,
    seed: int,
    checksums_from: int | None = None,
  ):
    self._work, self._layout, self._cuts = work, layout, cuts
    self._programs, self._updater = programs, updater
    self._resident, self._transport, self._host, self._arrays = resident, transport, host, arrays
    # A micro-batch is asked for by every unit, in both passes.
    self._batches = functools.lru_cache(2 * work.micro_batches)(batches)
    self._seed, self._checksums_from = seed, checksums_from
    self._device: dict[tuple[Kind, int | None], Any] = {}
    self._weights: dict[int, float] = {}
    self.losses: dict[int, dict[int | None, float]] = defaultdict(dict)
    self.moved: dict[Queue, dict[Kind, int]] = {link: defaultdict(int) for link in LINKS}

  def perform(self, step: Step) -> None:
    """Returns when the step's effects are complete."""
    for access in step.accesses:
      if access.tier is Tier.DEVICE and access.mode is Mode.WRITE:
        self._device.pop(_key(access), None)  # frees what was there before its successor is made
    if step.computation is not None:
      self._compute(step)
      return
    transfer = {
      Queue.HOST_TO_DEVICE: self._up,
      Queue.DEVICE_TO_HOST: self._down,
      Queue.SSD_READ: self._read_ssd,
      Queue.SSD_WRITE: self._write_ssd,
    }[step.queue]
    self.moved[step.queue][step.moved[0]] += transfer(step)

  def loss(self, iteration: int) -> float:
    """Nats per token of an iteration that is over; asked for once."""
    losses = self.losses.pop(iteration)
    return sum(losses[m] for m in range(self._work.micro_batches)) / self._weight(iteration)

  def _read_ssd(self, step: Step) -> int:
    (source,), (target,) = step.sources, step.targets
    return self._arrays.read(source.object, source.slices, self._host[target])

  def _write_ssd(self, step: Step) -> int:
    (source,), (target,) = step.sources, step.targets
    last = self._checksums_from is not None and step.iteration >= self._checksums_from
    persistent = target.object.kind in PERSISTENT
    return self._arrays.write(
      target.object, target.slices, self._host[source], checksum=last and persistent
    )

  def _up(self, step: Step) -> int:
    (target,) = step.targets
    views = self._host_tree(step.sources)
    self._device[_key(target)] = self._transport.up(views)
    return _bytes(views)

  def _down(self, step: Step) -> int:
    (source,) = step.sources
    views = self._host_tree(step.targets)
    self._transport.down(self._device[_key(source)], views)
    if source.object.micro_batch is None:
      self._layout.scatter(views, self._runs(step.targets))
    return _bytes(views)

  def _host_tree(self, accesses: tuple[Access, ...]) -> Any:
    """Host buffers as the tree that the device holds. A unit crosses the link whole."""
    if accesses[0].object.micro_batch is not None:
      return self._host[accesses[0]]
    return self._layout.gather(self._runs(accesses))

  def _runs(self, accesses: tuple[Access, ...]) -> list[Run]:
    return [
      run
      for access in accesses
      for run in self._cuts.runs(access.object.kind, access.slices, self._host[access])
    ]

  def _compute(self, step: Step) -> None:
    c = step.computation
    assert c is not None
    if c.action is Action.UPDATE:
      (self._update_resident if c.unit == RESIDENT_UNIT else self._update)(step)
    else:
      (self._forward if c.action is Action.FORWARD else self._backward)(step)

  def _forward(self, step: Step) -> None:
    c = step.computation
    assert c is not None
    at = self._where(step)
    y = self._programs.forward(self._read(step, Kind.PARAMETERS), self._input(step, at), at)
    self._write(step, Kind.BOUNDARY, y)

  def _backward(self, step: Step) -> None:
    c, p = step.computation, self._programs
    assert c is not None
    at = self._where(step)
    unit, x = self._read(step, Kind.PARAMETERS), self._input(step, at)
    gradients = self._sum_so_far(step, Kind.GRADIENTS, p.unit_zeros)
    resident = None
    if c.unit in (0, self._work.last):
      resident = dict(self._sum_so_far(step, Kind.RESIDENT_GRADIENTS, self._resident_zeros(c.unit)))
    if c.unit == self._work.last:
      assert resident is not None
      head = p.head_part(self._resident.parameters)
      targets, scale = self._batch(step).targets, np.float32(1 / self._weight(c.iteration))
      loss, dx, gradients, resident["head"] = p.loss_backward(
        unit, head, x, targets, scale, gradients, resident["head"], at
      )
      self.losses[c.iteration][c.micro_batch] = float(loss)
    else:
      dy = self._read(step, Kind.BOUNDARY_GRADIENT)
      dx, gradients = p.backward(unit, x, dy, gradients, at)
    if c.unit == 0:
      assert resident is not None
      embed, inputs = self._resident.parameters["embed"], self._batch(step).inputs
      resident["embed"] = p.embed_backward(embed, inputs, dx, resident["embed"], at)
    else:
      self._write(step, Kind.BOUNDARY_GRADIENT, dx)
    self._write(step, Kind.GRADIENTS, gradients)
    if resident is not None:
      self._write(step, Kind.RESIDENT_GRADIENTS, resident)

  def _update(self, step: Step) -> None:
    c = step.computation
    assert c is not None
    kinds = (Kind.PARAMETERS, Kind.STATES, Kind.GRADIENTS)
    for runs in together(self._runs(step.accesses_to(Tier.HOST, kind)) for kind in kinds):
      decayed = self._layout.decayed - runs[0].start
      self._updater.apply(c.iteration, *(run.array for run in runs), decayed=decayed)

  def _update_resident(self, step: Step) -> None:
    sums: dict[str, Any] = {}
    for access in step.accesses:
      if access.object.kind is Kind.RESIDENT_GRADIENTS:
        sums |= self._device[_key(access)]
    self._resident.step(sums["embed"], sums["head"])

  def _where(self, step: Step) -> Where:
    c = step.computation
    assert c is not None
    positions = self._batch(step).positions
    return Where.of(self._seed, c.iteration, c.unit, c.micro_batch, positions)

  def _input(self, step: Step, at: Where) -> Any:
    c = step.computation
    assert c is not None
    if c.unit > 0:
      return self._device[_key(step.access(Tier.DEVICE, Kind.BOUNDARY, writes=False))]
    return self._programs.embed(self._resident.parameters["embed"], self._batch(step).inputs, at)

  def _read(self, step: Step, kind: Kind) -> Any:
    return self._device[_key(step.access(Tier.DEVICE, kind, writes=False))]

  def _write(self, step: Step, kind: Kind, value: Any) -> None:
    access = step.access(Tier.DEVICE, kind, writes=True)
    self._device[_key(access)] = jax.block_until_ready(value)

  def _sum_so_far(self, step: Step, kind: Kind, zeros: Callable[[], Any]) -> Any:
    """The sum of an iteration's earlier micro-batches; taken out, since it is donated."""
    access = step.access(Tier.DEVICE, kind, writes=True)
    if access.mode is Mode.MODIFY:
      return self._device.pop(_key(access))
    return zeros()

  def _resident_zeros(self, unit: int) -> Callable[[], Any]:
    def zeros():
      out = {"embed": self._programs.embed_zeros()} if unit == 0 else {}
      return out | ({"head": self._programs.head_zeros()} if unit == self._work.last else {})

    return zeros

  def _batch(self, step: Step) -> Batch:
    c = step.computation
    assert c is not None and c.micro_batch is not None
    return self._batches(c.iteration, c.micro_batch)

  def _weight(self, iteration: int) -> float:
    """Tokens of a whole iteration that count in its loss."""
    if iteration not in self._weights:
      micro_batches = range(self._work.micro_batches)
      targets = (self._batches(iteration, m).targets for m in micro_batches)
      self._weights = {iteration: float(sum((t >= 0).sum() for t in targets))}
    return self._weights[iteration]


def _key(access: Access) -> tuple[Kind, int | None]:
  return access.object.kind, access.slot


def _bytes(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
