"""Where a run of iterations ends: with its last or, once asked to stop, with the running one."""

import threading
from collections.abc import Callable

from schedules.steps import Queue, Step


class Ending:
  """Says of each step, as its turn comes, whether it is still to begin. Thread-safe.

  The running iteration is the newest one that the device has begun. Of those after it only loads
  can have begun by then, and an iteration never reads what a later one has written: so all later
  steps can be left out, wherever the stop comes.

  Attributes:
    last: the iteration that the run ends with.
  """

  def __init__(self, first: int, count: int, stop: Callable[[], bool]):
    self._running, self.last = first, first + count - 1
    self._stop, self._lock = stop, threading.Lock()

  def admits(self, step: Step) -> bool:
    with self._lock:
      if self._stop():
        self.last = self._running
      if step.iteration > self.last:
        return False
      if step.queue is Queue.DEVICE:
        self._running = max(self._running, step.iteration)
      return True
