"""The arrays on SSD: TensorStore (zarr3) in one folder that a run owns.

The store owns the on-disk format: one uncompressed array of one chunk for each slice of a unit's
vector, boundary or resident leaf, so that an array is a file of raw little-endian elements, padded
with zeros to whole blocks, below its small metadata. TensorStore makes the arrays, and any zarr
reader opens them; the elements are moved by `block_files`, since TensorStore's file driver writes
through the page cache to a new file each time, whatever its mode, and comes to half of the disk's
speed so.
"""

import contextlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from offload import lock, manifest, snapshot
from offload.block_files import BLOCK, BlockFiles, offers_direct_io
from offload.durable import make_folders, sync_folders
from offload.manifest import Manifest

_CHUNK = "c/0"  # zarr's name for the only chunk of a flat array
_METADATA = "zarr.json"
_HALF_WRITTEN = ".__lock"  # what TensorStore adds to a file's name until it is whole


class StoreView:
  """The flat arrays of a store by name, to be read: takes no lock, and writes nothing.

  Thread-safe. A run may be at work in the same folder; what its commits name stays as it is.
  """

  def __init__(self, folder: pathlib.Path, found: Manifest, *, direct_io: bool = False):
    self.folder, self.manifest = folder, found
    self._spans: dict[str, int] = {}
    self._chunks: dict[str, pathlib.Path] = {}  # files of arrays: a path takes time to make
    self._files = BlockFiles(direct_io=direct_io)
    for root, _, files in os.walk(folder):  # which lets folders vanish meanwhile, as rglob may not
      if _METADATA in files:
        self._attach(pathlib.Path(root) / _METADATA)

  def __contains__(self, name: str) -> bool:
    return name in self._spans

  @property
  def names(self) -> list[str]:
    """All arrays."""
    return list(self._spans)

  @property
  def bytes(self) -> int:
    """Bytes of all arrays, written or not."""
    return sum(self._spans.values())

  def span(self, name: str) -> int:
    """Bytes of an array."""
    return self._spans[name]

  def read(self, names_and_targets: dict[str, np.ndarray]) -> int:
    """Reads whole arrays into preallocated ones, all at once; returns the bytes read."""
    self._files.read(self._by_file(names_and_targets))
    return sum(self._spans[name] for name in names_and_targets)

  def metadata_checksum(self, name: str) -> int:
    """Of the array's own metadata file."""
    return zlib.crc32((self.folder / name / _METADATA).read_bytes())

  def close(self) -> None:
    """Ends the threads that read."""
    self._files.close()

  def _attach(self, metadata: pathlib.Path) -> None:
    """Takes up an array that is there, if the store made it, and made it there."""
    name = metadata.parent.relative_to(self.folder).as_posix()
    try:
      fields = json.loads(metadata.read_bytes())
      if fields["attributes"] == {"store": self.manifest.id, "name": name}:
        self._spans[name] = fields["shape"][0] * np.dtype(fields["data_type"]).itemsize
    except (ValueError, KeyError, TypeError, IndexError, FileNotFoundError):
      pass  # not ours, or damaged: what a commit names is checked against its record

  def _by_file(self, named: dict[str, np.ndarray]) -> dict[pathlib.Path, np.ndarray]:
    for name, array in named.items():
      if array.nbytes != self._spans[name]:
        raise ValueError(f"{name} has {self._spans[name]} bytes in the store, not {array.nbytes}.")
    return {self._chunk(name): array for name, array in named.items()}

  def _chunk(self, name: str) -> pathlib.Path:
    if name not in self._chunks:
      self._chunks[name] = self.folder / name / _CHUNK
    return self._chunks[name]


class Store(StoreView):
  """Flat arrays by name. Thread-safe: reads and writes of different arrays may overlap.

  Nothing that the store did not create is read, changed or removed.
  """

  def __init__(
    self, folder: pathlib.Path, configuration: Mapping[str, Any], *, direct_io: bool = False
  ):
    """Opens the folder's store of this configuration, or makes a new one.

    Raises:
      ValueError: the folder holds something else, another process uses it, or its file system has
        no direct I/O.
    """
    manifest.check(folder, configuration)  # before anything is made
    make_folders(folder)
    self._lock = lock.Lock(folder, "--store")
    try:
      found = manifest.check(folder, configuration)  # again: now nobody else changes it
      made = found or manifest.create(folder, configuration)
    except BaseException:
      self._lock.release()
      raise
    super().__init__(folder, made, direct_io=direct_io)
    if direct_io and not offers_direct_io(folder / manifest.NAME):
      (self.release if found else self.remove_all)()
      raise ValueError(
        f"--direct_io: the file system of --store={folder} does not offer it: leave it out, or name"
        " a folder on another disk."
      )

  def create(self, name: str, elements: int, dtype: Any) -> None:
    """Makes an array of zeros and takes its space on the disk.

    Raises:
      OSError: the disk is full, or something is in the way; what is there of the array goes with
        the store.
    """
    dtype = np.dtype(dtype)
    whole = -(-max(1, elements) * dtype.itemsize // BLOCK) * BLOCK // dtype.itemsize
    spec = {
      "driver": "zarr3",
      "kvstore": {"driver": "file", "path": f"{self.folder / name}/"},
      "metadata": {
        "shape": [elements],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [whole]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {"store": self.manifest.id, "name": name},
      },
    }
    try:
      ts.open(spec, create=True, open=False).result()
    except (ValueError, RuntimeError) as error:
      raise _as_os_error(error, f"{name}/{_METADATA}") from error
    self._spans[name] = elements * dtype.itemsize
    chunk = self._chunk(name)
    chunk.parent.mkdir(exist_ok=True)
    self._files.allocate(chunk, whole * dtype.itemsize)
    sync_folders(chunk.parent, self.folder)

  def write(self, names_and_sources: dict[str, np.ndarray]) -> int:
    """Writes whole arrays, all at once; returns the bytes written, once they are on the disk.

    The arrays are overwritten in place: until it returns they may hold any mixture of old and new.
    The sources must not change until it returns.
    """
    self._files.write(self._by_file(names_and_sources))
    return sum(self._spans[name] for name in names_and_sources)

  def remove(self, name: str) -> None:
    """Removes one array and the folders that it leaves empty; its metadata last, so that an array
    half removed when a run is killed is still known as the store's."""
    folder = self.folder / name
    for file in (_CHUNK, _METADATA + _HALF_WRITTEN, _METADATA):
      (folder / file).unlink(missing_ok=True)
    del self._spans[name]
    for parent in (folder / _CHUNK).relative_to(self.folder).parents:
      _remove_if_empty(self.folder / parent)

  def release(self) -> None:
    """Leaves the store as it is; another process may use it."""
    self.close()
    self._lock.release()

  def remove_all(self) -> None:
    """Removes what the store made, nothing else: arrays, commits, manifest, folder."""
    snapshot.remove(self.folder)
    for name in self.names:
      self.remove(name)
    (self.folder / manifest.NAME).unlink(missing_ok=True)
    self.release()
    _remove_if_empty(self.folder)


def _as_os_error(error: Exception, file: str) -> OSError:
  """What TensorStore says in many words, the system's error among them."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  if code is None:
    return OSError(f"{file} could not be made: {error}")
  return OSError(int(code[1]), os.strerror(int(code[1])), file)


def _remove_if_empty(folder: pathlib.Path) -> None:
  """Leaves what cannot go, a mount point say."""
  if folder.is_dir() and not any(folder.iterdir()):
    with contextlib.suppress(OSError):
      folder.rmdir()
