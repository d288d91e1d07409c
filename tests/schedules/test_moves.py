"""Counts of moves, extended from small lists, against the derived lists themselves."""

import hypothesis
import pytest
from hypothesis import strategies as st

from schedules.candidates import smallest_structure
from schedules.horizontal import horizontal
from schedules.iterations import iterations
from schedules.moves import bytes_moved, count_moves, phases
from schedules.pools import CUT, PAGE, Sizes, cut, objects
from schedules.registry import SCHEDULES
from schedules.residency import derive
from schedules.steps import WHOLE, Action, Kind, Part, Tier, Work, backward, forward, update
from schedules.structure import Depth, moves
from schedules.traffic import count
from schedules.vertical import vertical

BOTH = (Part.NOW, Part.DELAYED)
UNITS, A_STAGE = Depth(0, per_unit=1), Depth(0, per_micro_batch=3)
HOMES = {"host": (Tier.HOST, 0), "ssd": (Tier.SSD, 0)}


def make_sizes(parts):
  elements = dict.fromkeys(parts, 6 * PAGE)
  widths = {Kind.PARAMETERS: 2, Kind.STATES: 12, Kind.GRADIENTS: 4}
  whole = dict(zip(Kind, range(100, 100 + len(Kind)), strict=True))
  return Sizes(widths, elements, whole, whole)


def counted(schedule, work, pools):
  """Bytes of the third of five iterations, from the derived list."""
  steps = derive(iterations(schedule, work, 0, 5), work, pools)
  found = count((s for s in steps if s.iteration == 2), pools)
  return {link: {kind: n for kind, n in kinds.items() if n} for link, kinds in found.items()}


@st.composite
def cases(draw):
  """Structures and shares of a schedule at sizes that have to be extended."""
  pick = lambda *of: draw(st.sampled_from(of))
  units, micro_batches = pick(3, 5, 13, 14, 16), pick(1, 2, 5, 9, 10)
  structure = smallest_structure(Work(units, micro_batches), pick(True, False), pick(1, 2, 3))
  structure = structure.with_ring(
    Tier.DEVICE, Kind.PARAMETERS, pick(Depth(2), Depth(min(7, units)), UNITS)
  )
  structure = structure.with_ring(Tier.DEVICE, Kind.GRADIENTS, pick(Depth(2), UNITS))
  structure = structure.with_ring(
    Tier.HOST, Kind.BOUNDARY_GRADIENT, pick(structure.depth(Tier.HOST, Kind.BOUNDARY), A_STAGE)
  )
  home = pick(*HOMES.values(), (Tier.HOST, micro_batches // 2), (Tier.HOST, micro_batches))
  structure = structure.with_home(Kind.BOUNDARY_GRADIENT, pick(Tier.HOST, Tier.SSD))
  structure = structure.with_home(Kind.BOUNDARY, *home)
  parts = pick((Part.NOW,), BOTH, (Part.DELAYED,))
  shares = {kind: pick(0.0, 0.5, 1.0) for kind in CUT}
  return pick(vertical, horizontal), Work(units, micro_batches, parts), structure, shares


@hypothesis.given(cases())
@hypothesis.settings(max_examples=10)
def test_predicted_bytes_are_those_of_the_derived_list(case):
  schedule, work, structure, shares = case
  sizes = make_sizes(work.parts)
  vectors = {kind: cut(sizes.elements, share) for kind, share in shares.items()}
  pools = structure.pools(work, sizes, vectors)
  found = moves(schedule, work, structure.streaming(pools))
  assert bytes_moved(found, pools) == counted(schedule, work, pools)


@pytest.mark.parametrize("name", ["vertical", "horizontal", "in_memory"])
def test_counts_extend_to_large_sizes_exactly(name):
  work = Work(21, 12)
  structure = smallest_structure(work, master_is_parameter=False, depth=3)
  sizes = make_sizes(work.parts)
  pools = structure.pools(work, sizes, {kind: cut(sizes.elements, 0.5) for kind in CUT})
  if name == "in_memory":
    structure = structure.with_ring(Tier.DEVICE, Kind.GRADIENTS, UNITS)
    pools = structure.pools(work, sizes, pools.vectors)
  assert moves(SCHEDULES[name], work, structure) == count_moves(SCHEDULES[name], work, pools)


def test_where_small_lists_do_not_tell_the_large_one_it_is_derived():
  def odd(work):
    """Reads unit 0 once more for every three units: nothing that lies on a line."""
    for m in range(work.micro_batches):
      for u in range(work.last):
        yield forward(u, m)
        if work.units % 3 == 0 and u == work.last - 1:
          yield forward(0, m)
      for u in reversed(range(work.units)):
        yield backward(u, m)
    for u in range(work.units):
      yield update(u)

  work = Work(15, 2)
  structure = smallest_structure(work, master_is_parameter=False, depth=3)
  sizes = make_sizes(work.parts)
  pools = structure.pools(work, sizes, {kind: cut(sizes.elements, 0.5) for kind in CUT})
  assert moves(odd, work, structure) == count_moves(odd, work, pools)


def test_an_update_belongs_to_the_pass_that_it_stands_in():
  labels = phases(vertical, Work(3, 2, BOTH))
  assert {labels[c] for c in labels if c.part is Part.DELAYED} == {"forward"}
  assert {labels[c] for c in labels if c.part is Part.NOW} == {"backward"}


def test_the_first_sweep_runs_under_the_step_that_precedes_it():
  labels = phases(horizontal, Work(4, 3))
  assert {labels[update(u)] for u in range(4)} == {"update"}
  assert {labels[forward(u, 0)] for u in range(3)} == {"update"}
  assert {labels[forward(u, 1)] for u in range(3)} == {"forward"}
  assert {str(c.action) for c, label in labels.items() if label == "backward"} == {"backward"}


def test_a_step_in_another_order_than_the_pass_takes_its_own_time():
  def descending(work):
    order = list(horizontal(work))
    yield from (c for c in order if c.action is not Action.UPDATE)
    yield from (update(u) for u in reversed(range(work.units)))

  assert phases(descending, Work(4, 3))[forward(0, 0)] == "forward"


def test_bytes_of_what_is_not_cut_are_those_of_its_objects():
  for home, spilled in ((Tier.HOST, 0), (Tier.HOST, 2), (Tier.SSD, 0), (Tier.DEVICE, 0)):
    work = Work(5, 4)
    structure = smallest_structure(work, master_is_parameter=False, depth=3)
    structure = structure.with_home(Kind.BOUNDARY_GRADIENT, home)
    structure = structure.with_home(Kind.BOUNDARY, home, spilled)
    sizes = make_sizes(work.parts)
    pools = structure.pools(work, sizes, {kind: {} for kind in CUT})
    wanted = dict.fromkeys(Tier, 0)
    for kind in (k for k in Kind if k not in CUT and k is not Kind.NORM):
      homes = [pools.home(item, WHOLE, work) for item in objects(kind, work)]
      for tier in Tier:
        wanted[tier] += homes.count(tier) * sizes.whole[kind]
        below = {Tier.DEVICE: (Tier.HOST, Tier.SSD), Tier.HOST: (Tier.SSD,), Tier.SSD: ()}[tier]
        if any(home in below for home in homes):
          wanted[tier] += pools.rings[tier, kind] * sizes.whole[kind]
    assert structure.whole_bytes(work, sizes) == wanted
