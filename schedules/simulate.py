"""Seconds of a derived list on a machine, before it runs.

The simulation walks the list as the executor does: each queue takes, among its steps whose waits
are over, the one listed first. It begins none ahead, which hides a millisecond of a step. Queues
that draw on one resource slow each other down while they work at the same time. The bound is what
the busiest resource needs with no waiting at all.
"""

import dataclasses
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from schedules.pools import Pools
from schedules.steps import RESIDENT_UNIT, Action, Kind, Queue, Step, Work

_SECONDS = 1e-12  # less than this is left of a step only by rounding
_CLOCK = 0.05  # cores: a measured demand of a little more than a whole number of threads is theirs


@dataclasses.dataclass(frozen=True)
class Shared:
  """What several queues draw on at once: the cores of a CPU, or a disk that reads and writes.

  Attributes:
    name: of the resource, in tables.
    capacity: how much there is of it.
    demand: how much of it each queue takes while it works alone: the cores it keeps busy, say.
  """

  name: str
  capacity: float
  demand: Mapping[Queue, float]

  def speeds(self, working: Iterable[Queue]) -> dict[Queue, float]:
    """How fast queues that work at the same time get on, as a share of their speed alone.

    A demand of n is that of ceil(n) equal threads, but for what a clock is wrong by. Every thread
    gets the same share, but none more than it can use; a step is as slow as its threads.
    """
    found = {q: self.demand.get(q, 0.0) for q in working}
    threads = {q: max(1, math.ceil(d - _CLOCK)) for q, d in found.items() if d > 0}
    left, level, speeds = self.capacity, math.inf, {}
    for queue in sorted(threads, key=lambda q: self.demand[q] / threads[q]):
      wanted = self.demand[queue] / threads[queue]
      level = left / sum(n for q, n in threads.items() if q not in speeds)
      speeds[queue] = min(1.0, level / wanted)
      left -= threads[queue] * min(wanted, level)
    return speeds


@dataclasses.dataclass(frozen=True)
class Profile:
  """What a machine takes for one run's computations and transfers, each by itself.

  The step of the resident parameters counts as nothing. `rates` are bytes per second of each link,
  and of the states that an update goes through; `latencies` are the seconds that a queue's step
  takes beside them.
  """

  forward_seconds: float  # one unit, one micro-batch
  backward_seconds: float
  last_backward_seconds: float  # forward, loss and backward of the last unit
  rates: Mapping[Queue, float]
  shared: Iterable[Shared] = ()
  latencies: Mapping[Queue, float] = dataclasses.field(default_factory=dict)

  def seconds(self, step: Step, work: Work, pools: Pools) -> float:
    """How long a step takes by itself."""
    return self.latencies.get(step.queue, 0.0) + self._seconds(step, work, pools)

  def speeds(self, working: Iterable[Queue]) -> dict[Queue, float]:
    """How fast queues that work at the same time get on, as a share of their speed alone."""
    found = [resource.speeds(working) for resource in self.shared]
    return {queue: min((s[queue] for s in found if queue in s), default=1.0) for queue in working}

  def _seconds(self, step: Step, work: Work, pools: Pools) -> float:
    c = step.computation
    if c is None:
      return pools.moved(step.queue, *step.moved) / self.rates[step.queue]
    if c.action is Action.UPDATE:
      if c.unit == RESIDENT_UNIT:
        return 0.0
      states = pools.bytes(Kind.STATES, pools.slices(Kind.STATES, (c.part,)))
      return states / self.rates[Queue.HOST_UPDATE]
    if c.action is Action.FORWARD:
      return self.forward_seconds
    return self.last_backward_seconds if c.unit == work.last else self.backward_seconds


@dataclasses.dataclass(frozen=True)
class SimulatedSpan:
  """A step's seconds from the beginning of the list."""

  step: Step
  start: float
  stop: float


def simulate(
  steps: Iterable[Step], profile: Profile, work: Work, pools: Pools
) -> list[SimulatedSpan]:
  """Runs a finite list in simulated time; spans are in the order in which their steps end."""
  waiting = _Waiting(steps)
  working: dict[Queue, Step] = {}
  left: dict[Queue, float] = {}  # seconds that each would still take by itself
  began: dict[Queue, float] = {}
  speeds: dict[tuple[Queue, ...], dict[Queue, float]] = {}
  now, spans = 0.0, []
  while True:
    for queue in Queue:
      if queue not in working and (step := waiting.next(queue)) is not None:
        working[queue], began[queue] = step, now
        left[queue] = profile.seconds(step, work, pools)
    if not working:
      return spans
    key = tuple(q for q in Queue if q in working)
    speed = speeds.get(key) or speeds.setdefault(key, profile.speeds(key))
    elapsed = min(left[queue] / speed[queue] for queue in key)
    now += elapsed
    for queue in key:
      left[queue] -= elapsed * speed[queue]
      if left[queue] <= _SECONDS:
        spans.append(SimulatedSpan(working[queue], began[queue], now))
        waiting.end(working.pop(queue))


class _Waiting:
  """The steps that have not begun."""

  def __init__(self, steps: Iterable[Step]):
    self._listed = {step.index: step for step in steps}
    self._blocked: dict[int, int] = {}
    self._dependents: dict[int, list[int]] = defaultdict(list)
    self._ready: dict[Queue, list[int]] = {queue: [] for queue in Queue}
    for i, step in self._listed.items():
      waits = [w for w in step.waits if w in self._listed]
      for wait in waits:
        self._dependents[wait].append(i)
      self._blocked[i] = len(waits)
      if not waits:
        heapq.heappush(self._ready[step.queue], i)

  def next(self, queue: Queue) -> Step | None:
    """Takes the queue's first step whose waits are over."""
    ready = self._ready[queue]
    return self._listed[heapq.heappop(ready)] if ready else None

  def end(self, step: Step) -> None:
    for i in self._dependents[step.index]:
      self._blocked[i] -= 1
      if self._blocked[i] == 0:
        heapq.heappush(self._ready[self._listed[i].queue], i)


def busy_seconds(
  steps: Iterable[Step], profile: Profile, work: Work, pools: Pools
) -> dict[str, float]:
  """Seconds of work of each queue and of what they share; the largest bounds the whole."""
  busy: dict[Queue, float] = defaultdict(float)
  for step in steps:
    busy[step.queue] += profile.seconds(step, work, pools)
  shared = {
    resource.name: sum(busy[q] * d for q, d in resource.demand.items() if q in busy)
    / resource.capacity
    for resource in profile.shared
  }
  return {queue.value: seconds for queue, seconds in busy.items()} | shared
