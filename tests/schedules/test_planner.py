"""Placements and plans against hand-solved cases, the simulator, and the published figures."""

import dataclasses
import itertools

import pytest

from schedules import published
from schedules.candidates import smallest_structure
from schedules.horizontal import horizontal
from schedules.in_memory import in_memory
from schedules.iterations import iterations
from schedules.moves import count_moves
from schedules.placement import place, smallest
from schedules.planner import BUFFERS, Planner, predict
from schedules.pools import CUT, PAGE, Sizes
from schedules.residency import derive
from schedules.simulate import Profile, Shared, simulate
from schedules.steps import RESIDENT_UNIT, Kind, Part, Queue, Tier, Work
from schedules.structure import BOUNDARIES, moves
from schedules.traffic import count, totals
from schedules.vertical import vertical

INFINITE = float("inf")
ELEMENTS = 100 * PAGE


def make_sizes(delayed=0.0, elements=ELEMENTS, boundary=PAGE, resident=0):
  first = round(delayed * elements / PAGE) * PAGE
  parts = {Part.NOW: elements - first, Part.DELAYED: first}
  widths = {Kind.PARAMETERS: 2, Kind.STATES: 12, Kind.GRADIENTS: 4}
  whole = {Kind.BOUNDARY: boundary, Kind.BOUNDARY_GRADIENT: boundary}
  whole |= {Kind.RESIDENT: resident, Kind.RESIDENT_GRADIENTS: resident // 4}
  payload = {kind: width * elements for kind, width in widths.items()} | whole
  return Sizes(widths, {part: n for part, n in parts.items() if n}, payload, whole)


def make_profile(compute=1e-3, ssd=4e9, link=2e10, shared=()):
  rates = {Queue.SSD_READ: ssd, Queue.SSD_WRITE: 0.7 * ssd, Queue.HOST_UPDATE: 5e10}
  rates |= {Queue.HOST_TO_DEVICE: link, Queue.DEVICE_TO_HOST: link}
  taking_turns = tuple(Shared(str(i), 1.0, dict.fromkeys(q, 1.0)) for i, q in enumerate(shared))
  return Profile(compute, 3 * compute, 3 * compute, rates, taking_turns)


def work_of(sizes, units=12, micro_batches=4):
  return Work(units, micro_batches, tuple(sizes.elements))


def simulated_seconds(schedule, work, pools, profile):
  steps = list(derive(iterations(schedule, work, 0, 5), work, pools))
  ends = [
    span.stop
    for span in simulate(steps, profile, work, pools)
    if span.step.computation is not None and span.step.computation.unit == RESIDENT_UNIT
  ]
  return ends[3] - ends[2]


def test_two_units_solved_by_hand():
  """Only states have a size: a second to read those of one unit and a second to write them. Host
  memory holds one and a half units' of them, so that with one buffer to stream through half of each
  is on SSD: 2 s of reads and writes, which take turns in that buffer. Computations take 1 s forward
  and 1 s backward. All of it in the backward pass makes 1 + 2 s; half of what streams moved to the
  forward pass, a quarter of all, makes 1 + 1 s.
  """
  widths = {Kind.PARAMETERS: 0, Kind.STATES: 1, Kind.GRADIENTS: 0}
  sizes = Sizes(widths, {Part.NOW: ELEMENTS}, dict.fromkeys(Kind, 0), dict.fromkeys(Kind, 0))
  rates = dict.fromkeys(Queue, INFINITE)
  rates |= {Queue.SSD_READ: float(ELEMENTS), Queue.SSD_WRITE: float(ELEMENTS)}
  profile = Profile(1.0, 0.5, 0.5, rates)
  planner = Planner(2, sizes, {Tier.HOST: ELEMENTS * 3 // 2}, profile)
  now = planner.plan(vertical, micro_batches=1, delayed=0.0)
  assert now.prediction.busy == pytest.approx(
    {"device": 2.0, "ssd_read": 1.0, "ssd_write": 1.0}
    | dict.fromkeys(("host_update", "host_to_device", "device_to_host"), 0.0),
    abs=0.05,
  )
  best = planner.plan(vertical, micro_batches=1)
  assert best.delayed_fraction == 0.25
  on_ssd = {p: n for p, n in best.pools.vectors[Kind.STATES].items() if p.home is Tier.SSD}
  assert sum(on_ssd.values()) == ELEMENTS // 2
  assert on_ssd[next(p for p in on_ssd if p.part is Part.DELAYED)] == ELEMENTS // 4


@pytest.mark.parametrize("schedule", [vertical, horizontal])
def test_everything_fits(schedule):
  sizes = make_sizes()
  work = work_of(sizes)
  pools = place(schedule, work, sizes, {Tier.HOST: 10**12, Tier.DEVICE: 10**12})
  assert pools.peak_bytes(work)[Tier.SSD] == 0
  assert all(piece.home is Tier.HOST for kind in CUT for piece in pools.vectors[kind])
  steps = derive(iterations(schedule, work, 0, 3), work, pools)
  moved = totals(count(steps, pools))
  assert moved[Queue.SSD_READ] == moved[Queue.SSD_WRITE] == 0


@pytest.mark.parametrize("schedule", [vertical, horizontal])
@pytest.mark.parametrize("delayed", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9])
def test_never_over_the_budgets(schedule, delayed, share):
  sizes = make_sizes(delayed)
  work = work_of(sizes, units=4, micro_batches=5)
  least = smallest(sizes, work, False, depth=1).peak_bytes(work)
  room = {t: least[t] + round(share * 18 * 4 * ELEMENTS) for t in (Tier.HOST, Tier.DEVICE)}
  pools = place(schedule, work, sizes, room, False)
  peaks = pools.peak_bytes(work)
  assert all(peaks[tier] <= limit for tier, limit in room.items())
  list(derive(iterations(schedule, work, 0, 3), work, pools))  # no pool is too small


def test_more_host_memory_is_never_slower():
  sizes, profile = make_sizes(), make_profile(compute=2e-5)
  work = work_of(sizes, units=6)
  least = smallest(sizes, work, False).peak_bytes(work)[Tier.HOST]
  seconds = [
    Planner(6, sizes, {Tier.HOST: least + i * 4 * ELEMENTS}, profile)
    .plan(vertical, 4, 0.0)
    .prediction.seconds
    for i in range(0, 24, 4)
  ]
  assert all(b <= a * 1.01 for a, b in itertools.pairwise(seconds))
  assert seconds[-1] < 0.8 * seconds[0]


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DEVICE])
def test_one_byte_less_than_a_unit_needs_is_refused(tier):
  sizes = make_sizes()
  work = work_of(sizes)
  least = smallest(sizes, work, False, depth=1).peak_bytes(work)
  room = {Tier.HOST: least[Tier.HOST], Tier.DEVICE: least[Tier.DEVICE]}
  place(vertical, work, sizes, room, False)
  room[tier] -= 1
  with pytest.raises(ValueError, match=rf"--{tier}_memory_budget={room[tier]} is too small"):
    place(vertical, work, sizes, room, False)


def test_embedding_and_head_that_exceed_the_device_are_named():
  sizes = make_sizes(resident=10**9)
  with pytest.raises(ValueError, match="embedding and head alone take 1500000000"):
    place(vertical, work_of(sizes), sizes, {Tier.DEVICE: 10**9}, False)


def test_a_planner_that_finds_no_number_of_micro_batches_ends():
  planner = Planner(4, make_sizes(), {Tier.HOST: 1000}, make_profile())
  with pytest.raises(ValueError, match="--host_memory_budget=1000 is too small"):
    planner.plan(vertical)


def test_vectors_for_which_there_is_no_room_anywhere():
  sizes = make_sizes()
  work = work_of(sizes)
  least = smallest(sizes, work, False, depth=1).peak_bytes(work)
  room = {Tier.HOST: least[Tier.HOST], Tier.SSD: 12 * 13 * ELEMENTS}
  with pytest.raises(ValueError, match=f"No placement fits: .* take {12 * 18 * ELEMENTS} bytes"):
    place(vertical, work, sizes, room, False)


def test_delayed_gradients_that_do_not_fit_are_told_the_largest_fraction_that_does():
  """States and parameters fill all but a little of both tiers; what is left takes the gradients
  that wait, and the fraction that is named fits, a hundredth more does not."""
  sizes, profile = make_sizes(), make_profile()
  least = smallest(sizes.delaying(0.5), work_of(sizes), False, depth=1).peak_bytes(work_of(sizes))
  room = {Tier.HOST: least[Tier.HOST], Tier.SSD: 12 * 15 * ELEMENTS}
  planner = Planner(12, sizes, room, profile)
  waiting = 12 * 4 * ELEMENTS // 2
  with pytest.raises(ValueError, match=f"--delayed_fraction=0.5 does not fit: {waiting} b") as told:
    planner.plan(vertical, 4, 0.5)
  most = float(str(told.value).partition("at most --delayed_fraction=")[2].split(",")[0])
  assert 0.05 < most < 0.5
  planner.plan(vertical, 4, most)
  with pytest.raises(ValueError, match="does not fit"):
    planner.plan(vertical, 4, most + 0.01)


def test_gradients_that_never_reach_the_ssd_take_no_room_there():
  """Applied as soon as they are whole, they are dropped; delayed ones wait on SSD, but for the few
  that are still in the host's ring."""
  for delayed in (0.0, 0.5):
    sizes = make_sizes(delayed)
    work = work_of(sizes)
    least = smallest(sizes, work, False).peak_bytes(work)[Tier.HOST]
    pools = place(vertical, work, sizes, {Tier.HOST: least}, False)
    steps = derive(iterations(vertical, work, 0, 3), work, pools)
    accesses = [a for s in steps for a in s.accesses if a.tier is Tier.SSD]
    there = {(a.object, piece) for a in accesses for piece in a.slices}
    found = sum(pools.bytes(item.kind, (piece,)) for item, piece in there)
    in_ring = pools.rings[Tier.HOST, Kind.GRADIENTS] * round(delayed * 4 * ELEMENTS)
    assert found + in_ring == pools.peak_bytes(work)[Tier.SSD]
    assert any(item.kind is Kind.GRADIENTS for item, _ in there) == (delayed > 0)


def test_rings_have_no_more_buffers_than_there_are_objects():
  sizes = make_sizes()
  work = work_of(sizes, units=2, micro_batches=1)
  pools = smallest(sizes, work, False)
  assert all(n <= (1 if kind in BOUNDARIES else 2) for (_, kind), n in pools.rings.items())
  list(derive(iterations(vertical, work, 0, 3), work, pools))  # no pool is too small


def test_the_device_holds_a_stage_of_boundary_gradients_and_all_boundaries_before_more_of_them():
  """Of the gradients only those of a stage and its neighbours are alive at a time, so that room for
  all of them would be taken from the boundaries for nothing."""
  sizes = make_sizes(boundary=100 * PAGE)
  work = work_of(sizes, units=8, micro_batches=8)
  least = smallest(sizes, work, False).peak_bytes(work)[Tier.DEVICE]
  stage, boundaries = 3 * work.micro_batches, work.last * work.micro_batches
  room = {Tier.DEVICE: least + (stage + boundaries) * 100 * PAGE, Tier.HOST: 10**12}
  pools = place(vertical, work, sizes, room, False)
  moved = count(derive(iterations(vertical, work, 0, 3), work, pools), pools)
  assert not any(kind in BOUNDARIES for link in moved.values() for kind in link)
  assert Tier.HOST not in pools.homes.values()  # nor is there room kept for them


@pytest.mark.parametrize("rate", [0.0, None])
def test_a_missing_bandwidth_is_refused(rate):
  profile = make_profile()
  rates = {**profile.rates, Queue.SSD_READ: rate}
  rates = {queue: value for queue, value in rates.items() if value is not None}
  with pytest.raises(ValueError, match="no rate for ssd_read"):
    Planner(4, make_sizes(), {}, dataclasses.replace(profile, rates=rates))


def test_one_micro_batch_still_gains_by_delay():
  sizes = make_sizes()
  least = smallest(sizes, work_of(sizes), False).peak_bytes(work_of(sizes))[Tier.HOST]
  planner = Planner(12, sizes, {Tier.HOST: least}, make_profile(compute=2e-4))
  assert planner.plan(vertical, 1).delayed_fraction > 0
  gain = (
    planner.plan(vertical, 1, 0.0).prediction.seconds / planner.plan(vertical, 1).prediction.seconds
  )
  assert gain > 1.05


def test_a_fraction_for_which_the_disk_is_too_small_gives_way_to_a_smaller_one():
  """Rounded up to a candidate, it fits only with one host buffer, and is slower than none so."""
  sizes, profile = make_sizes(), make_profile(compute=2e-4)
  work = work_of(sizes, micro_batches=1)
  host = smallest(sizes, work, False, 1).peak_bytes(work)[Tier.HOST] + 16 * ELEMENTS
  planner = lambda disk: Planner(12, sizes, {Tier.HOST: host, Tier.SSD: disk}, profile)
  takes = lambda plan: plan.pools.peak_bytes(plan.work)[Tier.SSD]
  none = planner(None).plan(vertical, 1, 0.0)
  ample = planner(None).plan(vertical, 1)
  plan = planner(round(0.02 * takes(none) + 0.98 * takes(ample))).plan(vertical, 1)
  assert 0 < plan.delayed_fraction < ample.delayed_fraction
  assert ample.prediction.seconds < plan.prediction.seconds < 0.97 * none.prediction.seconds


@pytest.mark.parametrize("schedule", [vertical, horizontal])
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_predictions_know_that_few_host_buffers_are_taken_in_turn(schedule, micro_batches, depth):
  """With one, a unit's reads, update and writes come one after another."""
  sizes, profile = make_sizes(), make_profile(compute=2e-5)
  work = work_of(sizes, micro_batches=micro_batches)
  pools = smallest(sizes, work, False, depth)
  assert pools.rings[Tier.HOST, Kind.STATES] == depth
  prediction = predict(count_moves(schedule, work, pools), pools, profile)
  assert prediction.seconds == pytest.approx(
    simulated_seconds(schedule, work, pools, profile), rel=0.15
  )
  assert (prediction.binding == BUFFERS) == (depth == 1)


@pytest.mark.parametrize("schedule", [vertical, horizontal, in_memory])
@pytest.mark.parametrize("micro_batches", range(1, 10))
def test_few_units_fit_with_any_number_of_micro_batches(schedule, micro_batches):
  sizes = make_sizes()
  work = work_of(sizes, 2, micro_batches)
  room = smallest(sizes, work, False).peak_bytes(work)
  pools = place(schedule, work, sizes, room, False)
  list(derive(iterations(schedule, work, 0, 3), work, pools))  # no pool is too small


@pytest.mark.parametrize("pages", [1, 3, 6, 7, 11, 50, 100])
def test_a_fraction_is_a_short_decimal_that_cuts_where_the_plan_does(pages):
  for delayed in range(pages + 1):
    sizes = make_sizes(elements=pages * PAGE)
    sizes = sizes.delaying((delayed - 0.5) / pages if delayed else 0.0)
    assert sizes.elements.get(Part.DELAYED, 0) == delayed * PAGE
    assert sizes.delaying(sizes.fraction).elements == sizes.elements
    assert len(str(sizes.fraction)) <= 4 or pages >= 50


@pytest.mark.parametrize("schedule", [vertical, horizontal])
@pytest.mark.parametrize("delayed", [0.0, 0.25])
@pytest.mark.parametrize("compute", [3e-4, 1e-3, 4e-3])
@pytest.mark.parametrize(
  "shared", [(), ((Queue.SSD_READ, Queue.SSD_WRITE), (Queue.HOST_TO_DEVICE, Queue.DEVICE_TO_HOST))]
)
def test_predictions_are_within_15_percent_of_a_simulated_run(schedule, delayed, compute, shared):
  """With host rings of three, through which reads, updates and writes overlap."""
  sizes, profile = make_sizes(delayed), make_profile(compute, shared=shared)
  work = work_of(sizes, units=12, micro_batches=4)
  least = smallest(sizes, work, False).peak_bytes(work)
  room = {Tier.HOST: least[Tier.HOST] + 40 * ELEMENTS, Tier.DEVICE: 2 * least[Tier.DEVICE]}
  plan = Planner(12, sizes, room, profile).plan(schedule, 4, delayed)
  assert plan.pools.rings[Tier.HOST, Kind.STATES] == 3
  simulated = simulated_seconds(schedule, plan.work, plan.pools, profile)
  assert plan.prediction.seconds == pytest.approx(simulated, rel=0.15)


def test_a_plan_prices_what_place_places():
  sizes, profile = make_sizes(0.25), make_profile()
  room = {Tier.HOST: 60 * ELEMENTS, Tier.DEVICE: 40 * ELEMENTS}
  plan = Planner(8, sizes, room, profile).plan(vertical, 3, 0.25)
  assert plan.pools == place(vertical, plan.work, sizes, room, False, 0, profile)


def test_ties_go_to_fewer_micro_batches_and_no_delay():
  """Bound by computations alone, one micro-batch a second is one micro-batch a second."""
  planner = Planner(6, make_sizes(), {}, make_profile(compute=1.0))
  plan = planner.plan(vertical)
  assert (plan.work.micro_batches, plan.delayed_fraction) == (1, 0.0)
  assert [m for m, _ in plan.curve] == list(range(1, 22))


def test_the_ratio_rises_to_the_knee_and_falls():
  """The SSD takes as long for a unit's states as computations do for 8 of its micro-batches."""
  sizes = make_sizes(elements=1000 * PAGE, boundary=2 * PAGE)
  device = smallest(sizes, work_of(sizes), False).peak_bytes(work_of(sizes))[Tier.DEVICE]
  room = {Tier.HOST: 260 * 10**6, Tier.DEVICE: device}
  planner = Planner(12, sizes, room, make_profile(compute=3e-4, ssd=4e9, link=1e10))
  ratio = lambda m: (
    planner.plan(horizontal, m, 0.0).prediction.seconds
    / planner.plan(vertical, m, 0.0).prediction.seconds
  )
  few, knee, many = ratio(1), ratio(8), ratio(80)
  assert 1.0 < few < 0.9 * knee
  assert 1.0 < many < 0.9 * knee


def published_ratio(units, width, micro_batches, tokens=4096, gradient_bytes=2):
  elements = 12.0 * units * width * width
  shape = published.Training(units, width, elements, tokens, 2048, micro_batches)
  rates = published.Rates(170e12, 24e9, 10e9, 5e9, 4e9, 400e9)
  slow = published.horizontal_seconds(shape, rates, gradient_bytes)
  fast = published.vertical_seconds(shape, rates)
  return slow and fast and slow / fast


def test_the_published_ratios_are_met_under_their_stated_assumptions():
  assert published_ratio(80, 8192, 60) == pytest.approx(1.95, rel=0.02)
  assert published_ratio(96, 12_288, 60) == pytest.approx(2.54, rel=0.02)
  assert published_ratio(80, 8192, 120, tokens=2048) == pytest.approx(3.61, rel=0.02)
  assert published_ratio(80, 8192, 60, gradient_bytes=4) == pytest.approx(2.84, rel=0.02)
  assert published_ratio(96, 12_288, 60, gradient_bytes=4) is None


def test_the_published_ratio_over_micro_batches():
  found = [published_ratio(80, 8192, m) for m in (2, 8, 16, 32, 64, 256)]
  assert found == pytest.approx([1.66, 2.21, 2.68, 2.19, 1.94, 1.75], rel=0.02)


def test_a_large_model_is_predicted_from_small_lists():
  """GPT-65B's counts, against formulas of its own pools: parameters loaded 2U - d times, gradients
  saved once a unit, whatever the micro-batches."""
  work = Work(80, 60)
  structure = smallest_structure(work, master_is_parameter=False, depth=3)
  sizes = make_sizes()
  vectors = smallest(sizes, work, False).vectors
  pools = structure.pools(work, sizes, dict(vectors))
  traffic = predict(
    moves(vertical, work, structure.streaming(pools)), pools, make_profile()
  ).traffic
  unit = {kind: sizes.bytes(kind) for kind in CUT}
  assert traffic[Queue.HOST_TO_DEVICE][Kind.PARAMETERS] == (2 * 80 - 2) * unit[Kind.PARAMETERS]
  assert traffic[Queue.DEVICE_TO_HOST][Kind.GRADIENTS] == 80 * unit[Kind.GRADIENTS]
  assert traffic[Queue.SSD_WRITE][Kind.STATES] == 80 * unit[Kind.STATES]
