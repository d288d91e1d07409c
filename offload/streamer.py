"""Trains a model whose units stream through memory under a schedule."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from offload.actions import Actions, Batch, Batches
from offload.arrays import Arrays, HostSlots, HostSpecs
from offload.cuts import Cuts
from offload.executor import Executor, Span
from offload.layout import Layout
from offload.probe import probe
from offload.programs import Model, Programs, Where
from offload.resident import Resident
from offload.store import Store
from offload.transport import TRANSPORTS
from offload.update import Optimizer, Updater
from schedules.iterations import iterations
from schedules.pools import Pools
from schedules.registry import Schedule
from schedules.residency import derive
from schedules.simulate import Profile
from schedules.steps import (
  RESIDENT_UNIT,
  Access,
  Kind,
  Mode,
  Object,
  Queue,
  Slice,
  Step,
  Tier,
  Work,
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to train."""

  schedule: Schedule
  work: Work
  pools: Pools
  optimizer: Optimizer
  seed: int = 0
  transport: str = "copy"
  overlap: bool = True


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run of iterations did.

  Attributes:
    losses: nats per token of each iteration, over all its micro-batches.
    seconds: wall time of each iteration, from the end of one to the end of the next.
    moved: bytes by link and kind, counted as they moved.
    spans: the steps of the first iterations, in seconds since the run began.
    busy: seconds of work of each queue.
  """

  losses: list[float]
  seconds: list[float]
  moved: dict[Queue, dict[Kind, int]]
  spans: list[Span]
  busy: dict[Queue, float]


class Streamer:
  """A model in training: its parameters and states on their tiers, and what moves them.

  Construction writes the initial values into the store, unit by unit:
  a model that does not fit in memory is never whole there.
  """

  def __init__(
    self,
    model: Model,
    layout: Layout,
    programs: Programs,
    settings: Settings,
    batches: Batches,
    store: Store,
  ):
    self._model, self._layout, self._settings, self._batches = model, layout, settings, batches
    self._programs = programs
    self._updater = Updater(settings.optimizer, model.dtype)
    names = self._updater.names
    self._transport = TRANSPORTS[settings.transport]()
    self._cuts = Cuts(settings.pools)
    self._specs = HostSpecs(self._cuts, self._programs.boundary, names, model.dtype)
    self._host = HostSlots(self._specs)
    self._store, self._arrays = store, Arrays(store, self._cuts, names)
    self._resident = self._initialise(jax.random.key(settings.seed))

  @property
  def peak_bytes(self) -> dict[str, int]:
    """Bytes of the host buffers and of the SSD arrays that were made."""
    return {"host": self._host.bytes, "ssd": self._arrays.bytes}

  def run(
    self, first: int, count: int, on_iteration: Callable[[int, float], None] = lambda i, loss: None
  ) -> Result:
    """Trains iterations `first` to `first + count - 1`; nothing is left pending at the end.

    The first run begins with iteration 0, each further one where the one before has ended.

    `on_iteration` is told each iteration's number and its loss when its backward pass is over.
    """
    s = self._settings
    actions = Actions(
      *(s.work, self._layout, self._cuts, self._programs, self._updater),
      *(self._resident, self._transport, self._host, self._arrays, self._batches, s.seed),
    )
    losses, ends = [], [time.perf_counter()]

    def done(step: Step) -> None:
      if step.computation is not None and step.computation.unit == RESIDENT_UNIT:
        ends.append(time.perf_counter())
        losses.append(actions.loss(step.iteration))
        on_iteration(step.iteration, losses[-1])

    executor = Executor(actions.perform, overlap=s.overlap)
    executor.run(derive(iterations(s.schedule, s.work, first, count), s.work, s.pools), done)
    ends[-1] = time.perf_counter()  # the last iteration ends when its last write has landed
    moved = {link: dict(kinds) for link, kinds in actions.moved.items()}
    return Result(losses, np.diff(ends).tolist(), moved, executor.spans, executor.busy)

  def evaluate(self, batches: Iterable[Batch]) -> float:
    """Mean loss in nats per token, nothing dropped; each unit is loaded once for all batches.

    Batches have the shape that the programs were compiled for.
    """
    batches = list(batches)
    at = [Where.of(self._settings.seed, 0, 0, 0, batch.positions) for batch in batches]
    resident, last = self._resident.parameters, self._model.units - 1
    both = list(zip(batches, at, strict=True))
    xs = [self._programs.embed(resident["embed"], batch.inputs, w) for batch, w in both]
    for u in range(last):
      unit = self._transport.up(self.unit_parameters(u))
      xs = [self._programs.infer(unit, x, w) for x, w in zip(xs, at, strict=True)]
    unit, head = self._transport.up(self.unit_parameters(last)), self._programs.head_part(resident)
    losses = [
      float(self._programs.loss(unit, head, x, batch.targets, w))
      for x, (batch, w) in zip(xs, both, strict=True)
    ]
    return sum(losses) / sum(int((batch.targets >= 0).sum()) for batch in batches)

  def probe(self) -> Profile:
    """What this run's computations and transfers take on this machine, measured one at a time."""
    return probe(
      *(self._layout, self._programs, self._resident.parameters, self._updater),
      *(self._transport, self._specs, self._store),
    )

  def unit_parameters(self, unit: int) -> Any:
    """One unit's parameters in host memory."""
    return self._layout.views(self._stored(Kind.PARAMETERS, unit))

  def unit_states(self, unit: int) -> dict[str, np.ndarray]:
    """One unit's optimizer vectors by name, flat, as the layout has them."""
    return dict(zip(self._updater.names, self._stored(Kind.STATES, unit), strict=True))

  @property
  def resident_parameters(self) -> Any:
    return self._resident.parameters

  def close(self) -> None:
    """Removes the store: it belongs to this run alone."""
    self._arrays.close()

  def _initialise(self, key: jax.Array) -> Resident:
    model, layout = self._model, self._layout
    init_unit = jax.jit(model.init_unit)
    masters = self._specs.vector(Kind.GRADIENTS, layout.elements)
    states = self._specs.vector(Kind.STATES, layout.elements)
    for u in range(model.units):
      tree = init_unit(jax.random.fold_in(key, u))
      jax.tree.map(lambda view, leaf: np.copyto(view, leaf), layout.views(masters), tree)
      self._updater.initial_states(masters, states)
      self._put(Kind.PARAMETERS, u, masters.astype(model.dtype, copy=False))
      self._put(Kind.STATES, u, states)
    self._updater.start(0)
    initial = jax.jit(model.init_resident)(jax.random.fold_in(key, model.units))
    return Resident(initial, self._settings.optimizer, model.dtype)

  def _put(self, kind: Kind, unit: int, vector: np.ndarray) -> None:
    for access in self._at_home(kind, unit):
      if access.tier is Tier.HOST:
        for run in self._cuts.runs(kind, access.slices, self._host[access]):
          np.copyto(run.array, vector[..., run.start : run.stop])
      else:
        self._arrays.write(access.object, access.slices, self._streamed(kind, vector))

  def _stored(self, kind: Kind, unit: int) -> np.ndarray:
    """A copy of a unit's vector, or of its stacked ones."""
    vector = self._specs.vector(kind, self._layout.elements)
    for access in self._at_home(kind, unit):
      if access.tier is Tier.HOST:
        for run in self._cuts.runs(kind, access.slices, self._host[access]):
          np.copyto(vector[..., run.start : run.stop], run.array)
      else:
        self._arrays.read(access.object, access.slices, self._streamed(kind, vector))
    return vector

  def _streamed(self, kind: Kind, vector: np.ndarray) -> np.ndarray:
    """The run of a vector that a ring's buffer holds: its slices on SSD."""
    first = next(s for s in self._settings.pools.vectors[kind] if s.home is Tier.SSD)
    start = self._cuts.start(kind, first)
    return vector[..., start : start + self._cuts.length(kind, Tier.SSD)]

  def _at_home(self, kind: Kind, unit: int) -> list[Access]:
    """Where a unit's vectors are between iterations."""
    item, pools, work = Object(kind, unit), self._settings.pools, self._settings.work
    homes: dict[Tier, list[Slice]] = {}
    for piece in pools.vectors[kind]:
      homes.setdefault(pools.home(item, piece, work), []).append(piece)
    return [
      Access(tier, item, Mode.READ, tuple(slices), pools.home_slot(item, tier, work))
      for tier, slices in homes.items()
    ]
