"""The executor when steps need not end before the next of their queue begins: step by step."""

import threading

import pytest

from offload.executor import Executor, Rest
from schedules.steps import Queue, Step, forward, update


class Chain:
  """Computations and then a step on another queue, each of which waits for the one before.

  `perform` notes what begins and ends. The first begins when all are known, so that what may begin
  next is known, too.
  """

  def __init__(self, computations, alone=()):
    devices = [Queue.DEVICE] * computations
    what = [*(forward(u, 0) for u in range(computations)), update(0)]
    self.steps = [
      Step(i, queue, 0, computation, (), (i - 1,) if i else ())
      for i, (queue, computation) in enumerate(
        zip([*devices, Queue.HOST_UPDATE], what, strict=True)
      )
    ]
    self.alone, self.events, self.known = alone, [], threading.Event()

  def __iter__(self):
    yield from self.steps
    self.known.set()

  def perform(self, step):
    if step.index == 0:
      assert self.known.wait(20)
    self.events.append(("begins", step.index))
    if step.queue is Queue.HOST_UPDATE:
      return None
    return Rest(lambda: self.events.append(("ends", step.index)), step.index in self.alone)

  def done(self, step):
    self.events.append(("done", step.index))


def flat(*events):
  """('begins 0', 'ends 0') as pairs."""
  return [(what, int(index)) for what, index in map(str.split, events)]


def test_the_next_begins_before_the_one_at_work_ends():
  """Then that one ends and `done` hears of it, once; a step of another queue waits for all that."""
  chain = Chain(3)
  Executor(chain.perform, ahead=True).run(chain, chain.done)
  assert chain.events == flat(
    *("begins 0", "begins 1", "ends 0", "done 0", "begins 2", "ends 1", "done 1"),
    *("ends 2", "done 2", "begins 3", "done 3"),
  )


@pytest.mark.parametrize("how", [{"ahead": False}, {"ahead": True, "overlap": False}])
def test_without_it_each_ends_before_the_next_begins(how):
  chain = Chain(2)
  chain.known.set()  # one worker begins before it has seen the whole list
  Executor(chain.perform, **how).run(chain, chain.done)
  whole = (("begins", "ends", "done"),) * 2 + (("begins", "done"),)
  assert chain.events == [(what, i) for i, events in enumerate(whole) for what in events]


def test_what_ends_alone_lets_nothing_begin_before():
  """But it begins before the one before it ends."""
  chain = Chain(3, alone=(1,))
  Executor(chain.perform, ahead=True).run(chain)
  assert chain.events[:6] == flat("begins 0", "begins 1", "ends 0", "ends 1", "begins 2", "ends 2")


def test_what_is_left_out_does_not_overtake_what_came_before():
  """Who waits for it can rely on all that it would have waited for."""
  chain, begun = Chain(2), threading.Event()

  def perform(step):
    rest = chain.perform(step)
    if rest is None:
      begun.set()
      return None

    def finish():
      begun.wait(0.2)  # long enough for the last step, if it may begin
      rest.finish()

    return Rest(finish)

  Executor(perform, ahead=True).run(chain, admits=lambda step: step.index != 1)
  assert chain.events == flat("begins 0", "ends 0", "begins 2")


def fails(chain, *, beginning=(), ending=()):
  """The chain's `perform`, but for steps that fail."""

  def perform(step):
    rest = chain.perform(step)
    if step.index in beginning:
      raise RuntimeError("cannot begin")
    if step.index in ending:
      return Rest(lambda: chain.steps[99])
    return rest

  return perform


def test_a_failure_at_the_end_is_told_and_what_has_begun_is_finished():
  chain = Chain(3)
  with pytest.raises(IndexError) as caught:
    Executor(fails(chain, ending=(0,)), ahead=True).run(chain, chain.done)
  assert caught.value.__notes__ == [f"In step: {chain.steps[0]}."]
  assert chain.events == flat("begins 0", "begins 1", "ends 1")


def test_of_two_failures_that_of_the_earlier_step_is_told():
  """It fails at its end, when the next, which builds on it, has failed to begin."""
  chain = Chain(2)
  with pytest.raises(IndexError) as caught:
    Executor(fails(chain, beginning=(1,), ending=(0,)), ahead=True).run(chain)
  assert caught.value.__notes__ == [f"In step: {chain.steps[0]}."]


def test_when_another_queue_fails_what_has_begun_is_finished():
  at_work, failed = threading.Event(), threading.Event()
  ended = []
  computation = Step(0, Queue.DEVICE, 0, forward(0, 0), (), ())
  other = Step(1, Queue.HOST_UPDATE, 0, update(0), (), ())

  def perform(step):
    if step is other:
      assert at_work.wait(20)
      failed.set()
      raise OSError("no space left")
    at_work.set()
    return Rest(lambda: failed.wait(20) and ended.append(step))

  with pytest.raises(OSError, match="no space left"):
    Executor(perform, ahead=True).run([computation, other])
  assert ended == [computation]
