"""What each step of a derived list does to arrays."""

import dataclasses

from offload.device_slots import DeviceSlots
from offload.executor import Rest
from offload.passes import Passes
from offload.transfers import Transfers
from offload.updates import Updates
from schedules.steps import Action, Step


@dataclasses.dataclass(frozen=True)
class Actions:
  """Performs steps; safe to call from one thread for each queue."""

  device: DeviceSlots
  transfers: Transfers
  passes: Passes
  updates: Updates

  def perform(self, step: Step) -> Rest | None:
    """Returns when the step's effects are complete, or else the rest of it."""
    self.device.free(step)
    if step.computation is None:
      return self.transfers.perform(step)
    if step.computation.action is Action.UPDATE:
      return self.updates.perform(step)
    return self.passes.perform(step)
