"""The definition of attention with mass, in plain jnp; slow, and nothing but right."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.masking import NOTHING


class AttentionWithMass(NamedTuple):
  """What the rows attended to, and where their attention went.

  out:       [B, H, T, D], in the dtype of the queries; 0 for a row that sees no key.
  lse:       f32[B, H, T], the log of the sum of exp(logit) over the keys that a row sees; NOTHING
             if it sees none.
  page_lse:  f32[B, H, R, pages], the same over each page's visible keys, for R of the rows; None if
             no rows were asked for. NOTHING for a page without visible keys.
  """

  out: jax.Array
  lse: jax.Array
  page_lse: jax.Array | None


def reference(q, k, v, lengths, starts, *, rows, page_size) -> AttentionWithMass:
  """See `api.attention_with_mass`."""
  group, count, size = q.shape[1] // k.shape[1], q.shape[2], q.shape[3]
  slot = jnp.arange(k.shape[2])[None]
  position = lengths[:, None] - count + jnp.arange(count)[None]
  written = (slot >= starts[:, None]) & (slot < lengths[:, None])
  sees = written[:, None] & (slot[:, None] <= position[:, :, None])

  def clean(x):  # what lies outside may be anything, NaN included
    x = jnp.where(written[:, None, :, None], x.astype(jnp.float32), 0)
    return jnp.repeat(x, group, axis=1)

  logits = jnp.einsum("bhtd,bhsd->bhts", q.astype(jnp.float32), clean(k), precision="highest")
  logits = jnp.where(sees[:, None], logits * size**-0.5, -jnp.inf)
  pages = logits.reshape(*logits.shape[:3], -1, page_size)
  lse = jax.nn.logsumexp(logits, axis=-1)
  weights = jnp.exp(logits - jnp.maximum(lse, NOTHING)[..., None])
  out = jnp.einsum("bhts,bhsd->bhtd", weights, clean(v), precision="highest")
  page_lse = jnp.maximum(jax.nn.logsumexp(pages[:, :, list(rows)], axis=-1), NOTHING)
  return AttentionWithMass(
    out.astype(q.dtype), jnp.maximum(lse, NOTHING), page_lse if rows else None
  )
