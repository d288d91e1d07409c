"""The derived list, replayed with labels: in list order, and in any order that the waits allow."""

import dataclasses
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from schedules.check import ScheduleError
from schedules.iterations import iterations
from schedules.pools import PAGE
from schedules.registry import SCHEDULES
from schedules.replay import Replay
from schedules.residency import derive
from schedules.steps import Kind, Mode, Part, Queue, Slice, Tier, Work
from schedules.whole_step import with_whole_step


def derived(name, work, pools, count=3):
  return list(derive(iterations(SCHEDULES[name], work, 0, count), work, pools))


def shuffled(steps, seed):
  """An order in which every step comes after those it waits for, and nothing else is promised."""
  rng = random.Random(seed)
  waiting = {step.index: set(step.waits) for step in steps}
  while waiting:
    ready = [i for i, waits in waiting.items() if not waits]
    chosen = rng.choice(ready)
    del waiting[chosen]
    for waits in waiting.values():
      waits.discard(chosen)
    yield steps[chosen]


def four_pages(work):
  return dict.fromkeys(work.parts, 4 * PAGE)


works = st.builds(
  Work,
  st.integers(1, 8),
  st.integers(1, 4),
  st.sampled_from([(Part.NOW,), (Part.DELAYED,), (Part.NOW, Part.DELAYED)]),
)
settings = st.fixed_dictionaries(
  {
    "device": st.integers(1, 3),
    "host": st.integers(1, 4),
    "ring": st.integers(2, 5),
    "gradients": st.sampled_from([0.0, 0.5, 1.0]),
    "boundaries": st.sampled_from(Tier),
    "units": st.sampled_from([0.0, 0.25, 1.0]),
    "spilled": st.integers(0, 2),
    "master_is_parameter": st.booleans(),
  }
)


@hypothesis.given(st.sampled_from(sorted(SCHEDULES)), works, settings, st.integers(0, 99))
@hypothesis.settings(
  max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_any_order_that_the_waits_allow_trains_right(make_pools, name, work, kwargs, seed):
  work = with_whole_step(SCHEDULES[name], work) if seed % 2 else work
  pools = make_pools(**kwargs, elements=four_pages(work))
  steps = derived(name, work, pools)
  assert [step.index for step in steps] == list(range(len(steps)))
  assert all(wait < step.index for step in steps for wait in step.waits)
  for order in (steps, shuffled(steps, seed)):
    replay = Replay(work, pools)
    replay.run(order)
    replay.finish(last=2)


@hypothesis.given(st.sampled_from(sorted(SCHEDULES)), works, settings, st.integers(0, 99))
@hypothesis.settings(
  max_examples=100, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_whatever_comes_after_the_running_iteration_can_be_left_out(
  make_pools, name, work, kwargs, seed
):
  """From any moment on, in any order: a run may end with the newest iteration on the device."""
  work = with_whole_step(SCHEDULES[name], work) if seed % 2 else work
  pools = make_pools(**kwargs, elements=four_pages(work))
  steps = derived(name, work, pools)
  replay, running, stop = Replay(work, pools), 0, random.Random(seed).randrange(len(steps))
  for number, step in enumerate(shuffled(steps, seed)):
    if number >= stop and step.iteration > running:
      continue
    replay.take(step)
    if step.queue is Queue.DEVICE:
      running = max(running, step.iteration)
  replay.finish(running)


@hypothesis.given(st.sampled_from(["vertical", "horizontal"]), works, settings)
@hypothesis.settings(
  max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_buffers_never_exceed_the_pools(make_pools, name, work, kwargs):
  pools = make_pools(**kwargs, elements=four_pages(work))
  used = {}
  for step in derived(name, work, pools):
    for a in (a for a in step.accesses if a.object.kind is not Kind.NORM):
      where = a.object if a.tier is Tier.SSD else a.slot
      used.setdefault((a.tier, a.object.kind), {}).setdefault(where, set()).update(a.slices)
  peaks = dict.fromkeys(Tier, 0)
  for (tier, kind), places in used.items():
    peaks[tier] += sum(pools.bytes(kind, slices) for slices in places.values())
  planned = pools.peak_bytes(work)
  assert all(peaks[tier] <= planned[tier] for tier in Tier)


@pytest.mark.parametrize("kind", [Kind.PARAMETERS, Kind.STATES])
def test_a_last_write_left_out_is_found(make_pools, kind):
  work, pools = Work(3, 2), make_pools()
  steps = derived("vertical", work, pools)
  writes = [s for s in steps if s.queue is Queue.SSD_WRITE and s.moved[0] is kind]
  replay = Replay(work, pools)
  replay.run(s for s in steps if s is not writes[-1])
  with pytest.raises(ScheduleError, match=f"{kind}\\(0\\) at home on the ssd is not that of the"):
    replay.finish(last=2)


@pytest.mark.parametrize("queue", Queue)
def test_waits_left_out_are_found(make_pools, queue):
  """The replay is worth something only if it fails where one queue's waits are wrong."""
  work, pools = Work(4, 3), make_pools()
  steps = derived("vertical", work, pools)
  bare = [dataclasses.replace(s, waits=()) if s.queue is queue else s for s in steps]
  with pytest.raises(ScheduleError):
    for seed in range(30):
      Replay(work, pools).run(shuffled(bare, seed))


FAULTS = {
  "load of parameters": (Queue.HOST_TO_DEVICE, Kind.PARAMETERS),
  "write of parameters": (Queue.SSD_WRITE, Kind.PARAMETERS),
  "read of states": (Queue.SSD_READ, Kind.STATES),
  "save of a boundary": (Queue.DEVICE_TO_HOST, Kind.BOUNDARY),
  "load of a boundary gradient": (Queue.HOST_TO_DEVICE, Kind.BOUNDARY_GRADIENT),
  "save of gradients": (Queue.DEVICE_TO_HOST, Kind.GRADIENTS),
}


@pytest.mark.parametrize("queue, kind", FAULTS.values(), ids=FAULTS)
def test_a_transfer_left_out_is_found(make_pools, queue, kind):
  work, pools = Work(5, 3), make_pools()
  steps = derived("vertical", work, pools)
  moves = [s for s in steps if s.computation is None and s.moved[0] is kind]
  gone = next(s for s in moves if s.queue is queue and s.iteration == 1)
  with pytest.raises(ScheduleError, match=r"(reads|finds)"):
    Replay(work, pools).run(s for s in steps if s is not gone)


def test_gradients_left_out_of_a_sum_are_found(make_pools):
  work, pools = Work(3, 3), make_pools()
  steps = derived("vertical", work, pools)
  sums = [s for s in steps if str(s).startswith("backward(unit 1, micro-batch 1)")]
  with pytest.raises(ScheduleError, match="update"):
    Replay(work, pools).run(s for s in steps if s is not sums[0])


def test_a_pool_too_small_names_the_computation(make_pools):
  pools = make_pools(ring=1)
  with pytest.raises(
    ValueError, match=r"forward\(unit 1, .*needs more than the 1 boundary buffers"
  ):
    derived("vertical", Work(3, 2), pools)


def test_what_updates_read_is_not_at_home_on_the_device(make_pools):
  pools = make_pools()
  vectors = {**pools.vectors, Kind.GRADIENTS: {Slice(Part.NOW, Tier.DEVICE): 1}}
  with pytest.raises(ValueError, match="gradients cannot be at home on the device"):
    dataclasses.replace(pools, vectors=vectors)


@pytest.mark.parametrize("name", ["vertical", "horizontal"])
def test_only_the_slices_at_home_on_ssd_are_read_from_there(make_pools, name):
  work = Work(5, 2, (Part.NOW, Part.DELAYED))
  pools = make_pools(units=0.25, elements=four_pages(work))
  steady = [s for s in derived(name, work, pools) if s.iteration == 1]
  reads = [s.moved for s in steady if s.queue is Queue.SSD_READ]
  assert {piece.home for _, slices in reads for piece in slices} == {Tier.SSD}
  states = sum(pools.bytes(*moved) for moved in reads if moved[0] is Kind.STATES)
  assert states == 5 * 2 * 3 * PAGE  # three of four pages, of each part, once


def test_nothing_moves_that_needs_not(make_pools):
  """One unit and ample pools: only what an update changes crosses the link, once."""
  pools = make_pools(units=1.0, boundaries=Tier.DEVICE, gradients=1.0)
  steps = [s for s in derived("vertical", Work(1, 4), pools) if s.iteration == 1]
  moves = [s for s in steps if s.computation is None]
  assert [(s.queue, s.moved[0]) for s in moves] == [
    (Queue.HOST_TO_DEVICE, Kind.PARAMETERS),
    (Queue.DEVICE_TO_HOST, Kind.GRADIENTS),
  ]
  assert moves[0].access(Tier.DEVICE, Kind.PARAMETERS).mode is Mode.WRITE


@pytest.mark.parametrize("units", [6, 8, 11])
@pytest.mark.parametrize("master_is_parameter", [True, False])
def test_the_next_pass_waits_for_updates_results_in_the_order_of_their_writes(
  make_pools, units, master_is_parameter
):
  """Not the other way round: the last unit's write would hold up the first unit's read."""
  pools = make_pools(host=3, master_is_parameter=master_is_parameter)
  steps = derived("vertical", Work(units, 2), pools)
  of_parameters = lambda queue, iteration: [
    s
    for s in steps
    if (s.queue, s.iteration) == (queue, iteration) and s.moved[0] is Kind.PARAMETERS
  ]
  written = [step.index for step in of_parameters(Queue.SSD_WRITE, 0)][-3:]
  read = of_parameters(Queue.SSD_READ, 1)[:3]
  assert [step.sources[0].object.unit for step in read] == [3, 4, 5]
  assert [[w for w in step.waits if w in written] for step in read] == [[i] for i in written]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("parts", [(Part.NOW,), (Part.NOW, Part.DELAYED)])
def test_states_are_read_after_the_last_parameters_listed_before_them(make_pools, name, parts):
  """But for delayed updates; and no parameters wait for a read of states by this rule."""
  work = Work(6, 2, parts)
  steps = derived(name, work, make_pools(elements=four_pages(work), units=0.25))
  reads = [step for step in steps if step.queue is Queue.SSD_READ]
  parameters = [step.index for step in reads if step.moved[0] is Kind.PARAMETERS]
  states = [step for step in reads if step.moved[0] is Kind.STATES]
  assert {piece.part for step in states for piece in step.moved[1]} == set(parts)
  for step in states:
    now = step.moved[1][0].part is Part.NOW
    last = {max(i for i in parameters if i < step.index)} if now else set()
    assert set(parameters) & set(step.waits) == last
  of_states = {step.index for step in states}
  for step in reads:
    assert step.moved[0] is Kind.STATES or not of_states & set(step.waits)
