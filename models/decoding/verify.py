"""Verification: full attention for T rows at once, with the selector's masses as a by-product."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Float, Logits, Tokens
from models.decoding.forward import row_positions, run_layers
from models.decoding.selectors.base import Selector
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer
from pallas_kernels.attention_with_mass.api import attention_with_mass


class Verified(NamedTuple):
  """`cache` holds the rows' keys and values behind its lengths, which are still the old ones."""

  logits: Logits
  cache: KVCache
  mass: Float[Array, "L B Z R P"] | None


def verify(
  model: Transformer,
  parameters: Parameters,
  cache: KVCache,
  tokens: Tokens,
  selector: Selector | None = None,
) -> Verified:
  """Runs `tokens` [B, T] behind the valid slots; one token is a step of autoregressive decoding."""
  rows = tokens.shape[1]
  scored = () if selector is None else selector.rows_scored(rows)
  page_size = 1 if selector is None else selector.page_size

  def attend(layer):
    def attend_layer(q, k, v):
      keys, values = cache.append(layer, k, v)
      seen = attention_with_mass(
        q, keys, values, cache.lengths + rows, rows=scored, page_size=page_size
      )
      mass = selector.score(seen, model.config.kv_heads) if selector and scored else None
      return seen.out, (keys, values, mass)

    return attend_layer

  positions = row_positions(model, cache.lengths, rows)
  x, by_products = run_layers(model, parameters, tokens, positions, attend)
  keys, values, masses = zip(*by_products, strict=True)
  return Verified(
    model.logits(parameters["resident"], x),
    KVCache(keys, values, cache.lengths),
    jnp.stack(masses) if scored else None,
  )


def verify_row_by_row(
  model: Transformer,
  parameters: Parameters,
  cache: KVCache,
  tokens: Tokens,
  selector: Selector | None = None,
) -> Verified:
  """The same by mapping the one-row program over the rows, so that its bits are those of
  autoregressive decoding; reads weights and cache once per row."""

  def one_row(cache, token):
    seen = verify(model, parameters, cache, token[:, None], selector)
    return seen.cache.with_lengths(cache.lengths + 1), (seen.logits[:, 0], seen.mass)

  begin = cache.lengths
  cache, (logits, mass) = jax.lax.scan(one_row, cache, tokens.T)
  if selector is not None and mass is not None:
    mass = jnp.moveaxis(mass[..., 0, :], 0, 3)[..., selector.rows_scored(tokens.shape[1]), :]
  return Verified(logits.swapaxes(0, 1), cache.with_lengths(begin), mass)
