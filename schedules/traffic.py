"""Bytes per link and kind: counted from the derived list, and closed forms to hold it against."""

from collections import defaultdict
from collections.abc import Iterable

from schedules.pools import Sizes
from schedules.steps import Kind, Queue, Step

LINKS = (Queue.HOST_TO_DEVICE, Queue.DEVICE_TO_HOST, Queue.SSD_READ, Queue.SSD_WRITE)
Traffic = dict[Queue, dict[Kind, int]]


def count(steps: Iterable[Step], sizes: Sizes) -> Traffic:
  """Bytes that the transfers among `steps` move. Resident parameters and tokens never move here."""
  out: Traffic = {link: defaultdict(int) for link in LINKS}
  for step in steps:
    if step.computation is None:
      moved = step.moved
      out[step.queue][moved.object.kind] += sizes.moved(step.queue, moved.object.kind, moved.parts)
  return {link: dict(kinds) for link, kinds in out.items()}


def totals(traffic: Traffic) -> dict[Queue, int]:
  return {link: sum(kinds.values()) for link, kinds in traffic.items()}
