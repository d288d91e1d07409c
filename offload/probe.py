"""Measures what a run's computations and transfers take on this machine.

Each is timed by itself, with its data out of the processor's caches, as a run comes to it; then
beside others, to see what they leave each other of the cores and of the disk.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from offload.arrays import HostSpecs
from offload.buffers import Arena
from offload.executor import Executor
from offload.layout import Layout
from offload.programs import Programs, Where
from offload.store import Store
from offload.transport import Room, Transport
from offload.update import Updater
from offload.verdict import add_squares
from schedules.pools import Sizes
from schedules.simulate import Profile, Shared
from schedules.steps import SSD_QUEUES, Kind, Queue, Step, update

_REPEATS, _SECONDS = 15, 0.4  # of each thing: whichever ends first, but three at least
_DISK_REPEATS, _DISK_SECONDS = 60, 0.8  # others' use of a disk comes and goes within a second
_WINDOWS, _WINDOWS_SECONDS = 9, 1.5  # of calls at the same time, likewise
_USES = ("read", "written")
_ARRAYS = 2  # on SSD for each use, that calls take in turn
_CACHE = 32 * 2**20  # bytes that a processor may cache of what a run has moved
_STEPS = 400  # empty ones, to see what a step costs before it does anything
_UNHINDERED = 0.95  # of its speed alone: two that keep so much of it did not compete
Call = Callable[[], Any]


class _Cost(NamedTuple):
  seconds: float
  cores: float  # kept busy meanwhile by all threads of this process


class _Clock:
  """Times calls that find none of their data in the processor's caches, which `others` fill."""

  def __init__(self, others: np.ndarray, repeats: int = _REPEATS, seconds: float = _SECONDS):
    self._others, self._repeats, self._seconds = others, repeats, seconds

  def __call__(self, call: Call) -> _Cost:
    """Median wall time of a call, after one that is not counted."""
    jax.block_until_ready(call())
    times, used = list[float](), 0.0
    while len(times) < 3 or (len(times) < self._repeats and sum(times) < self._seconds):
      self._others.sum()  # a memset would pass the caches by
      before, start = time.process_time(), time.perf_counter()
      jax.block_until_ready(call())
      times.append(time.perf_counter() - start)
      used += time.process_time() - before
    return _Cost(max(statistics.median(times), 1e-9), used / sum(times))


class _Device(NamedTuple):
  """Seconds of computations, the backward to be run beside other calls, and what it makes."""

  forward: float
  backward: float
  last_backward: float
  call: Call
  cost: _Cost
  gradients: Any


def probe(
  layout: Layout,
  programs: Programs,
  resident: Any,
  updater: Updater,
  transport: Transport,
  specs: HostSpecs,
  store: Store,
  iteration: int,
  micro_batches: int,
) -> Profile:
  """A profile from the median of a few calls each, on buffers of the run's own sizes.

  What it writes to SSD are arrays of its own, which it removes. `iteration` is the one to come.
  """
  kinds = (Kind.PARAMETERS, Kind.STATES, Kind.GRADIENTS)
  make = Arena().array  # as a run's buffers are
  vectors = {kind: specs.vector(kind, layout.elements, make) for kind in kinds}
  vectors[Kind.STATES].fill(1e-3)
  views, others = layout.views(vectors[Kind.PARAMETERS]), np.ones(_CACHE // 8)
  clock = _Clock(others)
  unit = transport.up(views, Room(Arena()))
  device = _device(programs, resident, unit, micro_batches, clock)
  calls = _host_calls(layout, device.gradients, updater, transport, vectors, iteration)
  costs = {queue: clock(call) for queue, call in calls.items()}
  sizes = {
    Queue.HOST_TO_DEVICE: _bytes(views),
    Queue.DEVICE_TO_HOST: _bytes(device.gradients),
    Queue.HOST_UPDATE: vectors[Kind.STATES].nbytes,
  }
  rates = {queue: size / costs[queue].seconds for queue, size in sizes.items()}
  latencies = dict.fromkeys(Queue, _step_seconds())
  small = specs.buffer(Kind.BOUNDARY, None, make)
  disk = _Disk(store, vectors, small, _Clock(others, _DISK_REPEATS, _DISK_SECONDS))
  for queue, (seconds, rate) in disk.latencies_and_rates.items():
    latencies[queue] += seconds
    rates[queue] = rate
  on_cpu = jax.default_backend() == "cpu"
  disk_shared = disk.shared([(device.call, device.cost.seconds)] if on_cpu else [])
  calls, costs = calls | disk.calls, costs | disk.costs
  if on_cpu:
    calls, costs = calls | {Queue.DEVICE: device.call}, costs | {Queue.DEVICE: device.cost}
  busy = (Queue.DEVICE, Queue.HOST_UPDATE)
  shared = (_shared("cores", float(cores()), costs, calls, busy), disk_shared)
  disk.remove()
  return Profile(*device[:3], rates, shared, latencies)


def disk_bytes(sizes: Sizes) -> int:
  """What a probe writes to SSD, and removes."""
  kinds = (Kind.PARAMETERS, Kind.STATES, Kind.BOUNDARY)
  return len(_USES) * _ARRAYS * sum(map(sizes.bytes, kinds))


def _device(
  programs: Programs, resident: Any, unit: Any, micro_batches: int, clock: _Clock
) -> _Device:
  """Times forward, backward and the last unit's.

  A unit's sum is begun by one of its micro-batches and added to the norm by one: each backward has
  its share of that.
  """
  x = jax.numpy.zeros(programs.boundary.shape, programs.boundary.dtype)
  targets = np.zeros(x.shape[:2], np.int32)
  at = Where.of(0, 0, 0, 0, targets)
  head, scale = programs.head_part(resident), np.float32(1)

  def backward(sums: list[Any]) -> list[Any]:
    """Of the gradients it makes new sums."""
    return [programs.backward(unit, x, x, *sums, at)[1]]

  def last_backward(sums: list[Any]) -> list[Any]:
    return list(programs.loss_backward(unit, head, x, targets, scale, *sums, at)[2:])

  def adding(call: Callable[[list[Any]], list[Any]], sums: list[Any]) -> Call:
    def add() -> list[Any]:
      sums[:] = call(sums)
      return sums

    return add

  def mean(begins: float, adds: Call) -> float:
    others = micro_batches - 1
    later = clock(adds).seconds if others else 0.0
    return (begins + others * later + norm.seconds) / micro_batches

  begin, begin_last = lambda: backward([None]), lambda: last_backward([None, None])
  (gradients,) = begin()
  norm = clock(lambda: add_squares(np.float32(0), gradients))
  forward = clock(lambda: programs.forward(unit, x, at))
  cost, last = clock(begin), clock(begin_last)
  return _Device(
    forward.seconds,
    mean(cost.seconds, adding(backward, begin())),
    mean(last.seconds, adding(last_backward, begin_last())),
    *(begin, cost, gradients),
  )


def _host_calls(
  layout: Layout,
  gradients: Any,
  updater: Updater,
  transport: Transport,
  vectors: dict[Kind, np.ndarray],
  iteration: int,
) -> dict[Queue, Call]:
  """What moves to and from the device, and the update."""
  up, down = layout.views(vectors[Kind.PARAMETERS]), layout.views(vectors[Kind.GRADIENTS])
  room = Room(Arena())
  return {
    Queue.HOST_TO_DEVICE: lambda: transport.up(up, room),
    Queue.DEVICE_TO_HOST: lambda: transport.down(gradients, down),
    Queue.HOST_UPDATE: lambda: updater.apply(iteration, *vectors.values(), decayed=layout.decayed),
  }


class _Disk:
  """Reads and writes of a unit's states and of a boundary, each to arrays of its own in turn.

  Attributes:
    calls: of whole states, a row each as the run moves them.
    latencies_and_rates: a small array tells the seconds of a step from those of its bytes.
  """

  def __init__(
    self, store: Store, vectors: dict[Kind, np.ndarray], small: np.ndarray, clock: _Clock
  ):
    self._store, self._clock = store, clock
    groups = {
      "states": dict(enumerate(vectors[Kind.STATES])),
      "parameters": {0: vectors[Kind.PARAMETERS]},
      "small": {0: small.reshape(-1)},
    }
    # To be read and to be written: both are written once, since space that never was is read
    # without the disk.
    self._arrays = {
      (name, use): [
        {f"probe/{use}/{name}/{i}/{row}": array for row, array in rows.items()}
        for i in range(_ARRAYS)
      ]
      for name, rows in groups.items()
      for use in _USES
    }
    for arrays in itertools.chain.from_iterable(self._arrays.values()):
      for name, array in arrays.items():
        store.create(name, array.size, array.dtype)
      store.write(arrays)
    self.calls = {queue: self._call(queue, "states") for queue in SSD_QUEUES}
    self.costs = {queue: clock(call) for queue, call in self.calls.items()}
    self.latencies_and_rates = {queue: self._fit(queue, small.nbytes) for queue in SSD_QUEUES}

  def shared(self, beside: list[tuple[Call, float]]) -> Shared:
    """The disk, of which reads and writes together may get no more than either alone; and less
    while calls `beside`, with their seconds alone, keep the cores that it needs."""
    whole = {queue: _Cost(cost.seconds, 1.0) for queue, cost in self.costs.items()}
    return _shared("disk", 2.0, whole, self.calls, SSD_QUEUES, beside)

  def remove(self) -> None:
    for arrays in itertools.chain.from_iterable(self._arrays.values()):
      for name in arrays:
        self._store.remove(name)

  def _call(self, queue: Queue, name: str) -> Call:
    reads = queue is Queue.SSD_READ
    turn = itertools.cycle(self._arrays[name, "read" if reads else "written"])
    move = self._store.read if reads else self._store.write
    return lambda: move(next(turn))

  def _fit(self, queue: Queue, small: int) -> tuple[float, float]:
    """Seconds of a step beside its bytes, and bytes a second."""
    once = self._clock(self._call(queue, "small")).seconds
    seconds = self.costs[queue].seconds + self._clock(self._call(queue, "parameters")).seconds
    names = ("states", "parameters")
    size = sum(a.nbytes for name in names for a in self._arrays[name, "read"][0].values())
    by_bytes = max(seconds - 2 * once, 0.5 * seconds)
    rate = size / by_bytes
    return max(once - small / rate, 0.0), rate


def _shared(
  name: str,
  capacity: float,
  costs: dict[Queue, _Cost],
  calls: dict[Queue, Call],
  pair: tuple[Queue, Queue],
  beside: list[tuple[Call, float]] | None = None,
) -> Shared:
  """A resource of which a pair of queues gets at most `capacity` when both work, as calls `beside`
  do; unless these take of it too, either of the pair alone gets what it wants."""
  demand = {queue: cost.cores for queue, cost in costs.items()}
  if all(queue in calls for queue in pair):
    others = beside or []
    alone = [costs[queue].seconds for queue in pair] + [seconds for _, seconds in others]
    speeds = _together([calls[queue] for queue in pair] + [call for call, _ in others], alone)
    if min(speeds[: len(pair)]) < _UNHINDERED:
      had = sum(min(s, 1.0) * demand[q] for q, s in zip(pair, speeds, strict=False))
      least = 0.0 if others else max(demand[queue] for queue in pair)
      capacity = min(capacity, max(had, least))
  return Shared(name, capacity, demand)


def _together(calls: list[Call], alone: list[float]) -> list[float]:
  """The speed of calls that are repeated at the same time, as shares of that alone; medians of
  as many windows of time as there is time for, one where calls take long."""
  seconds = max(3 * max(alone), min(_SECONDS, _REPEATS * max(alone)))
  count = max(1, min(_WINDOWS, int(_WINDOWS_SECONDS / seconds)))
  with ThreadPoolExecutor(len(calls)) as pool:
    windows = [_window(calls, seconds, pool) for _ in range(count)]
  times = zip(*windows, strict=True)
  return [a / statistics.median(each) for a, each in zip(alone, times, strict=True)]


def _window(calls: list[Call], seconds: float, pool: ThreadPoolExecutor) -> list[float]:
  """The mean wall time of each call, all repeated for as long."""
  start = time.perf_counter()

  def repeat(call: Call) -> float:
    count, begun = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:  # a thread may begin late
      jax.block_until_ready(call())
      count += 1
    return (time.perf_counter() - begun) / count

  return list(pool.map(repeat, calls))  # raises what a call raised


def _step_seconds() -> float:
  """What a step costs that hands over to another queue and does nothing else."""
  queues = (Queue.SSD_READ, Queue.HOST_UPDATE)
  steps = [Step(i, queues[i % 2], 0, update(0), (), (i - 1,) if i else ()) for i in range(_STEPS)]
  start = time.perf_counter()
  Executor(lambda step: None).run(steps)
  return (time.perf_counter() - start) / _STEPS


def _bytes(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def cores() -> int:
  """Those that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
