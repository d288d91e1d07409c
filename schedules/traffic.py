"""Bytes per link and kind: counted from the derived list, and closed forms to hold it against."""

from collections import defaultdict
from collections.abc import Iterable

from schedules.iterations import iterations
from schedules.pools import Pools
from schedules.registry import Schedule
from schedules.residency import derive
from schedules.steps import DEVICE_QUEUES, SSD_QUEUES, Kind, Queue, Step, Work

LINKS = (*DEVICE_QUEUES, *SSD_QUEUES)
NAMES = {  # of the links, where bytes are told
  Queue.SSD_READ: "ssd_read",
  Queue.SSD_WRITE: "ssd_written",
  Queue.HOST_TO_DEVICE: "host_to_device",
  Queue.DEVICE_TO_HOST: "device_to_host",
}
Traffic = dict[Queue, dict[Kind, int]]


def count(steps: Iterable[Step], pools: Pools) -> Traffic:
  """Bytes that the transfers among `steps` move. Resident parameters and tokens never move here."""
  out: Traffic = {link: defaultdict(int) for link in LINKS}
  for step in steps:
    if step.computation is None:
      kind, slices = step.moved
      out[step.queue][kind] += pools.moved(step.queue, kind, slices)
  return {link: dict(kinds) for link, kinds in out.items()}


def of_run(schedule: Schedule, work: Work, pools: Pools, run_length: int) -> Traffic:
  """Bytes of a whole run from a cold start. A long run repeats its third iteration."""
  derived = min(run_length, 5)
  out: Traffic = {link: defaultdict(int) for link in LINKS}
  for step in derive(iterations(schedule, work, 0, derived), work, pools, waits=False):
    if step.computation is None:
      times = 1 + (run_length - derived) * (step.iteration == 2)
      kind, slices = step.moved
      out[step.queue][kind] += times * pools.moved(step.queue, kind, slices)
  return {link: dict(kinds) for link, kinds in out.items()}


def totals(traffic: Traffic) -> dict[Queue, int]:
  return {link: sum(kinds.values()) for link, kinds in traffic.items()}
