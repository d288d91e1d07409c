"""Counted traffic against closed forms, and the closed forms against the published ones."""

import pytest

from schedules import closed_forms
from schedules.iterations import iterations
from schedules.registry import SCHEDULES
from schedules.residency import derive
from schedules.steps import Kind, Part, Queue, Work
from schedules.traffic import count, of_run

GRID = [
  (u, m, d, k)
  for u in (4, 5, 7, 8)
  for m in (2, 3, 4, 6)
  for d, k in ((1, 2), (2, 2), (2, 3))
  if u >= k + 2
]


def steady(name, work, pools):
  steps = derive(iterations(SCHEDULES[name], work, 0, 4), work, pools)
  return count((s for s in steps if s.iteration == 2), pools)


def no_zeros(counts):
  return {link: {k: n for k, n in kinds.items() if n} for link, kinds in counts.items()}


@pytest.mark.parametrize("units, micro_batches, device, host", GRID)
def test_vertical_moves_what_its_closed_form_says(make_pools, units, micro_batches, device, host):
  counted = steady("vertical", Work(units, micro_batches), make_pools(device, host))
  assert counted == no_zeros(closed_forms.vertical(units, micro_batches, device, host))


@pytest.mark.parametrize("units, micro_batches, device, host", GRID)
def test_horizontal_moves_what_its_closed_form_says(make_pools, units, micro_batches, device, host):
  pools = make_pools(device, host, gradients=1.0)
  counted = steady("horizontal", Work(units, micro_batches), pools)
  assert counted == no_zeros(closed_forms.horizontal(units, micro_batches, device, host))


@pytest.mark.parametrize("name", ["vertical", "horizontal"])
@pytest.mark.parametrize("parts", [(Part.NOW,), (Part.NOW, Part.DELAYED)])
@pytest.mark.parametrize("length", [1, 4, 5, 9])
def test_a_long_run_repeats_its_iterations(make_pools, name, parts, length):
  work, pools = Work(4, 3, parts), make_pools(elements=dict.fromkeys(parts, 1))
  whole = count(derive(iterations(SCHEDULES[name], work, 0, length), work, pools), pools)
  assert of_run(SCHEDULES[name], work, pools, length) == whole


@pytest.mark.parametrize("u", range(4, 9))
@pytest.mark.parametrize("m", range(2, 7))
def test_the_published_counts(u, m):
  """GreedySnake's planner and ZeRO-Infinity, with what we keep in place taken off by name."""
  vertical = closed_forms.vertical(u, m, device=1, host=2)
  assert vertical[Queue.HOST_TO_DEVICE][Kind.PARAMETERS] == 2 * u - 1
  assert vertical[Queue.HOST_TO_DEVICE][Kind.BOUNDARY] == (u - 1) * (m - 1) + (u - 2) * m
  assert vertical[Queue.DEVICE_TO_HOST][Kind.BOUNDARY] == (u - 1) * m - 1
  assert vertical[Queue.HOST_TO_DEVICE][Kind.BOUNDARY_GRADIENT] == (u - 1) * (m - 1)
  assert vertical[Queue.SSD_READ][Kind.PARAMETERS] == (u - 2) + (u - 2)
  horizontal = closed_forms.horizontal(u, m, device=1, host=2)
  at_micro_batch_ends = m - 1
  at_turns = m
  loads = horizontal[Queue.HOST_TO_DEVICE]
  assert loads[Kind.PARAMETERS] == m * (2 * u - 1) - at_micro_batch_ends
  assert loads[Kind.BOUNDARY] == m * (u - 2) - at_turns
  assert loads[Kind.GRADIENTS] == (m - 1) * u
  assert horizontal[Queue.DEVICE_TO_HOST][Kind.GRADIENTS] == m * u
