"""Measures what a run's computations and transfers take on this machine, one at a time."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from offload.arrays import HostSpecs
from offload.layout import Layout
from offload.programs import Programs, Where
from offload.store import Store
from offload.transport import Transport
from offload.update import Updater
from schedules.simulate import Profile
from schedules.steps import Kind, Queue

_REPEATS, _SECONDS = 15, 0.5  # of each thing: whichever ends first, but three at least
_ON_CPU = frozenset({Queue.DEVICE, Queue.HOST_UPDATE, Queue.HOST_TO_DEVICE, Queue.DEVICE_TO_HOST})


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
  views = layout.views(vectors[Kind.PARAMETERS])
  unit = transport.up(views)
  device = _device_seconds(programs, resident, unit)
  up = _seconds(lambda: transport.up(views))
  gradients = programs.unit_zeros()
  down = _seconds(lambda: transport.down(gradients, layout.views(vectors[Kind.GRADIENTS])))
  states = vectors[Kind.STATES]
  states.fill(1e-3)
  read, write = _ssd_seconds(store, states)
  update = _seconds(lambda: updater.apply(iteration, *vectors.values(), decayed=layout.decayed))
  bytes_of = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  rates = {
    Queue.HOST_TO_DEVICE: bytes_of(views) / up,
    Queue.DEVICE_TO_HOST: bytes_of(gradients) / down,
    Queue.SSD_READ: states.nbytes / read,
    Queue.SSD_WRITE: states.nbytes / write,
    Queue.HOST_UPDATE: states.nbytes / update,
  }
  shared = _ON_CPU if jax.default_backend() == "cpu" else frozenset()
  return Profile(*device, rates, shared)


def _device_seconds(programs: Programs, resident: Any, unit: Any) -> tuple[float, float, float]:
  x = jax.numpy.zeros(programs.boundary.shape, programs.boundary.dtype)
  targets = np.zeros(x.shape[:2], np.int32)
  at = Where.of(0, 0, 0, 0, targets)
  head, scale = programs.head_part(resident), np.float32(1)
  forward = _seconds(lambda: programs.forward(unit, x, at))
  backward = _seconds(lambda: programs.backward(unit, x, x, programs.unit_zeros(), at))
  zeros = lambda: (programs.unit_zeros(), programs.head_zeros())
  last = _seconds(lambda: programs.loss_backward(unit, head, x, targets, scale, *zeros(), at))
  return forward, backward, last


def _ssd_seconds(store: Store, states: np.ndarray) -> tuple[float, float]:
  """Of a unit's states, read and written through the store, a row each as the run does."""
  rows = {f"probe/{i}": row for i, row in enumerate(states)}
  for name, row in rows.items():
    store.create(name, row.size, row.dtype)
  write = _seconds(lambda: store.write(rows))
  read = _seconds(lambda: store.read(rows))
  for name in rows:
    store.remove(name)
  return read, write


def _seconds(call: Callable[[], Any]) -> float:
  """Median wall time of a call, after one that is not counted."""
  jax.block_until_ready(call())
  times: list[float] = []
  while len(times) < 3 or (len(times) < _REPEATS and sum(times) < _SECONDS):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  return max(statistics.median(times), 1e-9)
