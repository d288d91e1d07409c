"""The probe on a machine that is busy with something else."""

import itertools

import numpy as np
import pytest

from offload import probe
from offload.store import Store
from schedules.steps import SSD_QUEUES


def test_a_call_is_timed_even_if_its_thread_begins_when_the_time_is_over():
  speeds = probe._together([lambda: None, lambda: None], [1e-12, 1e-12])
  assert len(speeds) == 2 and all(0 < speed <= 1 for speed in speeds)


def test_a_window_in_which_a_neighbour_took_the_disk_does_not_count(monkeypatch):
  windows = itertools.chain([[90.0, 80.0], [0.1, 0.2]], itertools.repeat([2.0, 4.0]))
  monkeypatch.setattr(probe, "_window", lambda calls, seconds, pool: next(windows))
  assert probe._together([lambda: None, lambda: None], [1e-3, 1e-3]) == [1e-3 / 2, 1e-3 / 4]


def test_what_it_writes_is_known_before(streaming, tmp_path, monkeypatch):
  streamer = streaming(tmp_path / "store", "gpt", "vertical", homes="slices")
  made, create = [], Store.create

  def creating(store, name, size, dtype):
    made.append(size * np.dtype(dtype).itemsize)
    return create(store, name, size, dtype)

  monkeypatch.setattr(Store, "create", creating)
  streamer.probe()
  assert sum(made) == probe.disk_bytes(streamer._settings.pools.sizes)
  streamer.remove()


@pytest.mark.parametrize(
  ("speeds", "beside", "capacity"),
  [
    ([0.6, 0.7], [], 1.3),
    ([0.3, 0.5], [], 1.0),  # either alone gets what it wants
    ([0.3, 0.5, 0.1], [(lambda: None, 1.0)], 0.8),  # but not while others keep the cores
    ([0.96, 0.97, 0.1], [(lambda: None, 1.0)], 2.0),  # what does not hinder is not counted
  ],
)
def test_what_a_pair_gets_of_a_resource(speeds, beside, capacity, monkeypatch):
  monkeypatch.setattr(probe, "_together", lambda calls, alone: speeds[: len(calls)])
  costs = dict.fromkeys(SSD_QUEUES, probe._Cost(1.0, 1.0))
  calls = dict.fromkeys(SSD_QUEUES, lambda: None)
  found = probe._shared("disk", 2.0, costs, calls, SSD_QUEUES, beside)
  assert found.capacity == pytest.approx(capacity)
