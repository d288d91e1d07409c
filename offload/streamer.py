"""Trains a model whose units stream through memory under a schedule."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from offload import snapshot
from offload.actions import Actions
from offload.buffers import Trimmer, give_back
from offload.device_slots import DeviceSlots
from offload.ending import Ending
from offload.executor import Executor
from offload.feed import Batch, Batches, Feed
from offload.layout import Layout
from offload.passes import Passes
from offload.probe import probe
from offload.programs import Model, Programs, Where
from offload.result import Iteration, Result
from offload.state import State
from offload.store import Store
from offload.transfers import Transfers
from offload.transport import TRANSPORTS
from offload.update import Optimizer, Updater
from offload.updates import Updates
from offload.verdict import UNSCALED, Judge, LossScale, check_whole_step
from schedules.iterations import iterations
from schedules.pools import Pools
from schedules.registry import Schedule
from schedules.residency import derive
from schedules.simulate import Profile
from schedules.steps import RESIDENT_UNIT, Kind, Step, Work

# Bytes of the heap that freed memory may fill beyond the budgets; or as much as one program takes
# for itself, where that is more: so large are the blocks that leave holes.
_HOLES = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to train.

  Attributes:
    clip_norm: gradients whose global norm exceeds it are scaled down to it; 0: they never are.
    loss_scale: of float16 parameters, at first.
    spare_bytes: of host memory, which holes in the heap may fill before they are given back.

  Raises:
    ValueError: clipping, or a loss scale, with a schedule whose steps are not whole.
  """

  schedule: Schedule
  work: Work
  pools: Pools
  optimizer: Optimizer
  seed: int = 0
  transport: str = "copy"
  overlap: bool = True
  verify_reads: bool = False
  keep: int = 1  # commits
  clip_norm: float = 0.0
  loss_scale: LossScale = UNSCALED
  spare_bytes: int = 0

  def __post_init__(self):
    check_whole_step(self.clip_norm, self.loss_scale, self.work.whole_step)


class Streamer:
  """A model in training and what moves it; begins anew unless the store holds a commit.

  Attributes:
    iteration: iterations that the state has been through.
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
    """Raises:
    Corrupt: the store's last commit is not as it was written; says what is not.
    """
    self._model, self._layout, self._settings, self._batches = model, layout, settings, batches
    self._programs, self._store = programs, store
    self._updater = Updater(settings.optimizer, model.dtype, layout.lengths)
    self._transport = TRANSPORTS[settings.transport]()
    self._state = State(
      *(model, layout, programs.boundary, self._updater, settings.work, settings.pools, store),
      verify_reads=settings.verify_reads,
    )
    commits = snapshot.all_of(store.folder)
    self.iteration = commits[-1].iteration if commits else 0
    self._in_step = False  # a run was left with some units updated and others not
    loss_scale = settings.loss_scale
    if commits:
      loss_scale = LossScale(**commits[-1].scalars["loss_scale"])
      self._state.resume(commits, settings.optimizer, settings.keep)
    else:
      self._state.initialise(jax.random.key(settings.seed), settings.optimizer)
    self._judge = Judge(settings.clip_norm, loss_scale)
    give_back()
    growth, keep = max(_HOLES, settings.spare_bytes), 0
    if programs.on_cpu:
      growth, keep = max(growth, programs.scratch_bytes), programs.reserved_bytes
    self._trim = Trimmer(growth, keep)

  @property
  def peak_bytes(self) -> dict[str, int]:
    """Bytes of the host buffers and of the SSD arrays that were made."""
    return self._state.peak_bytes

  def run(
    self,
    count: int,
    on_iteration: Callable[[Iteration], None] = lambda iteration: None,
    *,
    stop: Callable[[], bool] = lambda: False,
    commits: bool = False,
  ) -> Result:
    """Trains `count` further iterations; nothing is left pending at the end.

    `on_iteration` hears of each iteration when its backward pass is over. Once `stop` says so the
    running iteration is the last. `commits` says that a commit is to follow, as it is taken to
    after a stop, so that the last iteration notes the checksums of what it writes. A run that does
    not return leaves the model in the middle of a step, and nothing can be asked of it any more.

    Raises:
      NonFiniteGradientError: names the unit and the iteration; where `work.whole_step` holds, the
        step is skipped instead.
    """
    self._check_whole()
    s, first = self._settings, self.iteration
    ending = Ending(first, count, stop)
    actions = self._actions(lambda i: i >= ending.last and (commits or stop()))
    known, ends = [], [time.perf_counter()]

    def done(step: Step) -> None:
      if step.computation is None:
        return
      self._trim()
      if step.computation.unit == RESIDENT_UNIT:
        ends.append(time.perf_counter())
        known.append(self._known(step.iteration, actions.passes.loss(step.iteration)))
        on_iteration(known[-1])

    self._in_step = True
    # A GPU's loads would begin later: XLA lets a new buffer wait for all that was enqueued before.
    executor = Executor(actions.perform, overlap=s.overlap, ahead=self._programs.on_cpu)
    lists = iterations(s.schedule, s.work, first, count, stop)
    executor.run(derive(lists, s.work, s.pools), done, ending.admits)
    ends[-1] = time.perf_counter()  # the last iteration ends when its last write has landed
    self._in_step = False
    self.iteration += len(known)
    moved = {link: dict(kinds) for link, kinds in actions.transfers.moved.items()}
    seconds = np.diff(ends).tolist()
    return Result(known, seconds, moved, executor.spans, executor.busy, [len(known)])

  def commit(self) -> int:
    """Makes the present state the one that a later run resumes from; returns the bytes written
    for it."""
    self._check_whole()
    return self._state.commit(self.iteration, self._settings.keep, self._judge.loss_scale)

  @property
  def commit_bytes(self) -> int:
    """Bytes that a commit is to write."""
    return self._state.commit_bytes

  def evaluate(self, batches: Iterable[Batch]) -> float:
    """Mean loss in nats per token, nothing dropped; each unit is loaded once for all batches.

    Batches have the shape that the programs were compiled for.
    """
    batches = list(batches)
    at = [Where.of(self._settings.seed, 0, 0, 0, batch.positions) for batch in batches]
    resident, last = self.resident_parameters, self._model.units - 1
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

  def probe(self, micro_batches: int | None = None) -> Profile:
    """What this run's computations and transfers take on this machine; a backward pass is the mean
    of as many micro-batches as the run has, or of another number of them."""
    count = self._updater.scalars(self.iteration)
    profile = probe(
      *(self._layout, self._programs, self.resident_parameters, self._updater),
      *(self._transport, self._state.specs, self._store, self.iteration),
      micro_batches or self._settings.work.micro_batches,
    )
    self._updater.start(self.iteration, count)  # the probe has taken steps with it
    give_back()
    return profile

  def unit_parameters(self, unit: int) -> Any:
    """One unit's parameters in host memory."""
    self._check_whole()
    return self._layout.views(self._state.vector(Kind.PARAMETERS, unit))

  def unit_states(self, unit: int) -> dict[str, np.ndarray]:
    """One unit's optimizer vectors by name, flat, as the layout has them."""
    self._check_whole()
    states = self._state.vector(Kind.STATES, unit)
    return dict(zip(self._updater.names, states, strict=True))

  @property
  def resident_parameters(self) -> Any:
    self._check_whole()
    return self._state.resident.parameters

  def _actions(self, commits: Callable[[int], bool]) -> Actions:
    s, state, device = self._settings, self._state, DeviceSlots()
    host, feed = state.host, Feed(self._batches, s.work.micro_batches)
    return Actions(
      device,
      Transfers(self._layout, self._transport, device, host, state.arrays, commits),
      Passes(s.work, self._programs, state.resident, device, self._judge, feed, s.seed),
      Updates(s.work, self._layout, self._updater, state.resident, device, host, self._judge),
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

  def release(self) -> None:
    """Leaves the store to a later run."""
    self._store.release()

  def remove(self) -> None:
    """Removes the store."""
    self._store.remove_all()
