"""What the device holds: a tree of arrays for each (kind, slot).

The arrays of a computation that has only begun are still to come; the device's later ones may read
them all the same.
"""

from typing import Any

from schedules.steps import Access, Kind, Mode, Step, Tier


class DeviceSlots:
  """Read and written by the steps' accesses to the device; safe to call from one thread a queue."""

  def __init__(self):
    self._held: dict[tuple[Kind, int | None], Any] = {}

  def free(self, step: Step) -> None:
    """Drops what a step overwrites, before its successor is made."""
    for access in step.accesses:
      if access.tier is Tier.DEVICE and access.mode is Mode.WRITE:
        self._held.pop(_key(access), None)

  def __getitem__(self, access: Access) -> Any:
    return self._held[_key(access)]

  def __setitem__(self, access: Access, value: Any) -> None:
    self._held[_key(access)] = value

  def read(self, step: Step, kind: Kind) -> Any:
    return self[step.access(Tier.DEVICE, kind, writes=False)]

  def write(self, step: Step, kind: Kind, value: Any) -> None:
    self[step.access(Tier.DEVICE, kind, writes=True)] = value

  def sum_so_far(self, step: Step, kind: Kind) -> Any:
    """What an iteration has summed before this step, if anything; taken out, since it is
    donated."""
    access = step.access(Tier.DEVICE, kind, writes=True)
    return self._held.pop(_key(access)) if access.mode is Mode.MODIFY else None


def _key(access: Access) -> tuple[Kind, int | None]:
  return access.object.kind, access.slot
