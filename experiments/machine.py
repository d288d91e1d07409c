"""What a measurement was made on: enough to read a table by, no name of a host, no path."""

import os
import platform
from typing import Any


def describe() -> dict[str, Any]:
  """CPU model, usable cores, memory in bytes, versions, and JAX's devices."""
  import jax  # not above: programs check their flags before they pay for JAX

  devices = jax.devices()
  return {
    "cpu": _cpu(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "memory_bytes": _memory_bytes(),
    "system": platform.system(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "devices": [device.device_kind for device in devices],
    "platform": devices[0].platform,
  }


def sentence(machine: dict[str, Any]) -> str:
  """A described machine in one line, for captions."""
  memory = machine["memory_bytes"]
  return ", ".join(
    [
      f"{machine['cores']} cores of {machine['cpu']}",
      f"{memory / 2**30:.0f} GiB of memory" if memory else "memory unknown",
      *([] if machine["platform"] == "cpu" else [" + ".join(machine["devices"])]),
      f"Python {machine['python']}",
      f"JAX {machine['jax']}",
    ]
  )


def block_io() -> dict[str, int]:
  """Bytes that this process has read from and written to block devices so far, as the system
  counts them; empty where it does not (only Linux does)."""
  try:
    with open("/proc/self/io") as file:
      counts = dict(line.split(": ") for line in file.read().splitlines())
  except OSError:
    return {}
  return {"ssd_read": int(counts["read_bytes"]), "ssd_written": int(counts["write_bytes"])}


def _cpu() -> str:
  try:
    with open("/proc/cpuinfo") as file:
      for line in file:
        if line.startswith("model name"):
          return line.partition(":")[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine() or "unknown"


def _memory_bytes() -> int | None:
  """Memory of the machine, or the container's limit where that is lower."""
  try:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (ValueError, OSError, AttributeError):
    return None
  try:
    with open("/sys/fs/cgroup/memory.max") as file:
      return min(physical, int(file.read()))
  except (OSError, ValueError):
    return physical
