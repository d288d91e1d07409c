"""Trains a model whose units stream through memory under a schedule."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from offload import snapshot
from offload.actions import Actions, Batch, Batches
from offload.executor import Executor, Span
from offload.layout import Layout
from offload.probe import probe
from offload.programs import Model, Programs, Where
from offload.state import State
from offload.store import Store
from offload.transport import TRANSPORTS
from offload.update import Optimizer, Updater
from schedules.iterations import iterations
from schedules.pools import Pools
from schedules.registry import Schedule
from schedules.residency import derive
from schedules.simulate import Profile
from schedules.steps import RESIDENT_UNIT, Kind, Queue, Step, Work
from schedules.traffic import LINKS


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
  verify_reads: bool = False
  keep: int = 1  # commits


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run of iterations did.

  Attributes:
    losses: nats per token of each iteration, over all its micro-batches.
    seconds: wall time of each iteration, from the end of one to the end of the next.
    moved: bytes by link and kind, counted as they moved.
    spans: the steps of the first iterations, in seconds since the run began.
    busy: seconds of work of each queue.
    stretches: iterations of each call that the result is of; nothing is in flight between them.
  """

  losses: list[float]
  seconds: list[float]
  moved: dict[Queue, dict[Kind, int]]
  spans: list[Span]
  busy: dict[Queue, float]
  stretches: list[int]

  @classmethod
  def none(cls) -> "Result":
    return cls([], [], {link: {} for link in LINKS}, [], dict.fromkeys(Queue, 0.0), [])

  def then(self, later: "Result") -> "Result":
    """Two stretches of a run as one; spans are the first's."""
    moved = {
      link: {kind: kinds.get(kind, 0) + later.moved[link].get(kind, 0) for kind in Kind}
      for link, kinds in self.moved.items()
    }
    return Result(
      self.losses + later.losses,
      self.seconds + later.seconds,
      {link: {k: n for k, n in kinds.items() if n} for link, kinds in moved.items()},
      self.spans or later.spans,
      {queue: seconds + later.busy[queue] for queue, seconds in self.busy.items()},
      self.stretches + later.stretches,
    )


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
    self._updater = Updater(settings.optimizer, model.dtype)
    self._transport = TRANSPORTS[settings.transport]()
    self._state = State(
      *(model, layout, programs.boundary, self._updater, settings.work, settings.pools, store),
      verify_reads=settings.verify_reads,
    )
    commits = snapshot.all_of(store.folder)
    self.iteration = commits[-1].iteration if commits else 0
    if commits:
      self._state.resume(commits, settings.optimizer, settings.keep)
    else:
      self._state.initialise(jax.random.key(settings.seed), settings.optimizer)

  @property
  def peak_bytes(self) -> dict[str, int]:
    """Bytes of the host buffers and of the SSD arrays that were made."""
    return self._state.peak_bytes

  def run(
    self,
    count: int,
    on_iteration: Callable[[int, float], None] = lambda i, loss: None,
    *,
    stop: Callable[[], bool] = lambda: False,
    commits: bool = False,
  ) -> Result:
    """Trains `count` further iterations; nothing is left pending at the end.

    `on_iteration` is told each iteration's number and its loss when its backward pass is over. Once
    `stop` says so no further iteration is begun. `commits` says that a commit is to follow, so that
    the last iteration notes the checksums of what it writes.
    """
    s, state, first = self._settings, self._state, self.iteration
    actions = Actions(
      *(s.work, self._layout, state.cuts, self._programs, self._updater),
      *(state.resident, self._transport, state.host, state.arrays, self._batches, s.seed),
      first + count - 1 if commits else None,
    )
    losses, ends = [], [time.perf_counter()]

    def done(step: Step) -> None:
      if step.computation is not None and step.computation.unit == RESIDENT_UNIT:
        ends.append(time.perf_counter())
        losses.append(actions.loss(step.iteration))
        on_iteration(step.iteration, losses[-1])

    executor = Executor(actions.perform, overlap=s.overlap)
    lists = iterations(s.schedule, s.work, first, count, stop)
    executor.run(derive(lists, s.work, s.pools), done)
    ends[-1] = time.perf_counter()  # the last iteration ends when its last write has landed
    self.iteration += len(losses)
    moved = {link: dict(kinds) for link, kinds in actions.moved.items()}
    seconds = np.diff(ends).tolist()
    return Result(losses, seconds, moved, executor.spans, executor.busy, [len(losses)])

  def commit(self) -> int:
    """Makes the present state the one that a later run resumes from; returns the bytes written
    for it."""
    return self._state.commit(self.iteration, self._settings.keep)

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

  def probe(self) -> Profile:
    """What this run's computations and transfers take on this machine, measured one at a time."""
    return probe(
      *(self._layout, self._programs, self.resident_parameters, self._updater),
      *(self._transport, self._state.specs, self._store, self.iteration),
    )

  def unit_parameters(self, unit: int) -> Any:
    """One unit's parameters in host memory."""
    return self._layout.views(self._state.vector(Kind.PARAMETERS, unit))

  def unit_states(self, unit: int) -> dict[str, np.ndarray]:
    """One unit's optimizer vectors by name, flat, as the layout has them."""
    states = self._state.vector(Kind.STATES, unit)
    return dict(zip(self._updater.names, states, strict=True))

  @property
  def resident_parameters(self) -> Any:
    return self._state.resident.parameters

  def release(self) -> None:
    """Leaves the store to a later run."""
    self._store.release()

  def remove(self) -> None:
    """Removes the store."""
    self._store.remove_all()
