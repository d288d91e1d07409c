"""Arrays in generations: what a commit names is not written again until a later one is current.

The first write after a commit goes to another generation of the array, which then is overwritten
until the next commit. So commits cost room on the disk, and no traffic for what is on SSD anyway.
"""

import itertools
from collections.abc import Iterable

import numpy as np

from offload.buffers import aligned
from offload.checksums import Corrupt, checksums, verify
from offload.snapshot import Commit, Record
from offload.store import Store, StoreView


class Generations:
  """Arrays by name, in their newest generation.

  With `verify_reads` whatever is read is held against the checksum of what was written.
  """

  def __init__(self, store: Store, *, verify_reads: bool = False):
    self._store, self._verify_reads = store, verify_reads
    self._current: dict[str, int] = {}
    self._kept: dict[str, set[int]] = {}  # generations that commits name
    self._checksums: dict[str, list[int]] = {}  # of current generations, where known

  def read(self, targets: dict[str, np.ndarray]) -> int:
    """Fills arrays; returns bytes.

    Raises:
      Corrupt: with `verify_reads`, names the array whose bytes are not those that were written.
    """
    count = self._store.read({self._physical(name): array for name, array in targets.items()})
    if self._verify_reads:
      for name, array in targets.items():
        verify(self._physical(name), array, self._checksums[name])
    return count

  def write(self, sources: dict[str, np.ndarray], *, checksum: bool = False) -> int:
    """Writes arrays; returns bytes, once they are on the disk.

    `checksum` notes their checksums; without them a commit has to read the arrays again.
    """
    for name, array in sources.items():
      self._checksums.pop(name, None)
      if checksum or self._verify_reads:
        self._checksums[name] = checksums(array)
      self._make_room(name, array)
    return self._store.write({self._physical(name): array for name, array in sources.items()})

  def record(self, name: str, dtype: np.dtype) -> Record:
    """What a commit notes of an array's current generation."""
    physical = self._physical(name)
    elements = self._store.span(physical) // dtype.itemsize
    if name not in self._checksums:
      array = aligned((elements,), dtype)
      self._store.read({physical: array})
      self._checksums[name] = checksums(array)
    metadata = self._store.metadata_checksum(physical)
    return Record(self._current[name], elements, dtype.name, self._checksums[name], metadata)

  def keep(self, commits: Iterable[Commit]) -> None:
    """From now on the arrays that these commits name are not written."""
    self._kept = {}
    for commit in commits:
      for name, record in commit.arrays.items():
        self._kept.setdefault(name, set()).add(record.generation)

  def forget(self, names: Iterable[str]) -> None:
    """These are no part of the state any more: they go once no commit names them."""
    for name in names:
      del self._current[name]
      self._checksums.pop(name, None)

  def sweep(self) -> None:
    """Removes what no commit names, of arrays that are no part of the state."""
    for physical in self._store.names:
      if physical.rpartition(".")[0] not in self._current and not self._is_kept(physical):
        self._store.remove(physical)

  def resume(self, commits: list[Commit]) -> None:
    """Goes back to the last of the commits, or to nothing where there is none: checks all that it
    names, and removes what no commit does.

    Raises:
      Corrupt: names the array, and the bytes, that are not as they were written.
    """
    self.keep(commits)
    if commits:
      for name, record in commits[-1].arrays.items():
        check(self._store, f"{name}.{record.generation}", record)
        self._current[name] = record.generation
        self._checksums[name] = record.checksums
    for physical in self._store.names:
      if not self._is_kept(physical):
        self._store.remove(physical)

  @property
  def bytes(self) -> int:
    """Of all generations."""
    return self._store.bytes

  def _make_room(self, name: str, array: np.ndarray) -> None:
    kept = self._kept.get(name, ())
    if self._current.get(name, 0) in kept or name not in self._current:
      self._current[name] = next(g for g in itertools.count() if g not in kept)
    physical = self._physical(name)
    if physical in self._store and self._store.span(physical) != array.nbytes:
      self._store.remove(physical)  # cut otherwise by an earlier run
    if physical not in self._store:
      self._store.create(physical, array.size, array.dtype)

  def _is_kept(self, physical: str) -> bool:
    name, _, generation = physical.rpartition(".")
    return generation in map(str, self._kept.get(name, ()))

  def _physical(self, name: str) -> str:
    return f"{name}.{self._current[name]}"


def check(store: StoreView, physical: str, record: Record) -> None:
  """Raises `Corrupt` unless an array in a store is what a commit's record says."""
  if physical not in store or store.metadata_checksum(physical) != record.metadata:
    raise Corrupt(f"{physical}/zarr.json is not as it was written, or not there.")
  array = aligned((record.elements,), np.dtype(record.dtype))
  try:
    store.read({physical: array})
  except EOFError as error:
    raise Corrupt(str(error)) from error
  except FileNotFoundError:
    raise Corrupt(f"{physical}: its file of elements is not there.") from None
  verify(physical, array, record.checksums)
