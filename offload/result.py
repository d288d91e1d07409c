"""What a run of iterations tells of itself."""

import dataclasses
from typing import NamedTuple

from offload.executor import Span
from schedules.steps import Kind, Queue
from schedules.traffic import LINKS


class Iteration(NamedTuple):
  """What is known of an iteration once its backward pass is over.

  `gradient_norm` is that before clipping; not finite where the step is skipped.
  """

  number: int
  loss: float  # nats per token, over all its micro-batches
  gradient_norm: float
  skipped: bool
  loss_scale: float


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run of iterations did.

  Attributes:
    iterations: each one's loss and norm.
    seconds: wall time of each iteration, from the end of one to the end of the next.
    moved: bytes by link and kind, counted as they moved.
    spans: the steps of the first iterations, in seconds since the run began.
    busy: seconds of work of each queue.
    stretches: iterations of each call that the result is of; nothing is in flight between them.
  """

  iterations: list[Iteration]
  seconds: list[float]
  moved: dict[Queue, dict[Kind, int]]
  spans: list[Span]
  busy: dict[Queue, float]
  stretches: list[int]

  @classmethod
  def none(cls) -> "Result":
    return cls([], [], {link: {} for link in LINKS}, [], dict.fromkeys(Queue, 0.0), [])

  def then(self, later: "Result") -> "Result":
    """Two stretches of a run as one; spans are the first's."""
    moved = {
      link: {kind: kinds.get(kind, 0) + later.moved[link].get(kind, 0) for kind in Kind}
      for link, kinds in self.moved.items()
    }
    return Result(
      self.iterations + later.iterations,
      self.seconds + later.seconds,
      {link: {k: n for k, n in kinds.items() if n} for link, kinds in moved.items()},
      self.spans or later.spans,
      {queue: seconds + later.busy[queue] for queue, seconds in self.busy.items()},
      self.stretches + later.stretches,
    )

  @property
  def losses(self) -> list[float]:
    return [iteration.loss for iteration in self.iterations]
