"""Walks a derived list with one worker for each queue.

A worker takes, among its queue's steps whose waits are over, the one listed first. Nothing else is
scheduled by hand: prefetching and overlap follow from the list.
"""

import dataclasses
import heapq
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from schedules.steps import Queue, Step

_WINDOW = 4096  # steps known to the workers at one time
NOTED = 4  # iterations that leave their spans: those of a long run would not fit in memory


@dataclasses.dataclass(frozen=True)
class Span:
  """A step that has run, in seconds since the executor was made."""

  queue: Queue
  name: str
  iteration: int
  start: float
  stop: float


class Executor:
  """Runs steps by `perform`, which must return only when a step's effects are visible to all.

  With `overlap=False` a single worker takes the steps strictly in list order.

  Attributes:
    spans: the steps that ran in the first iterations, in the order in which they ended.
    busy: seconds of work of each queue, over all iterations.
  """

  def __init__(self, perform: Callable[[Step], None], *, overlap: bool = True, noted: int = NOTED):
    self._perform, self._noted = perform, noted
    self._overlap = overlap
    self._began = time.perf_counter()
    self._first: int | None = None
    self.spans: list[Span] = []
    self.busy = dict.fromkeys(Queue, 0.0)

  def run(
    self,
    steps: Iterable[Step],
    done: Callable[[Step], None] = lambda step: None,
    admits: Callable[[Step], bool] = lambda step: True,
  ) -> None:
    """Returns when every step has run; `done` is called after each, one call at a time.

    A step that `admits` refuses when its turn comes is left out, as if it had run.

    Raises:
      Exception: the first that a step raised, noted with the step's name; the steps that had begun
        are finished first, the others are not begun.
    """
    if not self._overlap:
      for step in filter(admits, steps):
        self._time(step)
        done(step)
      return
    run = _Run(self._time, done, admits)
    workers = [threading.Thread(target=run.work, args=(q,), name=q, daemon=True) for q in Queue]
    for worker in workers:
      worker.start()
    try:
      for step in steps:
        run.add(step)
    except BaseException as error:  # an interrupt, say: no step is begun any more
      run.fail(error)
    finally:
      run.close()
      for worker in workers:
        worker.join()
    run.reraise()

  def _time(self, step: Step) -> None:
    start = time.perf_counter() - self._began
    try:
      self._perform(step)
    except Exception as error:
      error.add_note(f"In step: {step}.")
      raise
    stop = time.perf_counter() - self._began
    self.busy[step.queue] += stop - start
    self._first = step.iteration if self._first is None else self._first
    if step.iteration < self._first + self._noted:
      self.spans.append(Span(step.queue, str(step), step.iteration, start, stop))


class _Run:
  """The state that the workers share; one lock guards all of it, another keeps calls of `done`
  apart."""

  def __init__(
    self,
    perform: Callable[[Step], None],
    done: Callable[[Step], None],
    admits: Callable[[Step], bool],
  ):
    self._perform, self._done, self._admits = perform, done, admits
    self._lock, self._telling = threading.Lock(), threading.Lock()
    self._room = threading.Condition(self._lock)
    self._ready_or_over = {queue: threading.Condition(self._lock) for queue in Queue}
    self._ready: dict[Queue, list[int]] = {queue: [] for queue in Queue}
    self._steps: dict[int, Step] = {}  # those that have not ended
    self._waits: dict[int, int] = {}
    self._waiting: dict[int, list[int]] = defaultdict(list)
    self._closed = False
    self._error: BaseException | None = None

  def add(self, step: Step) -> None:
    with self._lock:
      self._room.wait_for(lambda: len(self._steps) < _WINDOW or self._error)
      if self._error:
        self._raise()
      self._steps[step.index] = step
      open_waits = [w for w in step.waits if w in self._steps]
      for wait in open_waits:
        self._waiting[wait].append(step.index)
      self._waits[step.index] = len(open_waits)
      if not open_waits:
        self._make_ready(step)

  def close(self) -> None:
    with self._lock:
      self._closed = True
      self._wake_all()

  def work(self, queue: Queue) -> None:
    while (step := self._next(queue)) is not None:
      try:
        if self._admits(step):
          self._perform(step)
          with self._telling:
            self._done(step)
      except BaseException as error:
        self.fail(error)
        return
      self._end(step)

  def reraise(self) -> None:
    if self._error:
      self._raise()

  def _raise(self) -> None:
    assert self._error is not None
    raise self._error

  def _next(self, queue: Queue) -> Step | None:
    with self._lock:
      over = lambda: self._error or (self._closed and not self._steps)
      self._ready_or_over[queue].wait_for(lambda: self._ready[queue] or over())
      if self._error or not self._ready[queue]:
        return None
      return self._steps[heapq.heappop(self._ready[queue])]

  def _end(self, step: Step) -> None:
    with self._lock:
      del self._steps[step.index], self._waits[step.index]
      for index in self._waiting.pop(step.index, ()):
        self._waits[index] -= 1
        if self._waits[index] == 0:
          self._make_ready(self._steps[index])
      self._room.notify()
      if self._closed and not self._steps:
        self._wake_all()

  def fail(self, error: BaseException) -> None:
    with self._lock:
      self._error = self._error or error
      self._wake_all()

  def _make_ready(self, step: Step) -> None:
    heapq.heappush(self._ready[step.queue], step.index)
    self._ready_or_over[step.queue].notify()

  def _wake_all(self) -> None:
    self._room.notify_all()
    for condition in self._ready_or_over.values():
      condition.notify_all()
