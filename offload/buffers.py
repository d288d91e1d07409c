"""Aligned host memory."""

import ctypes
import math
import mmap
from typing import Any

import numpy as np

# Of mallopt (glibc's malloc.h); sizes are C's int.
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD, _NEVER = -8, -4, -1, 2**31 - 1


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An array of zeros on a page of its own: fit for direct I/O and for copies without staging."""
  dtype = np.dtype(dtype)
  count = math.prod(shape)
  memory = mmap.mmap(-1, max(1, count * dtype.itemsize))
  return np.frombuffer(memory, dtype, count).reshape(shape)


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


def give_back() -> None:
  """Returns freed memory to the system, where the C library offers it (glibc's does).

  Its arenas keep what many threads have freed: hundreds of megabytes after a few large units.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
