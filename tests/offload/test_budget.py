"""What the memory budgets leave."""

import jax
import pytest

from offload.budget import spare_bytes
from offload.layout import Layout
from offload.programs import Programs, Shape
from offload.sizes import sizes_of
from schedules.placement import smallest
from schedules.steps import Tier, Work


@pytest.mark.parametrize(("platform", "spare"), [("cpu", 5 + 7), ("gpu", 5)])
def test_a_device_budget_is_of_the_hosts_memory_on_a_cpu_alone(
  small_model, monkeypatch, platform, spare
):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  unit = jax.eval_shape(small_model.init_unit, jax.random.key(0))
  work = Work(small_model.units, 2)
  pools = smallest(sizes_of(small_model, Layout.of(unit), Shape(2, 24), 2), work, True)
  peaks = pools.peak_bytes(work)
  limits = {Tier.HOST: peaks[Tier.HOST] + 5, Tier.DEVICE: peaks[Tier.DEVICE] + 100 + 7}
  assert spare_bytes(limits, pools, work, 100) == spare
  assert spare_bytes(limits | {Tier.HOST: None}, pools, work, 100) == spare - 5
  assert spare_bytes(limits | {Tier.HOST: 1}, pools, work, 100) == spare - 5


def test_two_programs_scratch_is_reserved_on_a_cpu_and_one_elsewhere(small_model, monkeypatch):
  """A CPU's computation begins while the one before it still holds its own, gradients that are to
  be added among it."""
  unit = jax.eval_shape(small_model.init_unit, jax.random.key(0))
  made = {}
  for platform in ("cpu", "gpu"):
    monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
    made[platform] = Programs(small_model, Layout.of(unit), Shape(2, 24))
  cpu, gpu = made["cpu"], made["gpu"]
  assert (cpu.on_cpu, gpu.on_cpu) == (True, False)
  inputs = 2 * 4 * cpu.boundary.size
  assert gpu.reserved_bytes == gpu.scratch_bytes + inputs
  assert cpu.reserved_bytes == 2 * cpu.scratch_bytes + inputs
  temporary = cpu.forward.memory_analysis().temp_size_in_bytes
  assert min(cpu.scratch_bytes, gpu.scratch_bytes) > temporary > 0
  head = cpu.head_part(jax.eval_shape(small_model.init_resident, jax.random.key(0)))
  for program, sums in ((cpu.backward, unit), (cpu.loss_backward, (unit, head))):
    temporary = program._begins.memory_analysis().temp_size_in_bytes
    added = 4 * sum(leaf.size for leaf in jax.tree.leaves(sums))
    assert cpu.scratch_bytes >= program.scratch_bytes == temporary + added
