"""How often each slice moves in a steady iteration, and in which phase of it.

For fixed rings a slice moves equally often however long it is, so that bytes are counts times
lengths: what the linear program of a placement is made of.
"""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schedules.iterations import iterations
from schedules.pools import CUT, PERSISTENT, Pools
from schedules.registry import Schedule
from schedules.residency import derive
from schedules.simulate import Profile
from schedules.steps import (
  RESIDENT_UNIT,
  SSD_QUEUES,
  Action,
  Computation,
  Kind,
  Part,
  Queue,
  Slice,
  Step,
  Tier,
  Work,
)
from schedules.traffic import LINKS, Traffic

FORWARD, BACKWARD, UPDATE = PHASES = ("forward", "backward", "update")
LAST_BACKWARD = "last_backward"  # forward, loss and backward of the last unit
_UP = (Queue.SSD_READ, Queue.HOST_TO_DEVICE)


class Move(NamedTuple):
  """What a step does that takes time: a computation's name, or the kind and slices it moves."""

  phase: str
  queue: Queue
  what: str | Kind
  slices: tuple[Slice, ...]


def count_moves(schedule: Schedule, work: Work, pools: Pools) -> Counter[Move]:
  """Steps of a steady iteration, counted from the derived list.

  A transfer upwards belongs to the phase of the computation that it is for, one downwards to that
  of the computation that it comes from.
  """
  labels = phases(schedule, work)
  out: Counter[Move] = Counter()
  phase, coming = "", []
  for step in derive(iterations(schedule, work, 0, 3), work, pools, waits=False):
    if step.queue in _UP:
      coming.append(step)
      continue
    c = step.computation
    if c is not None:
      phase = labels.get(dataclasses.replace(c, iteration=0), phase)
    done = [step] if c is None else [*coming, step]
    out.update(_move(s, phase, work) for s in done if s.iteration == 1 and not _is_resident(s))
    coming = coming if c is None else []
  return out


def bytes_moved(moves: Counter[Move], pools: Pools) -> Traffic:
  """Bytes of the transfers by link and kind, to the byte those of the derived list."""
  out: Traffic = {link: defaultdict(int) for link in LINKS}
  for move, n in moves.items():
    if isinstance(move.what, Kind) and (size := _moved(move, pools)):
      out[move.queue][move.what] += n * size
  return {link: dict(kinds) for link, kinds in out.items()}


def busy_seconds(
  moves: Counter[Move], pools: Pools, profile: Profile
) -> dict[str, dict[str, float]]:
  """Seconds of work of each resource in each phase."""
  out: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
  for move, n in moves.items():
    seconds = n * _seconds(move, pools, profile)
    for resource, share in draws(profile, move.queue).items():
      out[move.phase][resource] += share * seconds
  return {phase: dict(out[phase]) for phase in PHASES if phase in out}


def buffered_seconds(moves: Counter[Move], pools: Pools, profile: Profile) -> dict[str, float]:
  """Seconds by phase for which one host buffer of states after another is taken."""
  depth = max(pools.rings.get((Tier.HOST, Kind.STATES), 0), 1)
  out: dict[str, float] = defaultdict(float)
  for move, n in moves.items():
    if takes_buffers(move):
      out[move.phase] += n * _seconds(move, pools, profile) / depth
  return dict(out)


def takes_buffers(move: Move) -> bool:
  """Whether a unit's host buffers are taken meanwhile: from its first read to its last write."""
  return move.what == UPDATE or (move.what in PERSISTENT and move.queue in SSD_QUEUES)


def draws(profile: Profile, queue: Queue) -> dict[str, float]:
  """Seconds that a queue's second of work by itself takes of each resource: of the queue itself,
  and of what it shares."""
  shared = {r.name: r.demand.get(queue, 0.0) / r.capacity for r in profile.shared}
  return {queue.value: 1.0} | {name: share for name, share in shared.items() if share}


def _seconds(move: Move, pools: Pools, profile: Profile) -> float:
  latency = profile.latencies.get(move.queue, 0.0)
  if isinstance(move.what, Kind):
    size = _moved(move, pools)
    return latency + size / profile.rates[move.queue] if size else 0.0
  if move.what == UPDATE:
    states = pools.slices(Kind.STATES, tuple(s.part for s in move.slices))
    return latency + pools.bytes(Kind.STATES, states) / profile.rates[move.queue]
  return latency + computation_seconds(profile)[move.what]


def reaches_ssd(moves: Iterable[Move]) -> frozenset[tuple[Kind, Part]]:
  """The (kind, part) that move to or from the SSD: what never does takes no room there."""
  there = (move for move in moves if move.queue in SSD_QUEUES and isinstance(move.what, Kind))
  return frozenset((Kind(move.what), piece.part) for move in there for piece in move.slices)


def computation_seconds(profile: Profile) -> dict[str, float]:
  return {
    FORWARD: profile.forward_seconds,
    BACKWARD: profile.backward_seconds,
    LAST_BACKWARD: profile.last_backward_seconds,
  }


def _moved(move: Move, pools: Pools) -> int:
  kind = Kind(move.what)
  there = move.slices if kind not in CUT else [s for s in move.slices if s in pools.vectors[kind]]
  return pools.moved(move.queue, kind, there) if there else 0


def _move(step: Step, phase: str, work: Work) -> Move:
  c = step.computation
  if c is None:
    return Move(phase, step.queue, *step.moved)
  if c.action is Action.UPDATE:
    return Move(phase, step.queue, UPDATE, (Slice(c.part),))
  last = c.action is Action.BACKWARD and c.unit == work.last
  return Move(phase, step.queue, LAST_BACKWARD if last else str(c.action), ())


def _is_resident(step: Step) -> bool:
  return step.computation is not None and step.computation.unit == RESIDENT_UNIT


def phases(schedule: Schedule, work: Work) -> dict[Computation, str]:
  """The phase of each computation of a steady iteration, as the schedule yields it.

  Within a phase every resource works at its own even rate, so the slowest gives the phase its
  length. Forward and backward passes are phases; a unit's update belongs to the pass in which it
  stands. Updates of several units in a row are a phase of their own, under which the next pass runs
  as far as it takes its units in the same order: what is updated first is used first.
  """
  order = list(schedule(dataclasses.replace(work, pending=Part.DELAYED in work.parts)))
  runs = [list(run) for _, run in itertools.groupby(order, lambda c: c.action)]
  out: dict[Computation, str] = {}
  for i, run in enumerate(runs):
    if run[0].action is not Action.UPDATE:
      out |= dict.fromkeys(run, FORWARD if run[0].action is Action.FORWARD else BACKWARD)
    elif len({c.unit for c in run}) > 1:
      out |= dict.fromkeys(run, UPDATE)
    else:
      beside = runs[i - 1] if i else runs[1]
      out |= dict.fromkeys(run, FORWARD if beside[0].action is Action.FORWARD else BACKWARD)
  for before, run in itertools.pairwise([runs[-1], *runs]):
    if out[before[0]] == UPDATE and run[0].action is not Action.UPDATE:
      out |= dict.fromkeys(_in_the_order_of(before, run), UPDATE)
  return out


def _in_the_order_of(updates: Sequence[Computation], run: Sequence[Computation]) -> list:
  """The computations of a pass's first sweep, if they take their units in the updates' order."""
  sweep, units = [], []
  for c in run:
    if c.unit in units[:-1]:
      break
    sweep.append(c)
    units += [c.unit] if c.unit not in units else []
  updated = [c.unit for c in updates if c.unit in units]
  return sweep if updated == units else []
