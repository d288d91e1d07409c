"""What a run of iterations tells of itself."""

import dataclasses
from typing import NamedTuple

from offload.executor import Span
from schedules.steps import Kind, Queue


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
  """

  iterations: list[Iteration]
  seconds: list[float]
  moved: dict[Queue, dict[Kind, int]]
  spans: list[Span]
  busy: dict[Queue, float]

  @property
  def losses(self) -> list[float]:
    return [iteration.loss for iteration in self.iterations]

  @property
  def skipped(self) -> int:
    """Steps that were skipped."""
    return sum(iteration.skipped for iteration in self.iterations)
