"""How much memory is free, on a machine and in a container."""

import pytest

from offload.free_memory import free_memory


@pytest.fixture
def system(tmp_path):
  """Writes files of a system; its machine has 20 MiB available."""

  def write(**files):
    for name, text in files.items():
      path = tmp_path / name.replace("__", "/")
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    return tmp_path

  (tmp_path / "proc").mkdir()
  (tmp_path / "proc/meminfo").write_text(
    "MemTotal:       24 kB\nMemFree:        1 kB\nMemAvailable:   20480 kB\n"
  )
  return write


def group(folder, names, limit, use, stat):
  values = dict(zip(names, (limit, use), strict=True)) | {"memory.stat": stat}
  return {f"{folder}__{name}": f"{value}\n" for name, value in values.items()}


V1 = ("sys__fs__cgroup__memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"))
V2 = ("sys__fs__cgroup", ("memory.max", "memory.current"))


def test_cache_that_gives_way_is_free(system):
  assert free_memory(system()) == 20 * 2**20


@pytest.mark.parametrize("version, prefix", [(V1, "total_"), (V2, "")])
def test_a_containers_limit_holds(system, version, prefix):
  stat = f"anon 7\n{prefix}inactive_file 1500000\n{prefix}active_file 300000\nother 9"
  root = system(**group(*version, 8_000_000, 5_000_000, stat))
  assert free_memory(root) == 8_000_000 - 5_000_000 + 1_800_000
  assert free_memory(system(**group(*version, 4_000_000, 5_000_000, ""))) == 0
  assert free_memory(system(**group(*version, 2**62, 5_000_000, ""))) == 20 * 2**20


def test_a_container_without_a_limit_has_the_machines(system):
  assert free_memory(system(**group(*V2, "max", 5_000_000, "inactive_file 1"))) == 20 * 2**20


def test_this_machine_says_so():
  assert 0 < free_memory() < 2**50
