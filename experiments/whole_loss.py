"""The loss of a model that is whole in memory, as one function to differentiate."""

import jax

from models.transformer import Parameters, Transformer
from offload.feed import Batch


def whole_loss(
  model: Transformer, parameters: Parameters, batch: Batch, *, recompute: bool = False
) -> tuple[jax.Array, jax.Array]:
  """The summed loss in nats, and the number of targets; nothing is dropped.

  With `recompute` a block's activations are not kept: its backward pass computes them again.
  """
  context = model.context(batch.positions, None)
  block = jax.checkpoint(model.block) if recompute else model.block
  x = model.embed(parameters["resident"], batch.inputs, context)
  for unit in parameters["units"]:
    x = block(unit, x, context)
  return model.loss(parameters["resident"], x, batch.targets, context)
