"""Aligned arrays, and what becomes of freed memory."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offload import buffers
from offload.buffers import Arena, Trimmer, aligned

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


def test_memory_is_given_back_when_it_grows_beyond_what_was_in_use(monkeypatch):
  now, left, given = [100], [0], []  # the resident set, and what a trim leaves of it

  def give_back(keep):
    given.append((now[0], keep))
    now[0] = left[0]

  monkeypatch.setattr(buffers, "_resident_bytes", lambda: now[0])
  monkeypatch.setattr(buffers, "give_back", give_back)
  trim = Trimmer(growth=50, keep=7)
  for grown, in_use in ((150, 0), (151, 120), (150, 0), (170, 0), (171, 90), (170, 0), (999, 0)):
    now[0], left[0] = grown, in_use
    trim()
  assert given == [(151, 7), (171, 7), (999, 7)]


_HOLES = """
import ctypes, sys
from offload.buffers import Trimmer, _resident_bytes, recycle_freed

recycle_freed()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
trim = Trimmer(growth=8 << 20, keep=int(sys.argv[2]))
before = _resident_bytes()
blocks = []
for _ in range(24):
  blocks.append(c.malloc(4 << 20))
  ctypes.memset(blocks[-1], 1, 4 << 20)
  c.malloc(4096)  # stays, so that the block leaves a hole
for block in blocks:
  c.free(block)
if sys.argv[1] == "trimmed":
  trim()
print(_resident_bytes() - before)
last = c.malloc(40 << 20)  # behind all of them: the heap's end once it is freed
ctypes.memset(last, 1, 40 << 20)
c.free(last)
trim()
print(_resident_bytes() - before)
"""


@linux
def test_holes_in_the_heap_are_given_back_and_its_end_is_kept():
  def resident(how, keep):
    command = [sys.executable, "-c", _HOLES, how, str(keep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(line) / MIB for line in done.stdout.split()]

  if resident("as they are", 0)[0] < 90:
    pytest.skip("another C library, which keeps no holes")
  holes, end = resident("trimmed", 0)
  assert holes < 8 and end < 8
  holes, end = resident("trimmed", 16 * MIB)
  assert holes < 8 and 14 < end < 24


def test_training_gives_back_what_it_has_freed_and_remembers_what_is_in_use(
  streaming, tmp_path, monkeypatch
):
  """Over runs: what a trim has left in one of them is in use in the next."""
  resident, given = [0], []
  monkeypatch.setattr(buffers, "_resident_bytes", lambda: resident[0])
  monkeypatch.setattr(buffers, "give_back", lambda keep: given.append(resident[0]))
  streamer = streaming(tmp_path, "llama", "vertical", spare_bytes=2**40)
  for resident[0] in (0, 2**40, 2**40 + 1, 2**40 + 1, 2**41, 2**42):
    streamer.run(1)
  assert given == [2**40 + 1, 2**42]
  streamer.release()
