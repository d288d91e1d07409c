"""What is decided about an iteration's gradients once their norm is known: skip, scale, clip.

The norm is that of the mean loss's gradients: squares summed in float32, leaf after leaf, from the
last unit to the first and then over the resident parameters, in every schedule alike.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


@dataclasses.dataclass(frozen=True)
class LossScale:
  """A factor on the loss that keeps float16 gradients from vanishing (arXiv 1710.03740, 3.2).

  It halves after a step whose gradients are not finite, though not below 1, and doubles after
  `interval` good ones in a row (0: it never changes). Powers of two scale exactly.
  """

  value: float = 1.0
  interval: int = 0
  good: int = 0

  def __post_init__(self):
    if not (self.value >= 1 and math.isfinite(self.value) and math.frexp(self.value)[0] == 0.5):
      raise ValueError(f"--loss_scale={self.value:g} must be a power of two, 1 or more.")

  def after(self, finite: bool) -> "LossScale":
    """For the iteration to come."""
    if not self.interval:
      return self
    if not finite:
      return dataclasses.replace(self, value=max(self.value / 2, 1.0), good=0)
    if self.good + 1 == self.interval:
      return dataclasses.replace(self, value=self.value * 2, good=0)
    return dataclasses.replace(self, good=self.good + 1)


UNSCALED = LossScale()


@dataclasses.dataclass(frozen=True)
class Verdict:
  """On one iteration; `norm` is that of its gradients before clipping.

  `clip_norm` is 0 where nothing is clipped.
  """

  norm: np.float32
  loss_scale: float
  clip_norm: float

  @classmethod
  def of(cls, squares: Any, loss_scale: float, clip_norm: float) -> "Verdict":
    """From the sum of squares of scaled gradients; one that float32 cannot hold is not finite."""
    return cls(np.sqrt(np.float32(squares)) / np.float32(loss_scale), loss_scale, clip_norm)

  @property
  def skips(self) -> bool:
    return not math.isfinite(self.norm)

  @property
  def clips(self) -> bool:
    return bool(0 < self.clip_norm <= self.norm)

  @property
  def factor(self) -> np.float32:
    """What an update's gradients are multiplied by: 1 / loss_scale, or clip_norm / norm of that."""
    unscale = np.float32(1 / self.loss_scale)
    return unscale * (np.float32(self.clip_norm) / self.norm) if self.clips else unscale

  def scaled(self, gradients: Tree) -> Tree:
    """Gradients of the loss itself, clipped; as they are where there is nothing to do."""
    return gradients if self.factor == 1 else _multiply(gradients, self.factor)


AS_THEY_ARE = Verdict(np.float32(0), loss_scale=1.0, clip_norm=0.0)


@jax.jit
def _multiply(gradients: Tree, factor: jax.Array) -> Tree:
  return jax.tree.map(lambda g: g * factor, gradients)


class Judge:
  """Decides on one iteration after another.

  The verdict on one stays readable while the next is at work: its delayed updates still need it.
  """

  def __init__(self, clip_norm: float, loss_scale: LossScale):
    self._clip_norm = clip_norm
    self._verdicts: dict[int, Verdict] = {}
    self.loss_scale = loss_scale  # of the iteration to be decided on

  def decide(self, iteration: int, squares: Any) -> None:
    verdict = Verdict.of(squares, self.loss_scale.value, self._clip_norm)
    self._verdicts = {i: v for i, v in self._verdicts.items() if i == iteration - 1}
    self._verdicts[iteration] = verdict
    self.loss_scale = self.loss_scale.after(not verdict.skips)

  def __getitem__(self, iteration: int) -> Verdict:
    return self._verdicts[iteration]


@jax.jit
def add_squares(total: jax.Array, tree: Tree) -> jax.Array:
  """`total` and the squares of all elements, float32."""
  return total + sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def check_whole_step(clip_norm: float, loss_scale: LossScale, whole_step: bool) -> None:
  """Raises ValueError where a step is to be decided on as a whole, and cannot be."""
  mend = "and this schedule updates units before that: set --delayed_fraction=1"
  if not (clip_norm >= 0 and np.isfinite(clip_norm)):
    raise ValueError(f"--clip_norm={clip_norm} must be 0 (off) or a positive number.")
  if clip_norm and not whole_step:
    raise ValueError(
      f"--clip_norm={clip_norm} needs the norm of all gradients, which is known after the last "
      f"backward, {mend}."
    )
  if loss_scale != UNSCALED and not whole_step:
    raise ValueError(
      "--parameter_dtype=float16 skips a step whose gradients overflow, which is known after the "
      f"last backward, {mend}, or take --parameter_dtype=bfloat16."
    )
