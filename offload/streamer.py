"""Trains a model whose units stream through memory under a schedule."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from offload.actions import Actions
from offload.arrays import Arrays, HostSlots, HostSpecs
from offload.cuts import Cuts
from offload.device_slots import DeviceSlots
from offload.executor import Executor
from offload.feed import Batch, Batches, Feed
from offload.layout import Layout
from offload.passes import Passes
from offload.probe import probe
from offload.programs import Model, Programs, Where
from offload.resident import Resident
from offload.result import Iteration, Result
from offload.store import Store
from offload.transfers import Transfers
from offload.transport import TRANSPORTS
from offload.update import Optimizer, Updater
from offload.updates import Updates
from offload.verdict import UNSCALED, Judge, LossScale
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
  Slice,
  Step,
  Tier,
  Work,
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to train.

  Attributes:
    clip_norm: gradients whose global norm exceeds it are scaled down to it; 0: they never are.
    loss_scale: of float16 parameters.

  Raises:
    ValueError: clipping, or a loss scale that changes, with a schedule whose steps are not whole.
  """

  schedule: Schedule
  work: Work
  pools: Pools
  optimizer: Optimizer
  seed: int = 0
  transport: str = "copy"
  overlap: bool = True
  clip_norm: float = 0.0
  loss_scale: LossScale = UNSCALED

  def __post_init__(self):
    mend = "and this schedule updates units before that: set --delayed_fraction=1"
    if not (self.clip_norm >= 0 and np.isfinite(self.clip_norm)):
      raise ValueError(f"--clip_norm={self.clip_norm} must be 0 (off) or a positive number.")
    if self.clip_norm and not self.work.whole_step:
      raise ValueError(
        f"--clip_norm={self.clip_norm} needs the norm of all gradients, which is known after the "
        f"last backward, {mend}."
      )
    if self.loss_scale != UNSCALED and not self.work.whole_step:
      raise ValueError(
        "--parameter_dtype=float16 skips a step whose gradients overflow, which is known after the "
        f"last backward, {mend}, or take --parameter_dtype=bfloat16."
      )


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
    self._judge = Judge(settings.clip_norm, settings.loss_scale)
    self._in_step = False  # a run was left with some units updated and others not
    self._resident = self._initialise(jax.random.key(settings.seed))

  @property
  def peak_bytes(self) -> dict[str, int]:
    """Bytes of the host buffers and of the SSD arrays that were made."""
    return {"host": self._host.bytes, "ssd": self._arrays.bytes}

  @property
  def loss_scale(self) -> LossScale:
    """Of the iteration to come."""
    return self._judge.loss_scale

  def run(
    self, first: int, count: int, on_iteration: Callable[[Iteration], None] = lambda i: None
  ) -> Result:
    """Trains iterations `first` to `first + count - 1`; nothing is left pending at the end.

    The first run begins with iteration 0, each further one where the one before has ended.

    `on_iteration` hears of each iteration when its backward pass is over. A run that does not
    return leaves the model in the middle of a step, and nothing can be asked of it any more.

    Raises:
      NonFiniteGradientError: names the unit and the iteration; where `work.whole_step` holds, the
        step is skipped instead.
    """
    self._check_whole()
    s = self._settings
    actions = self._actions()
    known, ends = [], [time.perf_counter()]

    def done(step: Step) -> None:
      if step.computation is not None and step.computation.unit == RESIDENT_UNIT:
        ends.append(time.perf_counter())
        known.append(self._known(step.iteration, actions.passes.loss(step.iteration)))
        on_iteration(known[-1])

    self._in_step = True
    executor = Executor(actions.perform, overlap=s.overlap)
    executor.run(derive(iterations(s.schedule, s.work, first, count), s.work, s.pools), done)
    self._in_step = False
    ends[-1] = time.perf_counter()  # the last iteration ends when its last write has landed
    moved = {link: dict(kinds) for link, kinds in actions.transfers.moved.items()}
    return Result(known, np.diff(ends).tolist(), moved, executor.spans, executor.busy)

  def evaluate(self, batches: Iterable[Batch]) -> float:
    """Mean loss in nats per token, nothing dropped; each unit is loaded once for all batches.

    Batches have the shape that the programs were compiled for.
    """
    self._check_whole()
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
    self._check_whole()
    return self._resident.parameters

  def close(self) -> None:
    """Removes the store: it belongs to this run alone."""
    self._arrays.close()

  def _actions(self) -> Actions:
    s, device = self._settings, DeviceSlots()
    feed = Feed(self._batches, s.work.micro_batches)
    return Actions(
      device,
      Transfers(self._layout, self._transport, device, self._host, self._arrays),
      Passes(s.work, self._programs, self._resident, device, self._judge, feed, s.seed),
      Updates(
        *(s.work, self._layout, self._updater, self._resident),
        *(device, self._host, self._judge),
      ),
    )

  def _known(self, iteration: int, loss: float) -> Iteration:
    verdict = self._judge[iteration]
    return Iteration(iteration, loss, float(verdict.norm), verdict.skips, verdict.loss_scale)

  def _check_whole(self) -> None:
    if self._in_step:
      raise RuntimeError(
        "A run of this model ended in the middle of a step: some of its parameters are updated and "
        "others are not."
      )

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
    self._check_whole()
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
