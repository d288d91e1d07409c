"""Seconds of a derived list on a machine, before it runs.

The simulation walks the list as the executor does: each queue takes, among its steps whose waits
are over, the one listed first. The bound is what the busiest resource needs with no
waiting at all.
"""

import dataclasses
import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping

from schedules.pools import Pools
from schedules.steps import RESIDENT_UNIT, Action, Kind, Queue, Step, Work


@dataclasses.dataclass(frozen=True)
class Profile:
  """What a machine takes for one run's computations and transfers.

  The step of the resident parameters counts as nothing. `rates` are bytes per second of each link,
  and of the states that an update goes through. `shared` are queues that compete for one resource:
  where the device is the CPU, its computations, the updates and the copies share the cores.
  """

  forward_seconds: float  # one unit, one micro-batch
  backward_seconds: float
  last_backward_seconds: float  # forward, loss and backward of the last unit
  rates: Mapping[Queue, float]
  shared: frozenset[Queue] = frozenset()

  def resource(self, queue: Queue) -> str:
    """What a queue occupies while it works: two queues of one resource take turns."""
    return "shared" if queue in self.shared else queue.value

  def seconds(self, step: Step, work: Work, pools: Pools) -> float:
    """How long a step takes by itself."""
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
  """Runs a finite list in simulated time; spans are in the order in which their steps begin."""
  listed = {step.index: step for step in steps}
  blocked = {i: sum(w in listed for w in step.waits) for i, step in listed.items()}
  dependents: dict[int, list[int]] = defaultdict(list)
  for i, step in listed.items():
    for wait in step.waits:
      dependents[wait].append(i)
  ready: dict[Queue, list[int]] = {queue: [] for queue in Queue}
  for i, count in blocked.items():
    if count == 0:
      heapq.heappush(ready[listed[i].queue], i)
  running: list[tuple[float, int]] = []
  busy: set[str] = set()
  now, spans = 0.0, []
  while True:
    for queue in sorted((q for q in Queue if ready[q]), key=lambda q: ready[q][0]):
      if profile.resource(queue) not in busy:
        step = listed[heapq.heappop(ready[queue])]
        stop = now + profile.seconds(step, work, pools)
        spans.append(SimulatedSpan(step, now, stop))
        heapq.heappush(running, (stop, step.index))
        busy.add(profile.resource(queue))
    if not running:
      return spans
    now, ended = heapq.heappop(running)
    busy.discard(profile.resource(listed[ended].queue))
    for i in dependents[ended]:
      blocked[i] -= 1
      if blocked[i] == 0:
        heapq.heappush(ready[listed[i].queue], i)


def busy_seconds(
  steps: Iterable[Step], profile: Profile, work: Work, pools: Pools
) -> dict[str, float]:
  """Seconds of work of each resource; the largest of them bounds the whole from below."""
  busy: dict[str, float] = defaultdict(float)
  for step in steps:
    busy[profile.resource(step.queue)] += profile.seconds(step, work, pools)
  return dict(busy)
