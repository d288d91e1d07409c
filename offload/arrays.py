"""What a run keeps on SSD: which arrays hold an object, and their reading and writing."""

from typing import Any

import jax
import numpy as np

from offload.buffers import aligned, span
from offload.layout import Layout
from offload.store import Store
from schedules.steps import Access, Kind, Object, Part

HostSpec = tuple[tuple[int, ...], Any]  # shape and dtype of a kind's host buffer


def host_specs(
  layout: Layout, boundary: jax.ShapeDtypeStruct, states: list[str], parameter_dtype: Any
) -> dict[Kind, HostSpec]:
  """The host buffer of each kind: flat vectors, the states' stacked, boundaries as they are."""
  n = layout.elements
  return {
    Kind.PARAMETERS: ((n,), parameter_dtype),
    Kind.STATES: ((len(states), n), np.float32),
    Kind.GRADIENTS: ((n,), np.float32),
    Kind.BOUNDARY: (boundary.shape, boundary.dtype),
    Kind.BOUNDARY_GRADIENT: (boundary.shape, boundary.dtype),
  }


class Arrays:
  """Objects in a store: one array for each part of a unit's vectors, by kind or state's name.

  An array is made when it is first written, so that what never spills leaves no file.
  """

  def __init__(self, store: Store, layout: Layout, states: list[str]):
    self._store, self._layout, self._states = store, layout, states
    self._made: set[str] = set()

  def read(self, item: Object, parts: tuple[Part, ...], buffer: np.ndarray) -> int:
    """Fills the parts of a host buffer; returns bytes."""
    return self._store.read(self._pieces(item, parts, buffer))

  def write(self, item: Object, parts: tuple[Part, ...], buffer: np.ndarray) -> int:
    """Writes the parts of a host buffer; returns bytes, once they are on the disk."""
    pieces = self._pieces(item, parts, buffer)
    for name, piece in pieces.items():
      if name not in self._made:
        self._store.create(name, piece.size, piece.dtype)
        self._made.add(name)
    return self._store.write(pieces)

  @property
  def bytes(self) -> int:
    return self._store.bytes

  def remove(self, item: Object, parts: tuple[Part, ...]) -> None:
    """Removes an object's arrays from the disk."""
    for name in self._pieces(item, parts, np.zeros((len(self._states), 0))):
      self._store.remove(name)
      self._made.discard(name)

  def close(self) -> None:
    """Removes the store."""
    self._store.close()

  def _pieces(
    self, item: Object, parts: tuple[Part, ...], buffer: np.ndarray
  ) -> dict[str, np.ndarray]:
    if item.micro_batch is not None:
      return {f"{item.kind}/{item.unit}.{item.micro_batch}": buffer.reshape(-1)}
    rows = zip(self._states, buffer, strict=True) if item.kind is Kind.STATES else None
    named = list(rows) if rows is not None else [(str(item.kind), buffer)]
    return {
      f"units/{item.unit}/{name}.{part}": span(row, self._layout.cuts, part)
      for name, row in named
      for part in parts
    }


class HostSlots:
  """One aligned array for each (kind, slot), made at its first use and then reused for good."""

  def __init__(self, specs: dict[Kind, HostSpec]):
    self._specs = specs
    self._arrays: dict[tuple[Kind, int | None], np.ndarray] = {}

  def __getitem__(self, access: Access) -> np.ndarray:
    key = (access.object.kind, access.slot)
    if key not in self._arrays:  # two queues may come at once, for different parts
      self._arrays.setdefault(key, self.spare(access.object.kind))
    return self._arrays[key]

  def spare(self, kind: Kind) -> np.ndarray:
    """A buffer outside the slots."""
    return aligned(*self._specs[kind])

  @property
  def bytes(self) -> int:
    return sum(array.nbytes for array in self._arrays.values())
