"""Aligned arrays, and what becomes of freed memory."""

import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from offload import buffers
from offload.buffers import Arena, GiveBackSeldom, aligned

_FAULTS = """
import resource, sys
from offload.buffers import recycle_freed
if sys.argv[1] == "recycled":
  recycle_freed()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use(size):
  memory = libc.malloc(ctypes.c_size_t(size))
  ctypes.memset(memory, 1, size)
  libc.free(ctypes.c_void_p(memory))
use(64 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
  use(64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_come_back_without_page_faults():
  def faults(how):
    command = [sys.executable, "-c", _FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

  if faults("plain") <= 4 * 1000:
    pytest.skip("nothing to win on this machine")
  assert faults("recycled") < 100


MIB = 2**20
SIZES = (1, 4_096, 5_000, 3 * MIB + 8, MIB, 7 * MIB, 2 * MIB, 12)  # bytes
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _arena(sizes):
  make = Arena(chunk=8 * MIB).array
  return [make((size,), np.uint8) for size in sizes]


def _alone(sizes):
  return [aligned((size,), np.uint8) for size in sizes]


@pytest.mark.parametrize("make", [_arena, _alone])
def test_arrays_are_zeros_on_pages_of_their_own(make):
  arrays = make(SIZES)
  for i, array in enumerate(arrays):
    assert array.shape == (SIZES[i],) and not array.any()
    assert array.ctypes.data % 4096 == 0
    array[:] = i + 1
  assert [set(np.unique(array)) for array in arrays] == [{i + 1} for i in range(len(SIZES))]


def test_an_arena_fills_its_mappings_before_it_takes_more():
  sizes = [4 * MIB, 3 * MIB, 2 * MIB, MIB, 7 * MIB, 6 * MIB]
  arrays = _arena(sizes)
  starts = [array.ctypes.data for array in arrays]
  assert starts[1] == starts[0] + 4 * MIB
  assert abs(starts[2] - starts[0]) >= 8 * MIB, "there was no room left"
  assert starts[3] == starts[0] + 7 * MIB, "the first mapping is filled"
  assert starts[5] == starts[2] + 2 * MIB, "and the second"


def test_shape_and_dtype():
  array = Arena().array((3, 5), np.float32)
  array[1] = 2.5
  assert array.shape == (3, 5) and array.dtype == np.float32 and array.sum() == 12.5


@linux
def test_large_arrays_are_of_huge_pages_and_take_no_more_memory_than_they_have():
  """By what the system says of mappings: hg and nh, huge pages are wanted or not; dc, a forked
  process has none of it."""
  if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
    pytest.skip("no huge pages in this kernel")
  array = aligned((5 * MIB + 1,), np.uint8)
  first = array.ctypes.data
  assert first % (2 * MIB) == 0
  assert {"hg", "dc"} <= _flags_at(first) and "hg" in _flags_at(first + 4 * MIB - 1)
  assert {"nh", "dc"} <= _flags_at(first + 4 * MIB) and "nh" in _flags_at(first + 5 * MIB)


def _flags_at(address: int) -> set[str]:
  """Of the mapping that holds an address."""
  text = Path("/proc/self/smaps").read_text()
  for start, stop, flags in re.findall(r"^(\w+)-(\w+) .*(?:\n.*)*?\nVmFlags: (.*)$", text, re.M):
    if int(start, 16) <= address < int(stop, 16):
      return set(flags.split())
  raise AssertionError("no mapping")


def test_memory_is_given_back_seldom(monkeypatch):
  now, given = [0.0], []
  monkeypatch.setattr(buffers, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  monkeypatch.setattr(buffers, "give_back", lambda: given.append(now[0]))
  tidy = GiveBackSeldom(seconds=1.0)
  for now[0] in (0.5, 1.0, 1.5, 1.9, 2.25, 9.0):
    tidy()
  assert given == [1.0, 2.25, 9.0]
