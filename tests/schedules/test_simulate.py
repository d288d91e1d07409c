"""Simulated seconds against schedules small enough to time by hand."""

import itertools

import pytest

from schedules.iterations import iterations
from schedules.registry import SCHEDULES
from schedules.residency import derive
from schedules.simulate import Profile, busy_seconds, simulate
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


@pytest.mark.parametrize("shared", [frozenset(), frozenset({Queue.DEVICE, Queue.SSD_READ})])
def test_what_is_shared_takes_turns(make_pools, shared):
  profile = Profile(2.0, 3.0, 5.0, RATES, shared)
  _, spans, busy = spans_of(make_pools, Work(4, 3), profile)
  end = max(span.stop for span in spans)
  assert end >= max(busy.values())
  for resource in {profile.resource(queue) for queue in Queue}:
    own = sorted((s.start, s.stop) for s in spans if profile.resource(s.step.queue) == resource)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(own))
  stops = {span.step.index: span.stop for span in spans}
  assert all(span.start >= stops[wait] for span in spans for wait in span.step.waits)


def test_sharing_can_only_cost(make_pools):
  ends = [
    max(s.stop for s in spans_of(make_pools, Work(4, 3), Profile(2, 3, 5, RATES, shared))[1])
    for shared in (frozenset(), frozenset(Queue))
  ]
  assert ends[1] > ends[0]
