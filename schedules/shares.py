"""The linear program of a placement: which share of each vector is at home where.

For a fixed structure the seconds of every resource and the bytes of every tier are linear in the
shares, in the delayed fraction and in the micro-batches that spill. An iteration takes the sum of
its phases, and a phase as long as its busiest resource (GreedySnake, arXiv 2512.17570, plans stage
by stage in the same way). HiGHS solves it through SciPy.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from scipy.optimize import linprog

from schedules.moves import (
  PHASES,
  UPDATE,
  Move,
  computation_seconds,
  draws,
  reaches_ssd,
  takes_buffers,
)
from schedules.pools import CUT, PAGE, PERSISTENT, Sizes
from schedules.simulate import Profile
from schedules.steps import SSD_QUEUES, Kind, Part, Tier, Work
from schedules.structure import BOUNDARIES, Structure

HOMES = (Tier.HOST, Tier.SSD)
# Of placements equally fast, the one that moves less; of those, the one that keeps less on SSD.
_MOVING, _KEEPING = 1e-3, 1e-6
_DELAYED, _SPILLED = "delayed", "spilled"
_CONSTANT = "constant"
Terms = dict[object, float]  # coefficient of each variable, and of `_CONSTANT`


@dataclasses.dataclass(frozen=True)
class Case:
  """What a program is written for. `spills` says that the spilled micro-batches are a variable, of
  which the moves were counted at the structure's."""

  moves: Counter[Move]
  structure: Structure
  work: Work
  sizes: Sizes
  room: Mapping[Tier, int | None]
  profile: Profile
  spills: bool = False

  @property
  def elements(self) -> int:
    """Of a unit's flat vector."""
    return sum(self.sizes.elements.values())


@dataclasses.dataclass(frozen=True)
class Solution:
  """Shares of each part, by kind; `cost` are seconds with what settles ties."""

  cost: float
  seconds: float
  on_host: dict[Kind, dict[Part, float]]
  spilled: float
  delayed: float


def solve(case: Case, delayed: float | None, within: float | None = None) -> Solution | None:
  """The best shares, or None where nothing fits.

  `delayed` is the delayed fraction, or None where it is to be chosen. With `within` it is the
  smallest among iterations of at most so many seconds; otherwise that of the fastest.
  """
  program = _Program()
  scale = _write(case, program, delayed)
  if within is not None:
    program.at_most({("seconds", phase): 1.0 for phase in PHASES}, within / scale)
  values = program.minimise(program.cost if within is None else {_DELAYED: 1.0})
  return None if values is None else _solution(case, program, values, scale)


def _solution(
  case: Case, program: "_Program", values: dict[object, float], scale: float
) -> Solution:
  alpha = {Part.DELAYED: values[_DELAYED], Part.NOW: 1 - values[_DELAYED]}
  on_host = {
    kind: {
      part: min(values[kind, part, Tier.HOST] / alpha[part], 1.0) if alpha[part] > 1e-9 else 1.0
      for part in case.work.parts
    }
    for kind in CUT
  }
  seconds = sum(values["seconds", phase] for phase in PHASES)
  cost = sum(c * values.get(name, 1.0) for name, c in program.cost.items())
  return Solution(
    cost * scale, seconds * scale, on_host, values.get(_SPILLED, 0.0), values[_DELAYED]
  )


class _Program:
  """Rows over named variables, all of them at least 0."""

  def __init__(self):
    self.cost: Terms = defaultdict(float)
    self._rows: list[tuple[Terms, float]] = []
    self._equal: list[tuple[Terms, float]] = []
    self._highest: dict[object, float | None] = {}

  def variable(self, name: object, highest: float | None = None) -> None:
    self._highest[name] = highest

  def at_most(self, terms: Terms, limit: float) -> None:
    self._rows.append((terms, limit))

  def equal(self, terms: Terms, value: float) -> None:
    self._equal.append((terms, value))

  def minimise(self, objective: Terms) -> dict[object, float] | None:
    """The value of each variable at the least of the objective, or None where no row can hold."""
    names = list(self._highest)
    matrix = lambda rows: [[terms.get(name, 0.0) for name in names] for terms, _ in rows] or None
    limits = lambda rows: [limit - terms.get(_CONSTANT, 0.0) for terms, limit in rows] or None
    found = linprog(
      [objective.get(name, 0.0) for name in names],
      *(matrix(self._rows), limits(self._rows), matrix(self._equal), limits(self._equal)),
      bounds=[(0.0, self._highest[name]) for name in names],
      method="highs",
    )
    return dict(zip(names, map(float, found.x), strict=True)) if found.status == 0 else None


def _write(case: Case, program: _Program, delayed: float | None) -> float:
  """Writes variables and rows; returns the seconds that count as one."""
  program.variable(_DELAYED, 1.0)
  for kind in CUT:
    for part in case.work.parts:
      for home in HOMES:
        program.variable((kind, part, home))
  if case.spills:
    program.variable(_SPILLED, float(case.work.micro_batches))
  for phase in PHASES:
    program.variable(("seconds", phase))
  if delayed is not None:
    program.equal({_DELAYED: 1.0}, delayed)
  for kind in CUT:
    for part in case.work.parts:
      terms: Terms = {(kind, part, home): 1.0 for home in HOMES}
      program.equal(terms | {_DELAYED: 1.0 if part is Part.NOW else -1.0}, float(part is Part.NOW))
  _memory_rows(case, program)
  return _time_rows(case, program)


def _time_rows(case: Case, program: _Program) -> float:
  busy: dict[tuple[str, str], Terms] = defaultdict(lambda: defaultdict(float))
  chain: dict[tuple[str, str], Terms] = defaultdict(lambda: defaultdict(float))
  for move, n in case.moves.items():
    for name, seconds in _terms(case, move):
      for resource, share in draws(case.profile, move.queue).items():
        busy[move.phase, resource][name] += n * share * seconds
      if takes_buffers(move):
        chain[move.phase, "chain"][name] += n * seconds
      if move.queue in SSD_QUEUES:
        program.cost[name] += _MOVING * n * seconds
  depth = case.structure.ring(Tier.HOST, Kind.STATES, case.work)
  rows = busy | {at: {v: c / depth for v, c in terms.items()} for at, terms in chain.items()}
  scale = max(max(map(abs, terms.values()), default=0.0) for terms in rows.values()) or 1.0
  for (phase, _), terms in rows.items():
    program.at_most({v: c / scale for v, c in terms.items()} | {("seconds", phase): -1.0}, 0.0)
  program.cost = defaultdict(float, {v: c / scale for v, c in program.cost.items()})
  for phase in PHASES:
    program.cost["seconds", phase] += 1.0
  widths = sum(case.sizes.widths[kind] for kind in CUT)
  for kind in CUT:
    for part in case.work.parts:
      program.cost[kind, part, Tier.SSD] += _KEEPING * case.sizes.widths[kind] / widths
  if case.spills:
    program.cost[_SPILLED] += _KEEPING / case.work.micro_batches
  return scale


def _terms(case: Case, move: Move) -> Iterator[tuple[object, float]]:
  """Seconds of one such step, by the variable that they are proportional to; a step of cut slices
  that the shares may leave empty counts without its latency."""
  sizes, rate = case.sizes, case.profile.rates.get(move.queue, 0.0)
  latency = case.profile.latencies.get(move.queue, 0.0)
  if move.what == UPDATE:
    yield _CONSTANT, latency
    seconds = case.elements * sizes.widths[Kind.STATES] / rate
    for piece in move.slices:
      yield (_CONSTANT, seconds) if piece.part is Part.NOW else (_DELAYED, seconds)
      if piece.part is Part.NOW:
        yield _DELAYED, -seconds
  elif not isinstance(move.what, Kind):
    yield _CONSTANT, latency + computation_seconds(case.profile)[move.what]
  elif move.queue not in SSD_QUEUES:
    yield _CONSTANT, latency + sizes.payload[move.what] / rate
  elif move.what in CUT:
    for piece in move.slices:
      yield (
        (move.what, piece.part, piece.home),
        case.elements * sizes.widths[move.what] / rate,
      )
  elif case.spills and case.structure.home(Kind(move.what)) is Tier.HOST:
    yield _SPILLED, sizes.whole[move.what] / rate / case.structure.spilled
  else:
    yield _CONSTANT, latency + sizes.whole[move.what] / rate


def _memory_rows(case: Case, program: _Program) -> None:
  """In units of a vector's elements. What rounding to pages may add on SSD is kept free."""
  structure, work, sizes = case.structure, case.work, case.sizes
  base = dataclasses.replace(structure, spilled=min(structure.spilled, 1) if case.spills else 0)
  reached = reaches_ssd(case.moves)
  fixed = (base if case.spills else structure).whole_bytes(work, sizes, reached)
  spilling = (kind for kind in BOUNDARIES if structure.home(kind) is Tier.HOST)
  boundary = work.last * sum(sizes.whole[kind] for kind in spilling) / case.elements
  for tier, sign in ((Tier.HOST, -1.0), (Tier.SSD, 1.0)):
    limit = case.room.get(tier)
    if limit is None:
      continue
    row: Terms = defaultdict(float)
    row[_CONSTANT] = fixed[tier] / case.elements
    if case.spills:
      row[_CONSTANT] -= sign * boundary * base.spilled
      row[_SPILLED] = sign * boundary
    for kind in CUT:
      ring = structure.ring(Tier.HOST, kind, work) if tier is Tier.HOST else 0
      for part in work.parts:
        if tier is Tier.HOST or kind in PERSISTENT or (kind, part) in reached:
          row[kind, part, tier] += work.units * sizes.widths[kind]
        row[kind, part, Tier.SSD] += ring * sizes.widths[kind]
    if tier is Tier.SSD:
      widths = sum(sizes.widths[kind] for kind in CUT)
      row[_CONSTANT] += work.units * len(work.parts) * PAGE * widths / case.elements
    program.at_most(row, limit / case.elements)
