"""Measures what a run's computations and transfers take on this machine.

Each is timed by itself, with the cores that it keeps busy; then two at a time, to see what they
leave each other of the cores and of the disk.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from offload.arrays import HostSpecs
from offload.executor import Executor
from offload.layout import Layout
from offload.programs import Programs, Where
from offload.store import Store
from offload.transport import Transport
from offload.update import Updater
from schedules.simulate import Profile, Shared
from schedules.steps import Kind, Queue, Step, update

_REPEATS, _SECONDS = 15, 0.5  # of each thing: whichever ends first, but three at least
_STEPS = 400  # empty ones, to see what a step costs before it does anything
_UNHINDERED = 0.95  # of its speed alone: two that keep so much of it did not compete
Call = Callable[[], Any]


class _Cost(NamedTuple):
  seconds: float
  cores: float  # kept busy meanwhile by all threads of this process


def probe(
  layout: Layout,
  programs: Programs,
  resident: Any,
  updater: Updater,
  transport: Transport,
  specs: HostSpecs,
  store: Store,
  iteration: int,
) -> Profile:
  """A profile from the median of a few calls each, on buffers of the run's own sizes.

  What it writes to SSD are arrays of its own, which it removes. `iteration` is the one to come.
  """
  kinds = (Kind.PARAMETERS, Kind.STATES, Kind.GRADIENTS)
  vectors = {kind: specs.vector(kind, layout.elements) for kind in kinds}
  views, states = layout.views(vectors[Kind.PARAMETERS]), vectors[Kind.STATES]
  states.fill(1e-3)
  unit, gradients = transport.up(views), programs.unit_zeros()
  computations = _computations(programs, resident, unit)
  calls: dict[Queue, Call] = {
    Queue.HOST_TO_DEVICE: lambda: transport.up(views),
    Queue.DEVICE_TO_HOST: lambda: transport.down(gradients, layout.views(vectors[Kind.GRADIENTS])),
    Queue.HOST_UPDATE: lambda: updater.apply(iteration, *vectors.values(), decayed=layout.decayed),
  }
  device = [_cost(call) for call in computations]
  costs = {queue: _cost(call) for queue, call in calls.items()}
  bytes_of = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  sizes = zip(calls, (bytes_of(views), bytes_of(gradients), states.nbytes), strict=True)
  rates = {queue: size / costs[queue].seconds for queue, size in sizes}
  latencies = dict.fromkeys(Queue, _step_seconds())
  others = specs.vector(Kind.STATES, layout.elements)
  disk, moving = _disk(store, states, others, rates, latencies)
  costs |= moving
  if jax.default_backend() == "cpu":
    busy = sum(c.seconds * c.cores for c in device) / sum(c.seconds for c in device)
    costs[Queue.DEVICE] = _Cost(device[1].seconds, busy)
    calls[Queue.DEVICE] = computations[1]
  processor = _shared("cores", float(cores()), costs, calls, (Queue.DEVICE, Queue.HOST_UPDATE))
  forward, backward, last = (cost.seconds for cost in device)
  return Profile(forward, backward, last, rates, (processor, disk), latencies)


def _computations(programs: Programs, resident: Any, unit: Any) -> tuple[Call, Call, Call]:
  """Forward, backward, and the last unit's."""
  x = jax.numpy.zeros(programs.boundary.shape, programs.boundary.dtype)
  targets = np.zeros(x.shape[:2], np.int32)
  at = Where.of(0, 0, 0, 0, targets)
  head, scale = programs.head_part(resident), np.float32(1)
  zeros = lambda: (programs.unit_zeros(), programs.head_zeros())
  return (
    lambda: programs.forward(unit, x, at),
    lambda: programs.backward(unit, x, x, programs.unit_zeros(), at),
    lambda: programs.loss_backward(unit, head, x, targets, scale, *zeros(), at),
  )


def _disk(
  store: Store,
  states: np.ndarray,
  others: np.ndarray,
  rates: dict[Queue, float],
  latencies: dict[Queue, float],
) -> tuple[Shared, dict[Queue, _Cost]]:
  """Writes a unit's states and reads another's, a row each as the run does; adds to rates and
  latencies.

  One row and all of them tell the seconds of a step from those of its bytes.
  """
  written = {f"probe/written/{i}": row for i, row in enumerate(states)}
  found = {f"probe/read/{i}": row for i, row in enumerate(others)}
  for name, row in (written | found).items():
    store.create(name, row.size, row.dtype)
  store.write(found)  # space that was never written is read without the disk
  calls = {Queue.SSD_READ: lambda: store.read(found), Queue.SSD_WRITE: lambda: store.write(written)}
  costs = {queue: _cost(call) for queue, call in calls.items()}
  first = lambda rows: dict(list(rows.items())[:1])
  ones = (lambda: store.read(first(found)), lambda: store.write(first(written)))
  for (queue, cost), one in zip(costs.items(), ones, strict=True):
    more = (cost.seconds - _cost(one).seconds) / max(len(states) - 1, 1) * len(states)
    by_bytes = min(max(more, 0.5 * cost.seconds), cost.seconds)
    rates[queue] = states.nbytes / by_bytes
    latencies[queue] += cost.seconds - by_bytes
  whole = {queue: _Cost(cost.seconds, 1.0) for queue, cost in costs.items()}
  shared = _shared("disk", 2.0, whole, calls, (Queue.SSD_READ, Queue.SSD_WRITE))
  for name in written | found:
    store.remove(name)
  return shared, costs


def _shared(
  name: str,
  capacity: float,
  costs: dict[Queue, _Cost],
  calls: dict[Queue, Call],
  pair: tuple[Queue, Queue],
) -> Shared:
  """A resource of which a pair of queues gets at most `capacity` when both work."""
  demand = {queue: cost.cores for queue, cost in costs.items()}
  if all(queue in calls for queue in pair):
    alone = [costs[queue].seconds for queue in pair]
    speeds = _together([calls[queue] for queue in pair], alone)
    if min(speeds) < _UNHINDERED:
      had = sum(min(s, 1.0) * demand[q] for q, s in zip(pair, speeds, strict=True))
      capacity = min(capacity, max(had, *(demand[queue] for queue in pair)))
  return Shared(name, capacity, demand)


def _together(calls: list[Call], alone: list[float]) -> list[float]:
  """The speed of calls that are repeated at the same time, as shares of that alone."""
  seconds = max(_SECONDS, *(3 * s for s in alone))
  start = time.perf_counter()
  each: list[float] = [0.0] * len(calls)

  def repeat(i: int) -> None:
    count = 0
    while time.perf_counter() - start < seconds:
      jax.block_until_ready(calls[i]())
      count += 1
    each[i] = (time.perf_counter() - start) / count

  workers = [threading.Thread(target=repeat, args=(i,)) for i in range(len(calls))]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  return [a / e for a, e in zip(alone, each, strict=True)]


def _step_seconds() -> float:
  """What a step costs that hands over to another queue and does nothing else."""
  queues = (Queue.SSD_READ, Queue.HOST_UPDATE)
  steps = [Step(i, queues[i % 2], 0, update(0), (), (i - 1,) if i else ()) for i in range(_STEPS)]
  start = time.perf_counter()
  Executor(lambda step: None).run(steps)
  return (time.perf_counter() - start) / _STEPS


def cores() -> int:
  """Those that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cost(call: Call) -> _Cost:
  """Median wall time of a call, after one that is not counted."""
  jax.block_until_ready(call())
  times: list[float] = []
  used = time.process_time()
  while len(times) < 3 or (len(times) < _REPEATS and sum(times) < _SECONDS):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  used = time.process_time() - used
  return _Cost(max(statistics.median(times), 1e-9), used / sum(times))
