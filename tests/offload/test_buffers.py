"""What is freed is kept for the next allocation, where the C library can."""

import subprocess
import sys

import pytest

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
