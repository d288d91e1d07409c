"""The model over a few rows, with attention supplied per layer: the step all of decoding shares."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from models.axes import Activations, Array, Int, Lengths, Positions, Tokens
from models.layers import Attend
from models.transformer import Context, Parameters, Transformer


def row_positions(model: Transformer, lengths: Lengths, rows: int) -> Positions:
  """Positions of the T rows behind each sequence's valid slots.

  Clamped to the context: only rows that are thrown away (drafts past the last token wanted, the
  padding of a prompt) can lie beyond it, and a table of learned positions has no row for them.
  """
  at = lengths[:, None] + jnp.arange(rows, dtype=jnp.int32)[None, :]
  return jnp.minimum(at, model.config.context - 1)


def run_layers(
  model: Transformer,
  parameters: Parameters,
  tokens: Tokens,
  positions: Positions,
  attend: Callable[[int], Attend],
) -> tuple[Activations, tuple[Any, ...]]:
  """Embeds the tokens and runs every block, layer `i` attending with `attend(i)`.

  Returns the last block's output, before the head, and the by-products of the attentions.
  """
  x = model.embed(parameters["resident"], tokens, Context(positions))
  by_products = []
  for layer, unit in enumerate(parameters["units"]):
    x, by_product = model.block_attending(unit, x, positions, attend(layer))
    by_products.append(by_product)
  return x, tuple(by_products)


def last_column(tokens: Tokens, counts: Int[Array, " B"]) -> Int[Array, " B"]:
  """Each sequence's token at `counts - 1`, the last of its first `counts`."""
  return jnp.take_along_axis(tokens, jnp.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
