"""Between host arrays and device arrays, in two ways behind one seam.

`copy` copies around the compiled programs. `callback` moves the same bytes by a host callback in a
compiled program of its own. Both return when the copy is complete, so that its source may change.
"""

import itertools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from offload.buffers import Arena


class Room:
  """Memory for one tree after another, all alike, where the device is the CPU.

  The device's arrays stay and only their contents change. So nothing is allocated for what comes up
  again and again, and it lies in huge pages.
  """

  def __init__(self, arena: Arena):
    self._make = arena.array
    self._memory: Any = None
    self._arrays: Any = None  # JAX's, of the same memory

  def fill(self, views: Any) -> Any:
    """A tree of device arrays that last until the room is filled again."""
    if self._memory is None:
      self._memory = jax.tree.map(lambda view: self._make(view.shape, view.dtype), views)
      self._arrays = jax.tree.map(_alias, self._memory)
    jax.tree.map(np.copyto, self._memory, views)
    return self._arrays


def _alias(memory: np.ndarray) -> jax.Array:
  """JAX's own view of aligned memory; it shows what is written there later."""
  array = jax.device_put(memory, may_alias=True)
  if array.unsafe_buffer_pointer() != memory.ctypes.data:  # what is written later would be unseen
    raise RuntimeError("JAX has copied aligned memory, of which it should be a view.")
  return array


@runtime_checkable
class Transport(Protocol):
  def up(self, views: Any, room: Room | None = None) -> Any:
    """A tree of host arrays to a tree of device arrays of their own memory: with a room perhaps of
    the room's, when nothing may read any more what came up in it before."""
    ...

  def down(self, arrays: Any, views: Any) -> None:
    """A tree of device arrays into a tree of host arrays."""
    ...


class Copy:
  def up(self, views: Any, room: Room | None = None) -> Any:
    if room is not None and jax.default_backend() == "cpu":
      return room.fill(views)
    # device_put and may_alias=False may alias host memory on CPU; jnp.array never does.
    return jax.block_until_ready(jax.tree.map(lambda view: jnp.array(view, copy=True), views))

  def down(self, arrays: Any, views: Any) -> None:
    # Of an array made here: one on a GPU would keep its host copy as long as it lasts itself.
    copy = lambda view, array: np.copyto(view, np.asarray(array.addressable_data(0)))
    jax.tree.map(copy, views, arrays)


class Callback:
  """Programs whose body is an `io_callback`; one for each shape of tree that moves."""

  def __init__(self):
    self._programs: dict[Any, Callable] = {}
    self._views: dict[int, Any] = {}  # what the callbacks at work read or fill, by ticket
    self._tickets = itertools.count()

  def up(self, views: Any, room: Room | None = None) -> Any:
    del room  # what a callback returns is the runtime's
    shapes = jax.tree.map(lambda view: jax.ShapeDtypeStruct(view.shape, view.dtype), views)
    return self._call(("up", _signature(shapes)), lambda: self._fetcher(shapes), views)

  def down(self, arrays: Any, views: Any) -> None:
    key = ("down", _signature(arrays))
    self._call(key, lambda: jax.jit(self._store), views, arrays)

  def _call(self, key: Any, make: Callable[[], Callable], views: Any, *arrays: Any) -> Any:
    if key not in self._programs:
      self._programs[key] = make()
    ticket = np.int32(next(self._tickets))
    self._views[int(ticket)] = views
    try:
      return jax.block_until_ready(self._programs[key](ticket, *arrays))
    finally:
      del self._views[int(ticket)]

  def _fetcher(self, shapes: Any) -> Callable:
    # The runtime may keep a callback's results as they are, so they must not be the pool's memory.
    fetch = lambda ticket: jax.tree.map(np.copy, self._views[int(ticket)])
    return jax.jit(lambda ticket: io_callback(fetch, shapes, ticket))

  def _store(self, ticket: jax.Array, arrays: Any) -> jax.Array:
    def store(ticket, arrays):
      jax.tree.map(
        lambda view, array: np.copyto(view, np.asarray(array)), self._views[int(ticket)], arrays
      )
      return np.int32(0)

    return io_callback(store, jax.ShapeDtypeStruct((), jnp.int32), ticket, arrays)


TRANSPORTS: dict[str, Callable[[], Transport]] = {"copy": Copy, "callback": Callback}


def _signature(tree: Any) -> Any:
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
