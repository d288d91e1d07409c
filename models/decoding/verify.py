"""Verification: full attention for T rows at once, with the selector's masses as a by-product."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Float, Lengths, Logits, Tokens
from models.decoding.forward import row_positions, run_layers
from models.decoding.selectors.base import AnySelector
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer
from pallas_kernels.attention_with_mass import AttentionWithMass
from pallas_kernels.attention_with_mass.api import attention_with_mass


class Verified(NamedTuple):
  """`cache` holds the rows' keys and values behind its lengths, which are still the old ones.

  `mass` is of the layers that the selector selects for.
  """

  logits: Logits
  cache: KVCache
  mass: Float[Array, "L B Z R P"] | None


def verify(
  model: Transformer,
  parameters: Parameters,
  cache: KVCache,
  tokens: Tokens,
  selector: AnySelector | None = None,
) -> Verified:
  """Runs `tokens` [B, T] behind the valid slots; one token is a step of autoregressive decoding."""
  rows = tokens.shape[1]
  scored = () if selector is None else selector.rows_scored(rows)
  page_size = 1 if selector is None else selector.page_size
  dense = selector.dense_layers if selector is not None and scored else model.config.layers

  def attend(layer):
    def attend_layer(q, k, v):
      keys, values = cache.append(layer, k, v)
      asked = scored if layer >= dense else ()
      seen = attention_with_mass(
        q, keys, values, cache.lengths + rows, rows=asked, page_size=page_size
      )
      mass = None
      if selector is not None and asked:
        mass = selector.pool(_score(selector, seen, asked, keys))
      return seen.out, (keys, values, mass)

    return attend_layer

  positions = row_positions(model, cache.lengths, rows)
  x, by_products = run_layers(model, parameters, tokens, positions, attend)
  keys, values, masses = zip(*by_products, strict=True)
  return Verified(
    model.logits(parameters["resident"], x),
    KVCache(keys, values, cache.lengths),
    jnp.stack(masses[dense:]) if scored else None,
  )


def verify_row_by_row(
  model: Transformer,
  parameters: Parameters,
  cache: KVCache,
  tokens: Tokens,
  selector: AnySelector | None = None,
) -> Verified:
  """The same by mapping the one-row program over the rows, so that its bits are those of
  autoregressive decoding; reads weights and cache once per row."""

  def one_row(cache, token):
    seen = verify(model, parameters, cache, token[:, None], selector)
    return seen.cache.with_lengths(cache.lengths + 1), (seen.logits[:, 0], seen.mass)

  begin = cache.lengths
  cache, (logits, mass) = jax.lax.scan(one_row, cache, tokens.T)
  if selector is not None and mass is not None:
    scored = jnp.array(selector.rows_scored(tokens.shape[1]))
    mass = jax.vmap(selector.pool)(jnp.moveaxis(mass[scored, :, :, :, 0], 0, 3))
  return Verified(logits.swapaxes(0, 1), cache.with_lengths(begin), mass)


def look_back(
  model: Transformer,
  parameters: Parameters,
  cache: KVCache,
  ends: Tokens,
  lengths: Lengths,
  selector: AnySelector,
) -> Float[Array, "L B Z 1 P"]:
  """The masses of each text's last R rows, summed, from a cache that holds their keys and values.

  Nothing is written: the rows run again for their queries alone.

  Args:
    ends: [B, R], the texts' last tokens, against the right; whatever stands where a text is
      shorter does not vote.
    lengths: of the texts, at most the slots of `cache` that are filled.
  """
  rows = ends.shape[1]
  first = lengths - rows
  of_text = jnp.arange(rows)[None, :] + first[:, None] >= 0

  def attend(layer):
    def attend_layer(q, k, v):
      del k, v
      keys, values = cache.keys[layer], cache.values[layer]
      asked = tuple(range(rows)) if layer >= selector.dense_layers else ()
      seen = attention_with_mass(q, keys, values, lengths, rows=asked, page_size=selector.page_size)
      mass = _score(selector, seen, asked, keys) if asked else None
      if mass is not None:
        mass = jnp.where(of_text[:, None, :, None], mass, 0.0).sum(axis=2, keepdims=True)
      return seen.out, mass

    return attend_layer

  positions = jnp.maximum(row_positions(model, first, rows), 0)
  _, masses = run_layers(model, parameters, ends, positions, attend)
  return jnp.stack(masses[selector.dense_layers :])


def _score(
  selector: AnySelector, seen: AttentionWithMass, rows: tuple[int, ...], keys: Array
) -> Float[Array, "B Z R P"]:
  assert seen.page_lse is not None
  return selector.score(seen.page_lse, seen.lse[:, :, jnp.array(rows)], keys.shape[1])
