"""Bytes of host memory that this process can still take."""

import os
import pathlib

# A container's control group, in version 2 and in version 1: its folder, the files of its limit and
# of what it uses, and how its statistics begin the names of page cache, which gives way.
_GROUPS = (
  ("sys/fs/cgroup", "memory.max", "memory.current", ""),
  ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def free_memory(root: pathlib.Path = pathlib.Path("/")) -> int:
  """Of the machine's memory, or of the container's if that has less: what nobody uses, and page
  cache that gives way. The files of the system are looked for under `root`."""
  found = [_of_machine(root), *(_of_group(root / folder, *names) for folder, *names in _GROUPS)]
  return min(count for count in found if count is not None)


def _of_machine(root: pathlib.Path) -> int:
  try:
    kibibytes = _fields(root / "proc/meminfo")["MemAvailable:"]
  except (OSError, KeyError):  # not Linux
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return kibibytes * 1024


def _of_group(folder: pathlib.Path, limit: str, use: str, prefix: str) -> int | None:
  """None where there is no group, or none with a limit."""
  try:
    most, taken = int((folder / limit).read_text()), int((folder / use).read_text())
    statistics = _fields(folder / "memory.stat")
    taken -= sum(statistics.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))
  except (OSError, ValueError):  # the limit may be the word max
    return None
  return max(most - taken, 0)


def _fields(path: pathlib.Path) -> dict[str, int]:
  """Names and numbers, one of each a line."""
  lines = (line.split() for line in path.read_text().splitlines())
  return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
