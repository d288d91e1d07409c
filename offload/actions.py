"""What each step of a derived list does to arrays."""

import dataclasses

from offload.device_slots import DeviceSlots
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

  def perform(self, step: Step) -> None:
    """Returns when the step's effects are complete."""
    self.device.free(step)
    if step.computation is None:
      self.transfers.perform(step)
    elif step.computation.action is Action.UPDATE:
      self.updates.perform(step)
    else:
      self.passes.perform(step)
