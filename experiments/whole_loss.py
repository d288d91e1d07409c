"""The loss of a model that is whole in memory, as one function to differentiate."""

import jax
import jax.numpy as jnp

from models.transformer import Parameters, Transformer
from offload.feed import Batch


def whole_loss(
  model: Transformer, parameters: Parameters, batch: Batch, *, recompute: bool = False
) -> tuple[jax.Array, jax.Array]:
  """The summed loss in nats, and the number of targets; nothing is dropped.

  With `recompute` a block's activations are not kept: its backward pass computes them again.
  """
  inputs, targets, positions = map(jnp.asarray, (batch.inputs, batch.targets, batch.positions))
  context = model.context(positions, None)
  block = jax.checkpoint(model.block) if recompute else model.block
  x = model.embed(parameters["resident"], inputs, context)
  for unit in parameters["units"]:
    x = block(unit, x, context)
  return model.loss(parameters["resident"], x, targets, context)
