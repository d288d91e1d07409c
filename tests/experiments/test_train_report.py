"""What a run says of its queues and of its timeline."""

import pytest

from experiments import train_report
from offload.executor import Span
from schedules.placement import smallest
from schedules.pools import PAGE, Sizes
from schedules.steps import Kind, Part, Queue, Work


def _span(name, iteration, start, stop):
  return Span(Queue.DEVICE, f"{name} of iteration {iteration}", iteration, start, stop)


@pytest.mark.parametrize(
  ("iterations", "expected"),
  [(1, (1.0, 10.0)), (2, (10.0, 20.0)), (3, (20.0, 30.0)), (4, (20.0, 30.0))],
)
def test_the_window_is_the_third_iteration_or_the_last(iterations, expected):
  spans = [
    span
    for i in range(iterations)
    for span in (
      _span("forward(unit 0, micro-batch 0)", i, 10.0 * i + 1, 10.0 * i + 2),
      _span("update(resident, now part)", i, 10.0 * i + 9, 10.0 * i + 10),
      _span("update(unit 0, now part)", i, 10.0 * i + 10, 10.0 * i + 11),
    )
  ]
  assert train_report.window(spans) == expected


def test_the_bottleneck_is_what_has_most_to_do_alone():
  """On a CPU a queue that waits for a core counts as busy: the longest busy one misleads."""
  table = train_report.queues_table(
    {
      "seconds_per_iteration": [1.0, 2.0, 1.0],
      "busy_seconds": {"device": 3.9, "ssd_read": 1.0},
      "cpu_seconds": 7.0,
      "cores": 2,
      "predicted_seconds_per_iteration": 1.1,
      "resource_seconds": {"device": 0.7, "ssd_read": 0.2, "cores": 0.9, "disk": 0.1},
    }
  )
  assert "Median iteration 1.000 s, predicted 1.100 s. Over all 4.0 s" in table
  assert "2 cores             3.50 s busy     0.50 s waiting" in table
  assert "bottleneck: cores (0.900 s), then device (0.700 s), then ssd_read (0.200 s)" in table


def test_boundaries_that_never_move_are_said_to_be_on_the_device():
  ones = dict.fromkeys(Kind, 1)
  pools = smallest(Sizes(ones, {Part.NOW: PAGE}, ones, ones), Work(4, 2), True)
  traffic = {Queue.DEVICE_TO_HOST: {Kind.BOUNDARY: 5, Kind.BOUNDARY_GRADIENT: 0}}
  homes = train_report.homes_of(pools, traffic)
  assert homes["boundary"] == "ssd" and homes["boundary_gradient"] == "device"
  assert homes["states"] == "ssd"
