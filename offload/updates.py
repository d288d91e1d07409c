"""The optimizer's steps: of units' slices in host memory, and of what stays on the device."""

from offload.arrays import HostSlots
from offload.cuts import together
from offload.device_slots import DeviceSlots
from offload.layout import Layout
from offload.resident import Resident, gradients_of
from offload.update import Updater
from offload.verdict import AS_THEY_ARE, Judge
from schedules.steps import RESIDENT_UNIT, Kind, Step, Tier, Work

_KINDS = (Kind.PARAMETERS, Kind.STATES, Kind.GRADIENTS)


class Updates:
  """Applies gradients as the verdict on their iteration says."""

  def __init__(
    self,
    work: Work,
    layout: Layout,
    updater: Updater,
    resident: Resident,
    device: DeviceSlots,
    host: HostSlots,
    judge: Judge,
  ):
    self._whole_step, self._layout, self._updater = work.whole_step, layout, updater
    self._resident, self._device, self._host, self._judge = resident, device, host, judge

  def perform(self, step: Step) -> None:
    c = step.computation
    assert c is not None
    (self._update_resident if c.unit == RESIDENT_UNIT else self._update)(step, c.iteration)

  def _update(self, step: Step, iteration: int) -> None:
    verdict = self._judge[iteration] if self._whole_step else AS_THEY_ARE
    runs_of_kinds = (self._host.runs(step.accesses_to(Tier.HOST, kind)) for kind in _KINDS)
    for runs in together(runs_of_kinds):
      vectors = [run.array for run in runs]
      if verdict.skips:
        self._updater.skip(iteration, *vectors[:2])
      else:
        decayed = self._layout.decayed - runs[0].start
        self._updater.apply(iteration, *vectors, decayed=decayed, scaled=verdict.scaled)

  def _update_resident(self, step: Step, iteration: int) -> None:
    verdict = self._judge[iteration]
    if not verdict.skips:
      self._resident.step(verdict.scaled(gradients_of(step, self._device)))
