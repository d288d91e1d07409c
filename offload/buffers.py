"""Host memory: aligned arrays, and what the C library does with freed memory."""

import contextlib
import ctypes
import functools
import math
import mmap
import os
from typing import Any

import numpy as np

_HUGE = 2 * 2**20  # bytes of a huge page, on x86-64 and with 64-bit ARM's usual pages

# Of mallopt (glibc's malloc.h); sizes are C's int.
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD, _NEVER = -8, -4, -1, 2**31 - 1


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An array of zeros on a page of its own: fit for direct I/O and for copies without staging.

  Of huge pages where the system offers them, but for what does not fill one at the end.
  """
  return Arena(chunk=1).array(shape, dtype)


class Arena:
  """Makes aligned arrays in a few mappings, so that all but little of them is of huge pages.

  Direct I/O pins memory, and describes it to the disk, page by page: with huge pages it takes a
  quarter of the processor time that it takes with usual ones, and the disk gives half as much again
  (arrays of 12 MB; 2 cores of a virtual machine). Memory goes back to the system when the arena and
  the mapping's arrays are gone, so all of them should have one lifetime. Not thread-safe.
  """

  def __init__(self, chunk: int = 64 * 2**20):
    """`chunk`: bytes of address space that are mapped at a time, or as many as an array needs.
    They become memory by huge pages, as they are touched."""
    self._chunk = chunk
    self._rooms: list[np.ndarray] = []  # what is left of each mapping

  def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of zeros on pages of its own."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    pages = max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
    i = next((i for i, room in enumerate(self._rooms) if room.size >= pages), len(self._rooms))
    if i == len(self._rooms):
      self._rooms.append(_mapping(max(pages, self._chunk)))
    room = self._rooms.pop(i)
    if room.size > pages:
      self._rooms.insert(i, room[pages:])
    return room[:size].view(dtype).reshape(shape)


def _mapping(size: int) -> np.ndarray:
  """Zeros, bytes; as many of them as fill huge pages are of those."""
  huge = size // _HUGE * _HUGE
  memory = mmap.mmap(-1, size + _HUGE * (huge > 0), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  octets = np.frombuffer(memory, np.uint8)
  start = -octets.ctypes.data % _HUGE if huge else 0
  rest = -(-(start + huge) // mmap.PAGESIZE) * mmap.PAGESIZE
  # A forked child has none of these. Where it shared them, on some kernels whoever writes first
  # gets another page, and a read from the disk that is under way goes to the old one.
  _advise(memory, "MADV_DONTFORK", 0, len(memory))
  _advise(memory, "MADV_HUGEPAGE", start, huge)
  _advise(memory, "MADV_NOHUGEPAGE", rest, len(memory) - rest)  # it would be larger than the rest
  return octets[start : start + size]


def _advise(memory: mmap.mmap, advice: str, start: int, length: int) -> None:
  """Where the system knows the advice; a kernel that was built without it refuses."""
  if length and hasattr(mmap, advice):
    with contextlib.suppress(OSError):
      memory.madvise(getattr(mmap, advice), start, length)


def recycle_freed() -> None:
  """Has glibc keep what is freed for the next allocation; call it before threads are made.

  XLA's CPU programs allocate their scratch memory and results anew at each call. Beyond 32 MiB
  glibc fetches these from the system each time and returns them: page faults took an eighth of a
  training computation. One arena, since those of threads cannot hold large blocks.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back(keep: int = 0) -> None:
  """Returns freed memory to the system, where the C library offers it (glibc's does), all but
  `keep` bytes at the heap's end.

  Its arenas keep what many threads have freed: hundreds of megabytes after a few large units.
  Giving a hundred of them back takes some milliseconds, in which nothing can be allocated, and
  pages that are needed again are faulted in anew.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(ctypes.c_size_t(keep))


class Trimmer:
  """Bounds what freed memory adds to the resident set; to be called often.

  Blocks of many sizes, allocated and freed in turn, leave holes that would come to a third of a
  training run's heap. They are given back when the resident set has grown by `growth` bytes beyond
  the most that a trim has left. The heap's end is kept, `keep` bytes of it: there the largest
  blocks, the programs' scratch memory, are made anew. So at a call freed memory, and the scratch
  memory of programs at work, come to about the two together at most. The price is page faults
  where holes come back fast: 5,000 in an iteration of 0.6 s (18 units of 3.2M parameters, 256
  tokens, 480 MiB of budgets).
  """

  def __init__(self, growth: int, keep: int):
    """`growth` should exceed what is freed and allocated anew again and again, or each time it
    would be given back, and `keep` the largest block of it."""
    self._growth, self._keep = growth, keep
    self._used = _resident_bytes()

  def __call__(self) -> None:
    if _resident_bytes() > self._used + self._growth:
      give_back(self._keep)
      self._used = max(self._used, _resident_bytes())


def _resident_bytes() -> int:
  """Of this process; 0 where the system does not tell it as Linux does."""
  try:
    return int(os.pread(_statm(os.getpid()), 256, 0).split()[1]) * mmap.PAGESIZE
  except OSError:
    return 0


@functools.cache
def _statm(process: int) -> int:
  """Stays open as long as the process: it is read after every computation, in a fifth of the time
  that it takes to open it too."""
  return os.open(f"/proc/{process}/statm", os.O_RDONLY)
