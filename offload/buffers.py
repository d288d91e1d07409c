"""The memory behind the slots: aligned host arrays, and trees of device arrays."""

import math
import mmap
from typing import Any

import numpy as np

from schedules.steps import Access, Kind, Part, Tier


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An array of zeros on a page of its own: fit for direct I/O and for copies without staging."""
  dtype = np.dtype(dtype)
  count = math.prod(shape)
  memory = mmap.mmap(-1, max(1, count * dtype.itemsize))
  return np.frombuffer(memory, dtype, count).reshape(shape)


class HostSlots:
  """One array for each (kind, slot), made at its first use and then reused for good."""

  def __init__(self, specs: dict[Kind, tuple[tuple[int, ...], Any]]):
    self._specs = specs
    self._arrays: dict[tuple[Kind, int | None], np.ndarray] = {}

  def __getitem__(self, access: Access) -> np.ndarray:
    assert access.tier is Tier.HOST
    key = (access.object.kind, access.slot)
    if key not in self._arrays:
      self._arrays[key] = aligned(*self._specs[access.object.kind])
    return self._arrays[key]

  @property
  def bytes(self) -> int:
    return sum(array.nbytes for array in self._arrays.values())


class DeviceSlots:
  """What each (kind, slot) holds: a tree of device arrays, freed when the slot is filled anew."""

  def __init__(self):
    self._held: dict[tuple[Kind, int | None], Any] = {}

  def __getitem__(self, access: Access) -> Any:
    assert access.tier is Tier.DEVICE
    return self._held[access.object.kind, access.slot]

  def __setitem__(self, access: Access, value: Any) -> None:
    assert access.tier is Tier.DEVICE
    self._held[access.object.kind, access.slot] = value

  def take(self, access: Access) -> Any:
    """Empties the slot, so that its arrays can be donated."""
    return self._held.pop((access.object.kind, access.slot))


def span(vector: np.ndarray, cuts: dict[Part, tuple[int, int]], part: Part) -> np.ndarray:
  """The part's view of a flat vector, or of several stacked ones."""
  start, stop = cuts[part]
  return vector[..., start:stop]
