"""Walks a derived list with one worker for each queue.

A worker takes, among its queue's steps whose waits are over, the one listed first. Nothing else is
scheduled by hand: prefetching and overlap follow from the list.

A queue works in order. So a step need not wait for the end of another of its own queue, only until
that has begun; and where beginning a step does not take until its end, as with the computations of
a device, a worker begins one step ahead: what it costs to begin it passes while the device works.
"""

import contextlib
import dataclasses
import heapq
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from schedules.steps import Queue, Step

_WINDOW = 4096  # steps known to the workers at one time
_AHEAD = 1  # steps of a queue that have begun before the one at work ends
NOTED = 4  # iterations that leave their spans: those of a long run would not fit in memory


Wait = Callable[[], None]
Perform = Callable[[Step], Wait | None]


@dataclasses.dataclass(frozen=True)
class Span:
  """A step that has run, in seconds since the executor was made.

  One that began before the step ahead of it had ended starts with that end.
  """

  queue: Queue
  name: str
  iteration: int
  start: float
  stop: float


class _Begun(NamedTuple):
  step: Step
  start: float
  wait: Wait | None


class Executor:
  """Runs steps by `perform`, which returns when a step's effects are visible to all, or else what
  returns then; until then only steps of the same queue may rely on them.

  With `overlap=False` a single worker takes the steps strictly in list order.

  Attributes:
    spans: the steps that ran in the first iterations, in the order in which they ended.
    busy: seconds of work of each queue, over all iterations.
  """

  def __init__(self, perform: Perform, *, overlap: bool = True, noted: int = NOTED):
    self._perform, self._noted = perform, noted
    self._overlap = overlap
    self._began = time.perf_counter()
    self._first: int | None = None
    self._stopped = dict.fromkeys(Queue, 0.0)  # when each queue's last step ended
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
        self._finish(self._begin(step))
        done(step)
      return
    run = _Run(self._begin, self._finish, done, admits)
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

  def _begin(self, step: Step) -> _Begun:
    start = time.perf_counter() - self._began
    with _naming(step):
      return _Begun(step, start, self._perform(step))

  def _finish(self, begun: _Begun) -> None:
    step = begun.step
    if begun.wait is not None:
      with _naming(step):
        begun.wait()
    stop = time.perf_counter() - self._began
    start = max(begun.start, self._stopped[step.queue])
    self._stopped[step.queue] = stop
    self.busy[step.queue] += stop - start
    self._first = step.iteration if self._first is None else self._first
    if step.iteration < self._first + self._noted:
      self.spans.append(Span(step.queue, str(step), step.iteration, start, stop))


@contextlib.contextmanager
def _naming(step: Step):
  """Notes the step's name in what is raised."""
  try:
    yield
  except Exception as error:
    error.add_note(f"In step: {step}.")
    raise


class _Run:
  """The state that the workers share; one lock guards all of it, another keeps calls of `done`
  apart."""

  def __init__(
    self,
    begin: Callable[[Step], _Begun],
    finish: Callable[[_Begun], None],
    done: Callable[[Step], None],
    admits: Callable[[Step], bool],
  ):
    self._begin, self._finish, self._done, self._admits = begin, finish, done, admits
    self._lock, self._telling = threading.Lock(), threading.Lock()
    self._room = threading.Condition(self._lock)
    self._ready_or_over = {queue: threading.Condition(self._lock) for queue in Queue}
    self._ready: dict[Queue, list[int]] = {queue: [] for queue in Queue}
    self._steps: dict[int, Step] = {}  # those that have not ended
    self._begun: set[int] = set()  # of them
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
      open_waits = [w for w in step.waits if not self._suffices(w, step)]
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
    under_way: deque[_Begun] = deque()
    try:
      while (step := self._next(queue, patient=not under_way)) is not None or under_way:
        self._go_on(step, under_way)
    except BaseException as error:
      self.fail(error)
      for begun in under_way:  # what they use must stay until they end
        with contextlib.suppress(Exception):
          self._finish(begun)

  def _go_on(self, step: Step | None, under_way: deque[_Begun]) -> None:
    """Begins a step, if there is one, and ends those that may not stay under way beside it."""
    if step is not None and not self._admits(step):
      self._release(step, over=True)
      return
    ahead = 0
    if step is not None:
      under_way.append(self._begin(step))
      if under_way[-1].wait is not None:
        ahead = _AHEAD
        self._release(step, over=False)
    while len(under_way) > ahead:
      begun = under_way.popleft()
      self._finish(begun)
      with self._telling:
        self._done(begun.step)
      self._release(begun.step, over=True)

  def reraise(self) -> None:
    if self._error:
      self._raise()

  def _raise(self) -> None:
    assert self._error is not None
    raise self._error

  def _next(self, queue: Queue, patient: bool) -> Step | None:
    """The queue's next step; None when all is over or, for the impatient, while none is ready."""
    with self._lock:
      over = lambda: self._error or (self._closed and not self._steps)
      if patient:
        self._ready_or_over[queue].wait_for(lambda: self._ready[queue] or over())
      if self._error or not self._ready[queue]:
        return None
      return self._steps[heapq.heappop(self._ready[queue])]

  def _suffices(self, wait: int, step: Step) -> bool:
    """Whether a step need no longer wait for another."""
    return wait not in self._steps or (
      wait in self._begun and self._steps[wait].queue is step.queue
    )

  def _release(self, step: Step, *, over: bool) -> None:
    """Makes ready what need no longer wait for a step that has begun, or is over."""
    with self._lock:
      self._begun.add(step.index)
      if over:
        self._begun.remove(step.index)
        del self._steps[step.index], self._waits[step.index]
      waiting = [self._steps[i] for i in self._waiting.pop(step.index, ())]
      for later in waiting:
        if not self._suffices(step.index, later):
          self._waiting[step.index].append(later.index)
          continue
        self._waits[later.index] -= 1
        if self._waits[later.index] == 0:
          self._make_ready(later)
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
