"""What a run of iterations tells of itself."""

import dataclasses
from collections.abc import Iterable
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
  def joined(cls, runs: Iterable["Result"]) -> "Result":
    """The stretches of a run as one, each taken as it ends; spans are the first's."""
    whole = cls([], [], {link: {} for link in LINKS}, [], dict.fromkeys(Queue, 0.0), [])
    for run in runs:
      whole.iterations.extend(run.iterations)
      whole.seconds.extend(run.seconds)
      whole.stretches.extend(run.stretches)
      if not whole.spans:
        whole.spans.extend(run.spans)
      for link, kinds in run.moved.items():
        for kind, count in kinds.items():
          whole.moved[link][kind] = whole.moved[link].get(kind, 0) + count
      for queue, seconds in run.busy.items():
        whole.busy[queue] += seconds
    return whole

  @property
  def losses(self) -> list[float]:
    return [iteration.loss for iteration in self.iterations]
