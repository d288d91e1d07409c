"""The computations of the forward and backward passes, on what the device holds."""

from collections import defaultdict
from typing import Any

import jax
import numpy as np

from offload.device_slots import DeviceSlots
from offload.executor import Rest
from offload.feed import Batch, Feed
from offload.programs import Programs, Where
from offload.resident import Resident, gradients_of
from offload.verdict import Judge, add_squares
from schedules.steps import Action, Computation, Kind, Step, Tier, Work

Tree = Any


class NonFiniteGradientError(ArithmeticError):
  """A gradient that cannot be used, in a step that can no longer be skipped as a whole."""


class Passes:
  """Forward and backward of units."""

  def __init__(
    self,
    work: Work,
    programs: Programs,
    resident: Resident,
    device: DeviceSlots,
    judge: Judge,
    feed: Feed,
    seed: int,
  ):
    self._work, self._programs, self._resident = work, programs, resident
    self._device, self._judge, self._feed, self._seed = device, judge, feed, seed
    # Iteration -> micro-batch -> loss in nats, summed over its tokens.
    self._losses: dict[int, dict[int | None, jax.Array]] = defaultdict(dict)

  def perform(self, step: Step) -> Rest:
    """Begins; the rest is finished when the results are on the device.

    Raises, when the rest is finished:
      NonFiniteGradientError: names the unit and the iteration; where updates wait for the norm, the
        step is skipped instead.
    """
    c = _computation(step)
    return (self._forward if c.action is Action.FORWARD else self._backward)(step)

  def loss(self, iteration: int) -> float:
    """Nats per token of an iteration that is over."""
    losses = self._losses.pop(iteration)
    total = sum(float(losses[m]) for m in range(self._work.micro_batches))
    return total / self._feed.weight(iteration)

  def _forward(self, step: Step) -> Rest:
    at, unit = self._where(step), self._device.read(step, Kind.PARAMETERS)
    y = self._programs.forward(unit, self._input(step, at), at)
    self._device.write(step, Kind.BOUNDARY, y)
    return Rest(y.block_until_ready)

  def _backward(self, step: Step) -> Rest:
    c, p, held = _computation(step), self._programs, self._device
    at = self._where(step)
    unit, x = held.read(step, Kind.PARAMETERS), self._input(step, at)
    gradients = held.sum_so_far(step, Kind.GRADIENTS)
    resident = None
    if c.unit in (0, self._work.last):
      resident = dict(held.sum_so_far(step, Kind.RESIDENT_GRADIENTS) or {})
    if c.unit == self._work.last:
      assert resident is not None
      head = p.head_part(self._resident.parameters)
      targets, scale = self._batch(step).targets, self._loss_scale(c.iteration)
      loss, dx, gradients, resident["head"] = p.loss_backward(
        unit, head, x, targets, scale, gradients, resident.get("head"), at
      )
      self._losses[c.iteration][c.micro_batch] = loss
    else:
      dy = held.read(step, Kind.BOUNDARY_GRADIENT)
      dx, gradients = p.backward(unit, x, dy, gradients, at)
    if c.unit == 0:
      assert resident is not None
      embed, inputs = self._resident.parameters["embed"], self._batch(step).inputs
      resident["embed"] = p.embed_backward(embed, inputs, dx, resident.get("embed"), at)
    else:
      held.write(step, Kind.BOUNDARY_GRADIENT, dx)
    held.write(step, Kind.GRADIENTS, gradients)
    if resident is not None:
      held.write(step, Kind.RESIDENT_GRADIENTS, resident)
    squares = self._add_to_norm(step, gradients)
    if c.unit > 0:
      return Rest(lambda: self._end(c, dx, squares))
    # The next step takes these sums, or needs the verdict.
    return Rest(lambda: self._end_first_unit(step, resident, squares), alone=True)

  def _add_to_norm(self, step: Step, gradients: Tree) -> jax.Array | None:
    """Adds a unit's gradients to the norm once they are complete."""
    if not step.accesses_to(Tier.DEVICE, Kind.NORM):
      return None
    so_far = self._device.sum_so_far(step, Kind.NORM)
    squares = add_squares(np.float32(0) if so_far is None else so_far, gradients)
    self._device.write(step, Kind.NORM, squares)
    return squares

  def _end(self, c: Computation, dx: jax.Array, squares: jax.Array | None) -> None:
    # And with it the sums, of the same program, which the next micro-batch may have taken by now.
    dx.block_until_ready()
    if squares is not None:
      self._refuse_unless_finite(c, squares, f"unit {c.unit}")

  def _end_first_unit(self, step: Step, resident: Tree, squares: jax.Array | None) -> None:
    """The first unit's gradients are the last of all: once complete, they decide."""
    jax.block_until_ready(resident)
    if squares is None:
      return
    c = _computation(step)
    self._refuse_unless_finite(c, squares, "unit 0")
    squares = add_squares(squares, gradients_of(step, self._device))
    self._refuse_unless_finite(c, squares, "the embedding or the head")
    self._judge.decide(c.iteration, squares)

  def _refuse_unless_finite(self, c: Computation, squares: Any, what: str) -> None:
    if self._work.whole_step or np.isfinite(squares):
      return
    raise NonFiniteGradientError(
      f"The gradient of {what} in iteration {c.iteration} is not finite, and this schedule updates "
      "units before all gradients are known, so that the step cannot be skipped: lower "
      "--learning_rate, or set --delayed_fraction=1, with which such steps are skipped."
    )

  def _loss_scale(self, iteration: int) -> np.float32:
    return np.float32(self._judge.loss_scale.value / self._feed.weight(iteration))

  def _where(self, step: Step) -> Where:
    c = _computation(step)
    positions = self._batch(step).positions
    return Where.of(self._seed, c.iteration, c.unit, c.micro_batch, positions)

  def _input(self, step: Step, at: Where) -> Any:
    if _computation(step).unit > 0:
      return self._device.read(step, Kind.BOUNDARY)
    return self._programs.embed(self._resident.parameters["embed"], self._batch(step).inputs, at)

  def _batch(self, step: Step) -> Batch:
    c = _computation(step)
    assert c.micro_batch is not None
    return self._feed.batch(c.iteration, c.micro_batch)


def _computation(step: Step) -> Computation:
  assert step.computation is not None
  return step.computation
