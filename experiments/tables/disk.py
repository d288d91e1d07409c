"""Ways to keep a unit's arrays on a disk: by raw calls, by TensorStore alone, by our store.

Each takes and fills the arrays of a unit together, as a training step does, and returns from a
write when the bytes are on the disk.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tensorstore as ts

from offload.store import Store

Arrays = list[np.ndarray]


@runtime_checkable
class Keeper(Protocol):
  """Keeps units of equal arrays. A unit's first write makes its files."""

  def write(self, unit: int, arrays: Arrays) -> None: ...
  def read(self, unit: int, arrays: Arrays) -> None: ...


class Raw:
  """Direct I/O on files that are overwritten in place, synced by fdatasync.

  Pieces of `piece` bytes (the whole array if None), `in_flight` at a time.
  """

  def __init__(self, folder: Path, piece: int | None = None, in_flight: int = 1):
    folder.mkdir()
    self._folder, self._piece = folder, piece
    self._pool = ThreadPoolExecutor(in_flight)

  def write(self, unit: int, arrays: Arrays) -> None:
    with self._opened(unit, arrays) as files:
      self._move(os.pwritev, files, arrays)
      list(self._pool.map(os.fdatasync, files))

  def read(self, unit: int, arrays: Arrays) -> None:
    with self._opened(unit, arrays) as files:
      self._move(os.preadv, files, arrays)

  @contextlib.contextmanager
  def _opened(self, unit: int, arrays: Arrays) -> Iterator[list[int]]:
    paths = [self._folder / f"{unit}.{i}" for i in range(len(arrays))]
    files = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o666) for path in paths]
    yield files
    for file in files:
      os.close(file)

  def _move(self, call, files: list[int], arrays: Arrays) -> None:
    jobs = []
    for file, array in zip(files, arrays, strict=True):
      octets = array.view(np.uint8)
      piece = self._piece or octets.size
      for at in range(0, octets.size, piece):
        part = octets[at : at + piece]
        jobs.append((self._pool.submit(call, file, [part], at), part.size))
    for job, count in jobs:
      if job.result() != count:
        raise OSError("The disk moved less than it was asked for.")


class RawNewFiles:
  """Direct I/O to a new file each time: fsync, rename over the old one, fsync of the folder.

  That is the order of TensorStore's file driver.
  """

  def __init__(self, folder: Path):
    folder.mkdir()
    self._folder = folder

  def write(self, unit: int, arrays: Arrays) -> None:
    for i, array in enumerate(arrays):
      path, new = self._folder / f"{unit}.{i}", self._folder / "new"
      file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o666)
      os.pwritev(file, [array.view(np.uint8).data], 0)
      os.fsync(file)
      os.close(file)
      new.rename(path)
      folder = os.open(self._folder, os.O_RDONLY)
      os.fsync(folder)
      os.close(folder)

  def read(self, unit: int, arrays: Arrays) -> None:
    for i, array in enumerate(arrays):
      file = os.open(self._folder / f"{unit}.{i}", os.O_RDONLY | os.O_DIRECT)
      os.preadv(file, [array.view(np.uint8).data], 0)
      os.close(file)


class TensorStoreAlone:
  """zarr3 by TensorStore's file driver; its direct mode is for reads, by its documentation."""

  def __init__(self, folder: Path, chunk_bytes: int):
    self._folder, self._chunk_bytes = folder, chunk_bytes
    self._context = ts.Context(
      {
        "cache_pool": {"total_bytes_limit": 0},
        "file_io_concurrency": {"limit": 32},
        "file_io_mode": {"mode": "direct"},
      }
    )
    self._open: dict[tuple[int, int], ts.TensorStore] = {}

  def write(self, unit: int, arrays: Arrays) -> None:
    jobs = [
      self._array(unit, i, a).write(a, can_reference_source_data_indefinitely=True)
      for i, a in enumerate(arrays)
    ]
    for job in jobs:
      job.result()

  def read(self, unit: int, arrays: Arrays) -> None:
    for job in [ts.array(a).write(self._array(unit, i, a)) for i, a in enumerate(arrays)]:
      job.result()

  def _array(self, unit: int, i: int, like: np.ndarray) -> ts.TensorStore:
    if (unit, i) not in self._open:
      spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{self._folder}/{unit}.{i}/"},
        "metadata": {
          "shape": [like.size],
          "data_type": like.dtype.name,
          "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [min(like.size, self._chunk_bytes // like.itemsize)]},
          },
          "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
      }
      self._open[unit, i] = ts.open(spec, create=True, context=self._context).result()
    return self._open[unit, i]


class OurStore:
  """`offload.store.Store`, as a run uses it."""

  def __init__(self, folder: Path, *, direct_io: bool):
    self._store = Store(folder, {}, direct_io=direct_io)
    self._made: set[str] = set()

  def write(self, unit: int, arrays: Arrays) -> None:
    named = self._named(unit, arrays)
    for name in named.keys() - self._made:
      self._store.create(name, named[name].size, named[name].dtype)
    self._made |= named.keys()
    self._store.write(named)

  def read(self, unit: int, arrays: Arrays) -> None:
    self._store.read(self._named(unit, arrays))

  def _named(self, unit: int, arrays: Arrays) -> dict[str, np.ndarray]:
    return {f"units/{unit}/{i}": array for i, array in enumerate(arrays)}


def drop_cache(folder: Path) -> None:
  """Takes the files below a folder out of the page cache; what was not on disk gets there first."""
  for path in folder.rglob("*"):
    if path.is_file():
      file = os.open(path, os.O_RDONLY)
      os.fsync(file)
      os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
      os.close(file)
