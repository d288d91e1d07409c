"""The arrays on SSD: TensorStore (zarr3) in one folder that a run owns.

The store owns the on-disk format: one uncompressed array of one chunk for each (kind, unit, part),
so that an array is a file of raw little-endian elements, padded with zeros to whole blocks, below
its small metadata. TensorStore makes and removes the arrays, and any zarr reader opens them; the
elements are moved by `block_files`, since TensorStore's file driver writes through the page cache
to a new file each time, whatever its mode, and comes to half of the disk's speed so.
"""

import json
import pathlib
from typing import Any

import numpy as np
import tensorstore as ts

from offload.block_files import BLOCK, BlockFiles, offers_direct_io, sync_folders

_MANIFEST = "store.json"
_CHUNK = "c/0"  # zarr's name for the only chunk of a flat array


class Store:
  """Flat arrays by name. Thread-safe: reads and writes of different arrays may overlap.

  Nothing that the store did not create is read, changed or removed.
  """

  def __init__(self, folder: pathlib.Path, description: dict[str, Any], *, direct_io: bool = False):
    """Creates the folder.

    Raises:
      ValueError: the folder holds files already, or its file system has no direct I/O.
    """
    self.folder = folder
    check_vacant(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._arrays: dict[str, ts.KvStore] = {}
    self._spans: dict[str, int] = {}
    self._files = BlockFiles(direct_io=direct_io)
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps(description, indent=2) + "\n")
    if direct_io and not offers_direct_io(manifest):
      self.close()
      raise ValueError(
        f"--direct_io: the file system of --store={folder} does not offer it: leave it out, or name"
        " a folder on another disk."
      )

  def create(self, name: str, elements: int, dtype: Any) -> None:
    """Makes an array of zeros and takes its space on the disk.

    Raises:
      OSError: the disk is full; what is there of the array goes when the store is closed.
    """
    dtype = np.dtype(dtype)
    whole = -(-max(1, elements) * dtype.itemsize // BLOCK) * BLOCK // dtype.itemsize
    kvstore = {"driver": "file", "path": f"{self.folder / name}/"}
    spec = {
      "driver": "zarr3",
      "kvstore": kvstore,
      "metadata": {
        "shape": [elements],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [whole]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
      },
    }
    ts.open(spec, create=True, open=False).result()
    self._arrays[name] = ts.KvStore.open(kvstore).result()
    self._spans[name] = elements * dtype.itemsize
    chunk = self._chunk(name)
    chunk.parent.mkdir()
    self._files.allocate(chunk, whole * dtype.itemsize)
    sync_folders(chunk.parent, self.folder)

  def read(self, names_and_targets: dict[str, np.ndarray]) -> int:
    """Reads whole arrays into preallocated ones, all at once; returns the bytes read."""
    self._files.read(self._by_file(names_and_targets))
    return sum(self._spans[name] for name in names_and_targets)

  def write(self, names_and_sources: dict[str, np.ndarray]) -> int:
    """Writes whole arrays, all at once; returns the bytes written, once they are on the disk.

    The arrays are overwritten in place: until it returns they may hold any mixture of old and new.
    The sources must not change until it returns.
    """
    self._files.write(self._by_file(names_and_sources))
    return sum(self._spans[name] for name in names_and_sources)

  @property
  def bytes(self) -> int:
    """Bytes of all arrays, written or not."""
    return sum(self._spans.values())

  def remove(self, name: str) -> None:
    """Removes one array and the folders that it leaves empty."""
    self._arrays.pop(name).delete_range(ts.KvStore.KeyRange()).result()
    del self._spans[name]
    for folder in sorted((self.folder / name).glob("**/"), reverse=True):
      _remove_if_empty(folder)
    for folder in (self.folder / name).relative_to(self.folder).parents:
      _remove_if_empty(self.folder / folder)

  def close(self) -> None:
    """Removes what the store created, nothing else: its arrays, its manifest, its folder."""
    (self.folder / _MANIFEST).unlink(missing_ok=True)
    for name in list(self._arrays):
      self.remove(name)
    _remove_if_empty(self.folder)
    self._files.close()

  def _by_file(self, named: dict[str, np.ndarray]) -> dict[pathlib.Path, np.ndarray]:
    for name, array in named.items():
      if array.nbytes != self._spans[name]:
        raise ValueError(f"{name} has {self._spans[name]} bytes in the store, not {array.nbytes}.")
    return {self._chunk(name): array for name, array in named.items()}

  def _chunk(self, name: str) -> pathlib.Path:
    return self.folder / name / _CHUNK


def _remove_if_empty(folder: pathlib.Path) -> None:
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()


def check_vacant(folder: pathlib.Path) -> None:
  """Raises ValueError with a sentence where the folder cannot become a new store."""
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--store={folder} is a file: name a folder.")
  if (folder / _MANIFEST).exists():
    raise ValueError(
      f"--store={folder} holds the state of an earlier run: name another folder, or remove it."
    )
  if folder.exists() and any(folder.iterdir()):
    raise ValueError(f"--store={folder} holds files that are no store: name an empty folder.")
