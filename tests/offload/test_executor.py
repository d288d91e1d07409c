"""The executor on steps that only note down what happens."""

import itertools
import random
import signal
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
from schedules.steps import Kind, Part, Queue, Work

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


@pytest.mark.parametrize("queue", Queue)
def test_on_a_schedule_only_the_queue_itself_builds_on_what_has_begun(pools, queue):
  lock, begun, ended = threading.Lock(), {}, {}

  def perform(step):
    with lock:
      open_waits = [w for w in step.waits if w not in ended]
      assert all(begun[w].queue is step.queue is queue for w in open_waits)
      begun[step.index] = step
      if step.queue is not queue:
        ended[step.index] = step
        return None
    return Rest(finish(step))

  def finish(step):
    def note():
      time.sleep(1e-3)  # what begins too early does so now
      with lock:
        assert all(b.index in ended for b in before), "out of order"
        ended[step.index] = step

    before = [b for b in begun.values() if b.queue is queue and b is not step]
    return note

  Executor(perform, ahead=True).run(steps(pools, 3))
  Replay(WORK, pools).run(list(ended.values()))
  assert sorted(ended) == list(range(len(ended)))


def test_spans_of_a_queue_follow_each_other(pools):
  """That of a step that ends alone, too, holds its own time and not the time of the one before."""

  def perform(step):
    if step.queue is Queue.DEVICE:
      return Rest(lambda: time.sleep(2e-3), alone=step.computation.unit == 0)
    return None

  executor = Executor(perform, ahead=True)
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


@pytest.fixture
def interrupts():
  """Raise in the main thread: in a shell's background jobs they are ignored otherwise."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_while_all_is_listed_begins_no_further_step(pools):
  listed = list(steps(pools, 1))
  performed = []

  def perform(step):
    performed.append(step)
    if len(performed) == 5:
      signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.01)

  with pytest.raises(KeyboardInterrupt):
    Executor(perform).run(listed)
  begun = len(performed)
  time.sleep(0.1)
  assert len(performed) == begun < len(listed) / 2
