"""The arrays on SSD: TensorStore (zarr3) in one folder that a run owns.

The store owns the on-disk format: one uncompressed array for each (kind, unit, part), so that an
array is a file of raw little-endian elements below its small metadata. Writes return after fsync.
"""

import json
import pathlib
from typing import Any

import numpy as np
import tensorstore as ts

_CHUNK_BYTES = 64 * 2**20  # larger chunks write no faster, smaller ones pay for an fsync each
_MANIFEST = "store.json"


class Store:
  """Flat arrays by name. Thread-safe: reads and writes of different arrays may overlap.

  Nothing that the store did not create is read, changed or removed.
  """

  def __init__(self, folder: pathlib.Path, description: dict[str, Any], *, direct_io: bool = False):
    """Creates the folder.

    Raises:
      ValueError: the folder holds files already.
    """
    self.folder = folder
    check_vacant(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._arrays: dict[str, ts.TensorStore] = {}
    self._spans: dict[str, int] = {}
    self._context = ts.Context(
      {
        "cache_pool": {"total_bytes_limit": 0},
        "file_io_concurrency": {"limit": 32},
        "file_io_mode": {"mode": "direct" if direct_io else "default"},
      }
    )
    (folder / _MANIFEST).write_text(json.dumps(description, indent=2) + "\n")

  def create(self, name: str, elements: int, dtype: Any) -> None:
    """Makes an array of zeros; it takes no disk space until it is written."""
    dtype = np.dtype(dtype)
    chunk = max(1, min(elements, _CHUNK_BYTES // dtype.itemsize))
    spec = {
      "driver": "zarr3",
      "store_data_equal_to_fill_value": True,  # zeros take their bytes like any other values
      "kvstore": {"driver": "file", "path": f"{self.folder / name}/"},
      "metadata": {
        "shape": [elements],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
      },
    }
    self._arrays[name] = ts.open(spec, create=True, open=False, context=self._context).result()
    self._spans[name] = elements * dtype.itemsize

  def read(self, names_and_targets: dict[str, np.ndarray]) -> int:
    """Reads whole arrays into preallocated ones, all at once; returns the bytes read."""
    jobs = [
      ts.array(target).write(self._arrays[name]) for name, target in names_and_targets.items()
    ]
    for job in jobs:
      job.result()
    return sum(self._spans[name] for name in names_and_targets)

  def write(self, names_and_sources: dict[str, np.ndarray]) -> int:
    """Writes whole arrays, all at once; returns the bytes written, once they are on the disk.

    The sources must not change until it returns.
    """
    jobs = [
      self._arrays[name].write(source, can_reference_source_data_indefinitely=True)
      for name, source in names_and_sources.items()
    ]
    for job in jobs:
      job.result()
    return sum(self._spans[name] for name in names_and_sources)

  @property
  def bytes(self) -> int:
    """Bytes of all arrays, written or not."""
    return sum(self._spans.values())

  def remove(self, name: str) -> None:
    """Removes one array and the folders that it leaves empty."""
    files = self._arrays.pop(name).kvstore
    del self._spans[name]
    assert files is not None
    files.delete_range(ts.KvStore.KeyRange()).result()
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
