"""What a run keeps on SSD: which arrays hold an object, and their reading and writing."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from offload.buffers import Arena, aligned
from offload.cuts import Cuts, Run
from offload.generations import Generations
from offload.snapshot import Record
from schedules.pools import CUT
from schedules.steps import Access, Kind, Object, Slice, Tier

Make = Callable[[tuple[int, ...], Any], np.ndarray]  # an aligned array of a shape and dtype


class HostSpecs:
  """Shapes and dtypes of what host buffers hold: flat vectors, the states' stacked, boundaries as
  they are."""

  def __init__(
    self, cuts: Cuts, boundary: jax.ShapeDtypeStruct, states: list[str], parameter_dtype: Any
  ):
    self.cuts, self._boundary = cuts, boundary
    self._rows: dict[Kind, tuple[int, ...]] = dict.fromkeys(CUT, ())
    self._rows[Kind.STATES] = (len(states),)
    self._dtypes = {Kind.PARAMETERS: np.dtype(parameter_dtype)}

  def buffer(self, kind: Kind, home: Tier | None, make: Make) -> np.ndarray:
    """A new buffer for the slices of a kind that have a home there, or for what is not cut."""
    if kind not in CUT:
      return make(self._boundary.shape, self._boundary.dtype)
    return self.vector(kind, self.cuts.length(kind, home), make)

  def vector(self, kind: Kind, elements: int, make: Make = aligned) -> np.ndarray:
    """A new flat vector, or several stacked ones, for a kind that is cut."""
    return make((*self._rows[kind], elements), self._dtypes.get(kind, np.dtype(np.float32)))


class Arrays:
  """Objects on SSD: one array for each slice of a unit's vectors, by kind or state's name.

  An array is made when it is first written, so that what never spills leaves no file.
  """

  def __init__(self, generations: Generations, cuts: Cuts, states: list[str]):
    self._generations, self._cuts, self._states = generations, cuts, states

  def read(self, item: Object, slices: tuple[Slice, ...], buffer: np.ndarray) -> int:
    """Fills slices of a host buffer; returns bytes."""
    return self._generations.read(self._pieces(item, slices, buffer))

  def write(
    self, item: Object, slices: tuple[Slice, ...], buffer: np.ndarray, *, checksum: bool = False
  ) -> int:
    """Writes slices of a host buffer; returns bytes, once they are on the disk."""
    return self._generations.write(self._pieces(item, slices, buffer), checksum=checksum)

  def records(
    self, item: Object, slices: tuple[Slice, ...], buffer: np.ndarray
  ) -> dict[str, Record]:
    """What a commit notes of slices; the buffer tells their dtype alone."""
    names = self.names(item, slices, buffer)
    return {name: self._generations.record(name, buffer.dtype) for name in names}

  def names(self, item: Object, slices: tuple[Slice, ...], buffer: np.ndarray) -> list[str]:
    """Of the arrays of slices; the buffer, which may be empty, only tells how many rows it has."""
    return list(self._pieces(item, slices, buffer))

  def _pieces(
    self, item: Object, slices: tuple[Slice, ...], buffer: np.ndarray
  ) -> dict[str, np.ndarray]:
    if item.micro_batch is not None:
      return {f"{item.kind}/{item.unit}.{item.micro_batch}": buffer.reshape(-1)}
    rows = zip(self._states, buffer, strict=True) if item.kind is Kind.STATES else None
    named = list(rows) if rows is not None else [(str(item.kind), buffer)]
    return {
      f"units/{item.unit}/{name}.{piece.part}.{piece.home}": self._cuts.view(item.kind, piece, row)
      for name, row in named
      for piece in slices
    }


class HostSlots:
  """One aligned array for each (kind, slot), made at its first use and then reused for good."""

  def __init__(self, specs: HostSpecs):
    self._specs, self._arena = specs, Arena()
    self._making = threading.Lock()
    self._arrays: dict[tuple[Kind, int | None], np.ndarray] = {}

  def __getitem__(self, access: Access) -> np.ndarray:
    key = (access.object.kind, access.slot)
    with self._making:  # two queues may come at once, for different slices
      if key not in self._arrays:
        kind, home = access.object.kind, access.slices[0].home
        self._arrays[key] = self._specs.buffer(kind, home, self._arena.array)
      return self._arrays[key]

  def runs(self, accesses: tuple[Access, ...]) -> list[Run]:
    """What accesses hold of one unit's vector, or of its stacked ones."""
    return [
      run
      for access in accesses
      for run in self._specs.cuts.runs(access.object.kind, access.slices, self[access])
    ]

  @property
  def bytes(self) -> int:
    return sum(array.nbytes for array in self._arrays.values())
