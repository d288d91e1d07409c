"""Simulated seconds against schedules small enough to time by hand."""

import itertools

import pytest

from schedules.iterations import iterations
from schedules.registry import SCHEDULES
from schedules.residency import derive
from schedules.simulate import Profile, Shared, busy_seconds, simulate
from schedules.steps import Queue, Work

RATES = dict.fromkeys(Queue, 1.0)  # a byte a second


def spans_of(make_pools, work, profile, **kwargs):
  pools = make_pools(**kwargs)
  steps = list(derive(iterations(SCHEDULES["vertical"], work, 0, 1), work, pools))
  return steps, simulate(steps, profile, work, pools), busy_seconds(steps, profile, work, pools)


def test_one_unit_is_a_chain(make_pools):
  """Load (1 s), two backwards (5 s each), gradients down (1 s), update (1 s): nothing overlaps."""
  profile = Profile(2.0, 3.0, 5.0, RATES)
  steps, spans, busy = spans_of(make_pools, Work(1, 2), profile, units=1.0, gradients=1.0)
  assert sorted((s.start, s.stop, str(s.step.queue)) for s in spans) == [
    (0, 1, "host_to_device"),
    (1, 6, "device"),
    (6, 11, "device"),
    (11, 11, "device"),  # the resident parameters' step counts as nothing
    (11, 12, "device_to_host"),
    (12, 13, "host_update"),
  ]
  assert busy["device"] == 10 and busy["host_update"] == 1
  assert len(spans) == len(steps)


ONE_AT_A_TIME = Shared("both", 1.0, dict.fromkeys((Queue.DEVICE, Queue.SSD_READ), 1.0))
CORES = Shared("cores", 2.0, {Queue.DEVICE: 1.6, Queue.HOST_UPDATE: 1.0, Queue.SSD_READ: 0.2})


@pytest.mark.parametrize("shared", [(), (ONE_AT_A_TIME,), (CORES, ONE_AT_A_TIME)])
def test_no_schedule_beats_its_busiest_resource(make_pools, shared):
  profile = Profile(2.0, 3.0, 5.0, RATES, shared)
  _, spans, busy = spans_of(make_pools, Work(4, 3), profile)
  assert max(span.stop for span in spans) >= max(busy.values()) * (1 - 1e-9)
  for queue in Queue:
    own = sorted((s.start, s.stop) for s in spans if s.step.queue == queue)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(own))
  stops = {span.step.index: span.stop for span in spans}
  assert all(span.start >= stops[wait] for span in spans for wait in span.step.waits)


def test_sharing_can_only_cost(make_pools):
  everything = Shared("everything", 1.0, dict.fromkeys(Queue, 1.0))
  ends = [
    max(s.stop for s in spans_of(make_pools, Work(4, 3), Profile(2, 3, 5, RATES, shared))[1])
    for shared in ((), (everything,))
  ]
  assert ends[1] > ends[0]


def test_with_one_core_nothing_is_won_by_overlap(make_pools):
  """Six queues on one core that each keep busy take the sum of their seconds."""
  everything = Shared("everything", 1.0, dict.fromkeys(Queue, 1.0))
  _, spans, busy = spans_of(make_pools, Work(4, 3), Profile(2, 3, 5, RATES, (everything,)))
  alone = sum(seconds for name, seconds in busy.items() if name != "everything")
  assert max(s.stop for s in spans) == pytest.approx(alone) == pytest.approx(busy["everything"])


def test_cores_are_shared_by_threads():
  """Two cores: the reader has its 0.2; the device's two threads and the update's one share 1.8."""
  speeds = CORES.speeds((Queue.DEVICE, Queue.HOST_UPDATE, Queue.SSD_READ, Queue.SSD_WRITE))
  assert speeds == {
    Queue.SSD_READ: 1.0,
    Queue.DEVICE: pytest.approx(0.6 / 0.8),
    Queue.HOST_UPDATE: pytest.approx(0.6),
  }
  assert CORES.speeds((Queue.DEVICE,)) == {Queue.DEVICE: 1.0}


def test_a_step_has_its_latency(make_pools):
  latencies = {Queue.HOST_TO_DEVICE: 0.5}
  profile = Profile(2.0, 3.0, 5.0, RATES, (), latencies)
  _, spans, busy = spans_of(make_pools, Work(1, 2), profile, units=1.0, gradients=1.0)
  assert max(span.stop for span in spans) == 13.5
  assert busy["host_to_device"] == 1.5
