"""Picks the micro-batches and the delayed fraction, and prices the placement that they leave.

For each number of micro-batches the linear program of `shares` chooses the delayed fraction along
with the shares; a later candidate replaces an earlier one only where it is at least a hundredth
faster, so that the smallest wins a tie. All times are those of the phase model: see `moves.phases`.
"""

import contextlib
import dataclasses
from collections import Counter, defaultdict

from schedules.moves import Move, buffered_seconds, busy_seconds, bytes_moved
from schedules.placement import Budgets, check_room, fastest, nothing_fits, rounded, without
from schedules.pools import Pools, Sizes
from schedules.registry import Schedule
from schedules.shares import Case, Solution, solve
from schedules.simulate import Profile
from schedules.steps import Part, Queue, Work
from schedules.structure import moves
from schedules.traffic import Traffic

WORTH = 0.99  # of its time: what a larger candidate has to save
PATIENCE = 20  # further numbers of micro-batches without a gain
BUFFERS = "host buffers of states"  # each is taken until what was read into it is written again
FRACTIONS = (*(i / 100 for i in range(31)), 0.35, 0.4, 0.5, 0.6, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a placement costs in a steady iteration.

  Attributes:
    seconds: of an iteration, the sum of its phases' longest.
    busy: seconds of work of each queue, and of what several share.
    binding: the resource that most of those seconds wait for, or `BUFFERS`.
  """

  seconds: float
  busy: dict[str, float]
  binding: str
  traffic: Traffic


@dataclasses.dataclass(frozen=True)
class Plan:
  """A schedule's choice on a machine."""

  work: Work
  delayed_fraction: float
  pools: Pools
  prediction: Prediction
  curve: tuple[tuple[int, float], ...] = ()  # micro-batches tried, and their seconds

  @property
  def micro_batches_per_second(self) -> float:
    return self.work.micro_batches / self.prediction.seconds


@dataclasses.dataclass(frozen=True)
class Planner:
  """What is to be trained, and where.

  `sizes` are those at any cut; `device_reserved` bytes of the device are taken by the programs.
  """

  units: int
  sizes: Sizes
  budgets: Budgets
  profile: Profile
  master_is_parameter: bool = False
  device_reserved: int = 0

  def __post_init__(self):
    missing = [str(q) for q in Queue if q is not Queue.DEVICE and not self._rate(q) > 0]
    if missing:
      raise ValueError(
        f"The hardware profile has no rate for {', '.join(missing)}: a plan needs a measured or "
        "stated bandwidth above zero for every queue."
      )

  def plan(
    self, schedule: Schedule, micro_batches: int | None = None, delayed: float | None = None
  ) -> Plan:
    """The most micro-batches a second, with what is given fixed.

    Raises:
      ValueError: nothing fits; names the tier, what it lacks and the flag.
    """
    if micro_batches is not None:
      return self._finished(schedule, micro_batches, delayed)
    curve: list[tuple[int, float]] = []
    best, rate = 1, 0.0
    for count in range(1, 10_000):
      if count > best + PATIENCE and rate:
        break
      try:
        seconds = self._choice(schedule, count, delayed)[1].seconds
      except ValueError:
        if count == 1:
          raise
        break  # more micro-batches take more room
      curve.append((count, seconds))
      if count / seconds > rate / WORTH:
        best, rate = count, count / seconds
    return dataclasses.replace(self._finished(schedule, best, delayed), curve=tuple(curve))

  def _finished(self, schedule: Schedule, micro_batches: int, delayed: float | None) -> Plan:
    case, solution = self._choice(schedule, micro_batches, delayed)
    pools = rounded((case, solution), self._room)
    counted = moves(schedule, case.work, case.structure.streaming(pools))
    prediction = predict(counted, pools, self.profile)
    return Plan(case.work, case.sizes.fraction, pools, prediction)

  def _choice(
    self, schedule: Schedule, micro_batches: int, delayed: float | None
  ) -> tuple[Case, Solution]:
    """The best placement of so many micro-batches, at the smallest fraction that is as good."""
    if delayed is not None:
      return self._at(schedule, micro_batches, delayed)
    best = self._at(schedule, micro_batches, 0.0)
    both = Work(self.units, micro_batches, (Part.NOW, Part.DELAYED))
    sizes = self.sizes.delaying(0.5)
    free = fastest(
      *(schedule, both, sizes, self._room, self.master_is_parameter, self.profile, None)
    )
    if free is None or free[1].seconds > WORTH * best[1].seconds:
      return best
    smallest = solve(free[0], None, within=free[1].seconds / WORTH)
    least = smallest.delayed if smallest is not None else free[1].delayed
    above = next(i for i, f in enumerate(FRACTIONS) if f >= least - 1e-9)
    for fraction in FRACTIONS[above : max(above - 2, 0) : -1]:  # one less where that has no room
      with contextlib.suppress(ValueError):
        later = self._at(schedule, micro_batches, fraction)
        if later[1].seconds < WORTH * best[1].seconds:
          return later
    return best

  def _at(self, schedule: Schedule, micro_batches: int, delayed: float) -> tuple[Case, Solution]:
    sizes = self.sizes.delaying(delayed)
    work = Work(self.units, micro_batches, sizes.parts)
    check_room(work, sizes, self.budgets, self.master_is_parameter, self.device_reserved)
    given = (schedule, work, sizes, self._room, self.master_is_parameter, self.profile)
    best = fastest(*given, sizes.delayed)
    if best is None:
      raise ValueError(nothing_fits(*given))
    return best

  @property
  def _room(self) -> Budgets:
    return without(self.budgets, self.device_reserved)

  def _rate(self, queue: Queue) -> float:
    return self.profile.rates.get(queue, 0.0)


def predict(counted: Counter[Move], pools: Pools, profile: Profile) -> Prediction:
  """Seconds and bytes of a steady iteration in which the pools' slices move so often."""
  phases = busy_seconds(counted, pools, profile)
  buffered = buffered_seconds(counted, pools, profile)
  busy: dict[str, float] = defaultdict(float)
  waited: dict[str, float] = defaultdict(float)
  for phase, resources in phases.items():
    for name, seconds in resources.items():
      busy[name] += seconds
    limits = resources | {BUFFERS: buffered.get(phase, 0.0)}
    longest = max(limits, key=lambda name: limits[name])
    waited[longest] += limits[longest]
  binding = max(waited, key=lambda name: waited[name])
  return Prediction(sum(waited.values()), dict(busy), binding, bytes_moved(counted, pools))
