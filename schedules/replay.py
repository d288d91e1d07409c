"""Executes a derived list with labels in the place of arrays: finds whatever would train wrongly.

Every buffer holds the label of what was last written there. Each computation then has to find what
it should: parameters of its own iteration, the right activation, gradients that are complete. The
replay knows nothing of how the list was derived.
"""

from collections.abc import Iterable

from schedules.check import ScheduleError
from schedules.iterations import iterations
from schedules.pools import PERSISTENT, Pools, objects
from schedules.registry import Schedule
from schedules.residency import derive, places
from schedules.steps import (
  WHOLE,
  Access,
  Action,
  Computation,
  Kind,
  Mode,
  Slice,
  Step,
  Work,
)

Label = tuple
_SUMS = (Kind.GRADIENTS, Kind.RESIDENT_GRADIENTS, Kind.NORM)


def check_derived(schedule: Schedule, work: Work, pools: Pools) -> None:
  """Derives three iterations and replays them.

  Raises:
    ScheduleError: names the step that would train wrongly.
  """
  replay = Replay(work, pools)
  replay.run(derive(iterations(schedule, work, 0, 3), work, pools))
  replay.finish(2)


class Replay:
  """Takes steps in any order that their waits allow; `first` is the first iteration's number."""

  def __init__(self, work: Work, pools: Pools, first: int = 0):
    self._work, self._pools, self._first = work, pools, first
    self._held: dict[tuple, Label] = {}

  def run(self, steps: Iterable[Step]) -> None:
    """Raises:
    ScheduleError: names the step that finds something other than it needs.
    """
    for step in steps:
      self.take(step)

  def take(self, step: Step) -> None:
    if step.computation is None:
      labels = {
        piece: self._look(step, place, source, piece)
        for source in step.sources
        for piece, place in zip(source.slices, places(source), strict=True)
      }
      written = [place for target in step.targets for place in places(target)]
      if {place[3] for place in written} != set(labels):
        raise ScheduleError(f"{step} does not write what it reads.")
      self._held |= {place: labels[place[3]] for place in written}
      return
    for access in step.accesses:
      if access.mode.reads:
        self._expect(step, access)
    for access in step.accesses:
      if access.mode.writes:
        for place in places(access):
          self._held[place] = self._made(step.computation, access, place)

  def finish(self, last: int) -> None:
    """After iteration `last`: everything that outlives it is at home in its newest version.

    Raises:
      ScheduleError: names what is not.
    """
    for kind in (*PERSISTENT, Kind.RESIDENT):
      for item in objects(kind, self._work):
        pieces = (WHOLE,) if kind is Kind.RESIDENT else self._pools.vectors[kind]
        for piece in pieces:
          home = self._pools.home(item, piece, self._work)
          slot = self._pools.home_slot(item, home, self._work)
          place = places(Access(home, item, Mode.READ, (piece,), slot))[0]
          if self._held.get(place) != (item, piece, last + 1):
            raise ScheduleError(f"{item} at home on the {home} is not that of the last update.")

  def _look(self, step: Step, place: tuple, access: Access, piece: Slice) -> Label:
    item = access.object
    if place not in self._held:
      at_home = self._pools.home(item, piece, self._work) is access.tier
      if at_home and item.kind in (Kind.PARAMETERS, Kind.STATES, Kind.RESIDENT):
        return (item, piece, self._first)
      raise ScheduleError(f"{step} reads {item} on the {access.tier}, where nothing was put.")
    return self._held[place]

  def _expect(self, step: Step, access: Access) -> None:
    c = step.computation
    assert c is not None
    for piece, place in zip(access.slices, places(access), strict=True):
      found = self._look(step, place, access, piece)
      wanted = (access.object, piece, c.iteration)
      if found[: len(wanted)] != wanted or not self._complete(c, access, found):
        raise ScheduleError(f"{step} finds {_say(found)} where it needs {_say(wanted)}.")

  def _complete(self, c: Computation, access: Access, found: Label) -> bool:
    """Gradients that are read are the sum over every micro-batch, each of them once; the norm that
    an update reads is over every unit."""
    if access.object.kind not in _SUMS or access.mode is Mode.MODIFY:
      return True
    norm = access.object.kind is Kind.NORM
    return sorted(found[3]) == list(range(self._work.units if norm else self._work.micro_batches))

  def _made(self, c: Computation, access: Access, place: tuple) -> Label:
    item, piece = access.object, place[3]
    if item.kind in _SUMS:
      before = self._held[place][3] if access.mode.reads else ()
      term = c.unit if item.kind is Kind.NORM else c.micro_batch
      return (item, piece, c.iteration, (*before, term))
    if c.action is Action.UPDATE:
      return (item, piece, c.iteration + 1)
    return (item, piece, c.iteration)


def _say(label: Label) -> str:
  item, piece, iteration = label[:3]
  name = "the resident parameters" if item.kind is Kind.RESIDENT else str(item)
  return f"{name}{'' if piece == WHOLE else f' ({piece})'} of iteration {iteration}"
