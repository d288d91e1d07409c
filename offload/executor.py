"""Walks a derived list with one worker for each queue.

A worker takes, among its queue's steps that may begin, the one listed first. Nothing else is
scheduled by hand: prefetching and overlap follow from the list.

A step may begin once all that it waits for is over; of its own queue, which works in order, it need
only have begun. Beginning a step need not take until its end: a device's computations are enqueued.
Then a worker that goes ahead begins the next step, if that may begin already, before it waits for
the end of the one at work, and what it costs to begin it is hidden. Until that end it does not look
again, and a step listed earlier that becomes ready meanwhile comes after.
"""

import contextlib
import dataclasses
import heapq
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from schedules.steps import Queue, Step

_WINDOW = 4096  # steps known to the workers at one time
NOTED = 4  # iterations that leave their spans: those of a long run would not fit in memory


class Rest(NamedTuple):
  """What is left of a step that has begun.

  Attributes:
    finish: returns when the step's effects are visible to all.
    alone: whether its queue begins nothing before that.
  """

  finish: Callable[[], None]
  alone: bool = False


Perform = Callable[[Step], Rest | None]


@dataclasses.dataclass(frozen=True)
class Span:
  """A step that has run, in seconds since the executor was made.

  One that began ahead starts with the end of the step before it.
  """

  queue: Queue
  name: str
  iteration: int
  start: float
  stop: float


class _Begun(NamedTuple):
  step: Step
  start: float
  rest: Rest | None


class Executor:
  """Runs steps by `perform`, which returns when a step's effects are visible to all, or else the
  rest of it; until that is finished only steps of the same queue rely on them.

  With `ahead` a queue begins a step before the one at work ends. With `overlap=False` a single
  worker takes the steps strictly in list order.

  Attributes:
    spans: the steps that ran in the first iterations, in the order in which they ended.
    busy: seconds of work of each queue, over all iterations.
  """

  def __init__(
    self, perform: Perform, *, overlap: bool = True, ahead: bool = False, noted: int = NOTED
  ):
    self._perform, self._overlap, self._ahead = perform, overlap, ahead
    self._noted = noted
    self._origin = time.perf_counter()
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
    run = _Run(self._begin, self._finish, done, admits, self._ahead)
    workers = [threading.Thread(target=run.work, args=(q,), name=q, daemon=True) for q in Queue]
    for worker in workers:
      worker.start()
    try:
      for step in steps:
        run.add(step)
      run.close()
      _join(workers)
    except BaseException as error:  # an interrupt, say: no step is begun any more
      run.fail(error)
      _join(workers)
    run.reraise()

  def _begin(self, step: Step) -> _Begun:
    start = time.perf_counter() - self._origin
    with _naming(step):
      return _Begun(step, start, self._perform(step))

  def _finish(self, begun: _Begun) -> None:
    step = begun.step
    if begun.rest is not None:
      with _naming(step):
        begun.rest.finish()
    stop = time.perf_counter() - self._origin
    start = max(begun.start, self._stopped[step.queue])
    self._stopped[step.queue] = stop
    self.busy[step.queue] += stop - start
    self._first = step.iteration if self._first is None else self._first
    if step.iteration < self._first + self._noted:
      self.spans.append(Span(step.queue, str(step), step.iteration, start, stop))


def _join(workers: list[threading.Thread]) -> None:
  for worker in workers:
    worker.join()


@contextlib.contextmanager
def _naming(step: Step) -> Iterator[None]:
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
    ahead: bool,
  ):
    self._begin, self._finish, self._done, self._admits = begin, finish, done, admits
    self._ahead = ahead
    self._lock, self._telling = threading.Lock(), threading.Lock()
    self._room = threading.Condition(self._lock)
    self._ready_or_over = {queue: threading.Condition(self._lock) for queue in Queue}
    self._ready: dict[Queue, list[int]] = {queue: [] for queue in Queue}
    self._steps: dict[int, Step] = {}  # those that are not over
    self._begun: set[int] = set()  # those of them on which their own queue's may build
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
      open_waits = [w for w in step.waits if self._holds_up(w, step)]
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
        goes_ahead = step is not None and self._take(step, under_way)
        self._end(under_way, leave=int(goes_ahead))
    except BaseException as error:
      self.fail(error)
      for begun in under_way:  # nothing may be at work when the run is given up
        with contextlib.suppress(Exception):
          self._finish(begun)

  def _take(self, step: Step, under_way: deque[_Begun]) -> bool:
    """Begins a step, unless it is refused; whether its queue goes on to another before it ends."""
    try:
      begun = self._begin(step) if self._admits(step) else None
    except BaseException:
      self._end(under_way)  # if one of these fails, its failure is the first
      raise
    if begun is None:
      self._end(under_way)  # whoever waits for this step relies on what came before it, too
      self._release(step, over=True)
      return False
    under_way.append(begun)
    if not self._ahead or begun.rest is None or begun.rest.alone:
      return False
    self._release(step, over=False)
    return True

  def _end(self, under_way: deque[_Begun], leave: int = 0) -> None:
    """Finishes the steps that are under way, in order, but for so many of the last."""
    while len(under_way) > leave:
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
    """The queue's next step; None when all is over, after a failure and, for the impatient, while
    none is ready."""
    with self._lock:
      over = lambda: self._error or (self._closed and not self._steps)
      if patient:
        self._ready_or_over[queue].wait_for(lambda: self._ready[queue] or over())
      if self._error or not self._ready[queue]:
        return None
      return self._steps[heapq.heappop(self._ready[queue])]

  def _holds_up(self, earlier: int, step: Step) -> bool:
    """Whether an earlier step, which `step` waits for, is not far enough for it to begin."""
    if earlier not in self._steps:
      return False
    return earlier not in self._begun or self._steps[earlier].queue is not step.queue

  def _release(self, step: Step, *, over: bool) -> None:
    """Makes ready what is no longer held up by a step that has begun, or is over."""
    with self._lock:
      if over:
        self._begun.discard(step.index)
        del self._steps[step.index], self._waits[step.index]
      else:
        self._begun.add(step.index)
      for later in [self._steps[i] for i in self._waiting.pop(step.index, ())]:
        if self._holds_up(step.index, later):
          self._waiting[step.index].append(later.index)
          continue
        self._waits[later.index] -= 1
        if self._waits[later.index] == 0:
          self._make_ready(later)
      if over:
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
