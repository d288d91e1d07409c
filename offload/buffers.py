"""Aligned host memory."""

import ctypes
import math
import mmap
from typing import Any

import numpy as np


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An array of zeros on a page of its own: fit for direct I/O and for copies without staging."""
  dtype = np.dtype(dtype)
  count = math.prod(shape)
  memory = mmap.mmap(-1, max(1, count * dtype.itemsize))
  return np.frombuffer(memory, dtype, count).reshape(shape)


def give_back() -> None:
  """Returns freed memory to the system, where the C library offers it (glibc's does).

  Its arenas keep what many threads have freed: hundreds of megabytes after a few large units.
  """
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
