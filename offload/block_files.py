"""Files of whole blocks, read and overwritten in place by pieces that are under way together.

With direct I/O a piece goes between the disk and the caller's memory: no copy, no page cache. A
file keeps its extents for good, since taking new ones at each write (for a temporary file and a
rename, say) halves the speed of a durable write; `experiments/tables/ssd.py` has the figures.
"""

import concurrent.futures
import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from offload.buffers import aligned
from offload.durable import naming

BLOCK = 4096  # bytes to which direct I/O aligns offsets, lengths and addresses, on any usual disk
# Of one system call, by direct I/O: smaller pieces keep the disk less busy and larger ones no more;
# larger ones by way of the page cache are slower by half.
_PIECE_BYTES = {True: 16 * 2**20, False: 4 * 2**20}
_IN_FLIGHT = 4  # pieces; one leaves gaps between calls


class BlockFiles:
  """Moves arrays to and from files. Thread-safe where files differ; reads do not wait for writes.

  Arrays are C-contiguous. Those that start at a multiple of BLOCK bytes are moved in place; with
  direct I/O, the last piece of one that ends elsewhere, or all of one that starts elsewhere, goes
  by a copy.
  """

  def __init__(self, *, direct_io: bool = False):
    self._direct = direct_io
    self._readers = ThreadPoolExecutor(_IN_FLIGHT, "ssd_read_piece")
    self._writers = ThreadPoolExecutor(_IN_FLIGHT, "ssd_write_piece")

  def allocate(self, path: pathlib.Path, count: int) -> None:
    """Makes a file of at least `count` zero bytes, whole blocks, and takes its space on the disk.

    Raises:
      OSError: the file exists, or the disk is full; then there is no file.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
      with naming(path):
        os.posix_fallocate(file, 0, max(BLOCK, _whole_blocks(count)))
        os.fsync(file)
    except OSError:
      path.unlink()
      raise
    finally:
      os.close(file)

  def read(self, targets: dict[pathlib.Path, np.ndarray]) -> None:
    """Fills each array from the start of its file.

    Raises:
      EOFError: a file is too short.
      OSError: the disk's error, with the file's name.
    """
    with self._open(targets, os.O_RDONLY) as files:
      self._all(self._readers, self._read, files, targets)

  def write(self, sources: dict[pathlib.Path, np.ndarray]) -> None:
    """Overwrites the start of each file; returns once the bytes are on the disk.

    That is: each file has had its fdatasync. A crash before leaves any mixture of old and new.

    Raises:
      OSError: the disk's error, with the file's name.
    """
    with self._open(sources, os.O_WRONLY) as files:
      self._all(self._writers, self._write, files, sources)
      both = zip(sources, files, strict=True)
      sync = lambda path, file: functools.partial(_named, path, os.fdatasync, file)
      _run(self._writers, [sync(path, file) for path, file in both])

  def close(self) -> None:
    """Ends the threads."""
    self._readers.shutdown()
    self._writers.shutdown()

  @contextlib.contextmanager
  def _open(self, paths: dict[pathlib.Path, np.ndarray], flags: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
      files = []
      for path in paths:
        files.append(os.open(path, flags | (os.O_DIRECT if self._direct else 0)))
        stack.callback(os.close, files[-1])
      yield files

  def _all(
    self,
    pool: ThreadPoolExecutor,
    move: Callable[[int, np.ndarray, int], None],
    files: list[int],
    arrays: dict[pathlib.Path, np.ndarray],
  ) -> None:
    jobs, count = [], _PIECE_BYTES[self._direct]
    for file, (path, array) in zip(files, arrays.items(), strict=True):
      octets = array.reshape(-1, copy=False).view(np.uint8)
      for at in range(0, octets.size, count):
        jobs.append(functools.partial(_named, path, move, file, octets[at : at + count], at))
    _run(pool, jobs)

  def _read(self, file: int, piece: np.ndarray, at: int) -> None:
    staged = self._must_stage(piece)
    into = _blocks(piece.size) if staged else piece
    done = 0
    while done < piece.size:
      count = os.preadv(file, [into[done:].data], at + done)
      if count == 0:
        raise EOFError(f"ends at byte {at + done}, before its array does.")
      done += count
    if staged:
      piece[:] = into[: piece.size]

  def _write(self, file: int, piece: np.ndarray, at: int) -> None:
    if self._must_stage(piece):
      staged = _blocks(piece.size)
      staged[: piece.size] = piece
      piece = staged
    done = 0
    while done < piece.size:
      done += os.pwritev(file, [piece[done:].data], at + done)

  def _must_stage(self, piece: np.ndarray) -> bool:
    return self._direct and (piece.ctypes.data % BLOCK > 0 or piece.size % BLOCK > 0)


def offers_direct_io(path: pathlib.Path) -> bool:
  """Whether the file system of an existing file takes O_DIRECT."""
  if not hasattr(os, "O_DIRECT"):
    return False
  try:
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
  except OSError:
    return False
  return True


def _named(path: pathlib.Path, call: Callable[..., Any], *args: Any) -> None:
  with naming(path):
    call(*args)


def _run(pool: ThreadPoolExecutor, jobs: list[Callable[[], None]]) -> None:
  """Returns when all are over, so that no file is closed under one, an interrupt or not; then
  raises what the first raised. The last is the caller's: a small transfer wakes no other thread."""
  others: list[Future[None]] = []
  last: Future[None] = Future()
  try:
    for job in jobs[:-1]:
      others.append(pool.submit(job))
    last.set_result(jobs[-1]() if jobs else None)
  except BaseException as error:
    last.set_exception(error)
  finally:
    _wait(others)
  for job in (*others, last):
    job.result()


def _wait(jobs: list[Future[None]]) -> None:
  """An interrupt is raised once they are over."""
  try:
    concurrent.futures.wait(jobs)
  except BaseException:
    concurrent.futures.wait(jobs)
    raise


def _blocks(count: int) -> np.ndarray:
  return aligned((_whole_blocks(count),), np.uint8)


def _whole_blocks(count: int) -> int:
  return -(-count // BLOCK) * BLOCK
