"""The micro-batches of a run, as its computations ask for them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
  """One micro-batch, int32 [B, T] each; negative targets do not count in the loss."""

  inputs: np.ndarray
  targets: np.ndarray
  positions: np.ndarray


Batches = Callable[[int, int], Batch]  # of (iteration, micro-batch) alone: the same at every call


class Feed:
  """Keeps the micro-batches at work: every unit asks for them, in both passes."""

  def __init__(self, batches: Batches, micro_batches: int):
    self._batch = functools.lru_cache(2 * micro_batches)(batches)
    self._micro_batches = micro_batches
    self._weights: dict[int, float] = {}

  def batch(self, iteration: int, micro_batch: int) -> Batch:
    return self._batch(iteration, micro_batch)

  def weight(self, iteration: int) -> float:
    """Tokens of a whole iteration that count in its loss."""
    if iteration not in self._weights:
      targets = (self._batch(iteration, m).targets for m in range(self._micro_batches))
      self._weights = {iteration: float(sum((t >= 0).sum() for t in targets))}
    return self._weights[iteration]
