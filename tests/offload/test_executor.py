"""The executor on steps that only note down what happens."""

import itertools
import random
import threading
import time

import pytest

from offload.executor import Executor, Rest
from schedules.iterations import iterations
from schedules.placement import smallest
from schedules.pools import CUT, Sizes
from schedules.registry import SCHEDULES
from schedules.replay import Replay
from schedules.residency import derive
from schedules.steps import Kind, Part, Queue, Step, Work, forward, update

WORK = Work(4, 3)


@pytest.fixture
def pools():
  widths = dict.fromkeys(CUT, 1)
  sizes = Sizes(widths, {Part.NOW: 1}, dict.fromkeys(Kind, 1), dict.fromkeys(Kind, 1))
  return smallest(sizes, WORK, master_is_parameter=True)


def steps(pools, count=2):
  return derive(iterations(SCHEDULES["vertical"], WORK, 0, count), WORK, pools)


@pytest.mark.parametrize("slow", Queue)
def test_whichever_queue_is_slow_the_order_is_right(pools, slow):
  """Steps end in an order that the waits allow: the replay finds nothing wrong with it."""
  rng, ended = random.Random(0), []

  def perform(step):
    if step.queue is slow:
      time.sleep(rng.random() * 2e-3)

  Executor(perform).run(steps(pools), ended.append)
  Replay(WORK, pools).run(ended)
  assert sorted(s.index for s in ended) == list(range(len(ended)))


class Device:
  """Steps of one queue that end only when they are waited for, in order; all others at once."""

  def __init__(self, queue, alone=lambda step: False):
    self.queue, self.alone, self.ended = queue, alone, []
    self.begun, self.most = [], 0
    self.lock = threading.Lock()

  def perform(self, step):
    with self.lock:
      known = {s.index: s for s in self.begun}
      over = {s.index for s in self.ended}
      late = [w for w in step.waits if w not in over and known[w].queue is not step.queue]
      assert not late, f"{step} began before {known[late[0]]} had ended"
      self.begun.append(step)
      under_way = [s for s in self.begun if s.queue is self.queue and s not in self.ended]
      assert not any(map(self.alone, under_way[:-1])), f"{step} began too early"
      self.most = max(self.most, len(under_way))
      if step.queue is not self.queue:
        self.ended.append(step)
        return None

    def finish():
      with self.lock:
        assert under_way[0] is step or under_way[0] in self.ended, "out of order"
        self.ended.append(step)

    return Rest(finish, self.alone(step))


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("queue", Queue)
def test_a_queue_begins_so_many_steps_ahead(pools, queue, ahead):
  device = Device(queue)
  Executor(device.perform, ahead=ahead).run(steps(pools, 3))
  assert sorted(s.index for s in device.ended) == list(range(len(device.ended)))
  Replay(WORK, pools).run(device.ended)
  assert device.most <= 1 + ahead
  if queue is Queue.DEVICE:  # whose steps mostly build on each other
    assert device.most == 1 + ahead


def test_what_ends_alone_lets_nothing_begin_before(pools):
  first = lambda step: step.computation is not None and step.computation.unit == 0
  device = Device(Queue.DEVICE, alone=first)
  Executor(device.perform, ahead=1).run(steps(pools, 3))
  Replay(WORK, pools).run(device.ended)
  assert device.most == 2


class Chain:
  """Two computations and a third step, on another queue, each of which waits for the one before;
  the first begins when all are known."""

  def __init__(self):
    self.steps = [
      Step(0, Queue.DEVICE, 0, forward(0, 0), (), ()),
      Step(1, Queue.DEVICE, 0, forward(1, 0), (), (0,)),
      Step(2, Queue.HOST_UPDATE, 0, update(0), (), (1,)),
    ]
    self._known = threading.Event()

  def __iter__(self):
    yield from self.steps
    self._known.set()

  def wait(self):
    assert self._known.wait(20)


def test_what_is_left_out_does_not_overtake_what_came_before():
  """Who waits for it can rely on all that it would have waited for."""
  chain, ended, last = Chain(), [], threading.Event()

  def finish():
    last.wait(0.2)  # long enough for the last step, if it may begin
    ended.append(0)

  def perform(step):
    if step is not chain.steps[0]:
      last.set()
      assert ended == [0]
      return None
    chain.wait()
    return Rest(finish)

  admits = lambda step: step is not chain.steps[1]
  Executor(perform, ahead=1).run(chain, admits=admits)
  assert ended == [0]


def fails_when_finished(nth, begun, finished):
  """Steps of the device whose `nth` fails as it is finished."""

  def perform(step):
    if step.queue is not Queue.DEVICE:
      return None
    begun.append(str(step))

    def finish():
      finished.append(str(step))
      if len(finished) == nth:
        raise ArithmeticError("not finite")

    return Rest(finish)

  return perform


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("overlap", [True, False])
def test_what_fails_after_it_began_is_named(pools, overlap, ahead):
  begun, finished = [], []
  perform = fails_when_finished(7, begun, finished)
  with pytest.raises(ArithmeticError, match="not finite") as caught:
    Executor(perform, overlap=overlap, ahead=ahead).run(steps(pools, 50))
  assert caught.value.__notes__ == [f"In step: {finished[6]}."]
  assert finished == begun  # what had begun is finished


def test_of_two_failures_that_of_the_earlier_step_is_told():
  """It fails as it is finished, when the next, which builds on it, has failed to begin."""
  chain = Chain()

  def fail():
    raise ArithmeticError("not finite")

  def perform(step):
    if step is not chain.steps[0]:
      raise RuntimeError("built on what is not there")
    chain.wait()
    return Rest(fail)

  with pytest.raises(ArithmeticError, match="not finite") as caught:
    Executor(perform, ahead=1).run(chain)
  assert caught.value.__notes__ == [f"In step: {chain.steps[0]}."]


def test_spans_of_a_queue_that_begins_ahead_follow_each_other(pools):
  """That of a step that ends alone, too, holds its own time and not the time of the one before."""
  alone = lambda step: step.computation.unit == 0

  def perform(step):
    if step.queue is Queue.DEVICE:
      return Rest(lambda: time.sleep(2e-3), alone(step))
    return None

  executor = Executor(perform, ahead=1)
  executor.run(steps(pools))
  spans = [s for s in executor.spans if s.queue is Queue.DEVICE]
  assert all(a.stop <= b.start for a, b in itertools.pairwise(spans))
  assert all(s.stop - s.start >= 2e-3 for s in spans)
  assert executor.busy[Queue.DEVICE] == pytest.approx(sum(s.stop - s.start for s in spans))


def test_queues_overlap(pools):
  """Two queues are at work at one time: each waits until it has seen the other."""
  met = threading.Barrier(2)
  meeting = {Queue.DEVICE: False, Queue.SSD_READ: False}

  def perform(step):
    if step.iteration == 1 and meeting.get(step.queue) is False:
      meeting[step.queue] = True
      met.wait(timeout=20)

  Executor(perform).run(steps(pools))
  assert all(meeting.values())


def test_without_overlap_the_list_is_the_order(pools):
  ended = []
  Executor(lambda step: None, overlap=False).run(steps(pools), ended.append)
  assert [s.index for s in ended] == list(range(len(ended)))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("queue", Queue)
def test_a_failure_on_any_queue_ends_the_run_and_names_the_step(pools, queue, overlap):
  failed = []

  def perform(step):
    if step.queue is queue and step.iteration == 1:
      failed.append(str(step))
      raise OSError("no space left")

  with pytest.raises(OSError, match="no space left") as caught:
    Executor(perform, overlap=overlap).run(steps(pools, 50))
  assert caught.value.__notes__ == [f"In step: {failed[0]}."]


def test_what_hears_of_ended_steps_may_fail_too(pools):
  def done(step):
    if step.iteration == 1:
      raise RuntimeError("the log is full")

  with pytest.raises(RuntimeError, match="the log is full"):
    Executor(lambda step: None).run(steps(pools, 50), done)


def test_spans_tell_what_ran(pools):
  executor = Executor(lambda step: None)
  listed = list(steps(pools))
  executor.run(listed)
  assert sorted(s.name for s in executor.spans) == sorted(map(str, listed))
  assert all(0 <= s.start <= s.stop for s in executor.spans)


def test_an_interrupt_begins_no_further_step(pools):
  """As Ctrl-C in the main thread: what has begun ends, what is listed is left."""
  performed = []

  def interrupted():
    for i, step in enumerate(steps(pools, 3)):
      if i == 200:
        raise KeyboardInterrupt
      yield step

  def perform(step):
    performed.append(step)
    time.sleep(0.01)

  with pytest.raises(KeyboardInterrupt):
    Executor(perform).run(interrupted())
  assert len(performed) < 100
