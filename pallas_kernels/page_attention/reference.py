"""The definition of page attention, in plain jnp: dense attention with a mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.masking import NOTHING


class PageAttention(NamedTuple):
  """What the rows attended to, and the log-sum-exp of the keys that they saw.

  out:  [B, H, T, D], in the dtype of the queries; 0 for a row that sees no key.
  lse:  f32[B, H, T]; NOTHING for a row that sees no key.
  """

  out: jax.Array
  lse: jax.Array


def reference(q, k, v, lengths, pages, tail_starts, *, page_size, tail) -> PageAttention:
  """See `api.page_attention`."""
  del tail
  group, count, size = q.shape[1] // k.shape[1], q.shape[2], q.shape[3]
  slot = jnp.arange(k.shape[2])
  in_tail = (slot[None] >= tail_starts[:, None]) & (slot[None] < lengths[:, None])
  selected = (pages[..., None] == (slot // page_size)[None, None, None]).any(axis=2)
  may_see = jnp.broadcast_to(selected | in_tail[:, None], (q.shape[0], *k.shape[1:3]))

  def clean(x):  # what may not be seen may be anything, NaN included
    x = jnp.where(may_see[..., None], x.astype(jnp.float32), 0)
    return jnp.repeat(x, group, axis=1)

  position = lengths[:, None] - count + jnp.arange(count)[None]
  sees = jnp.repeat(may_see, group, axis=1)[:, :, None]
  sees &= (slot[None, None] <= position[..., None])[:, None]
  logits = jnp.einsum("bhtd,bhsd->bhts", q.astype(jnp.float32), clean(k), precision="highest")
  logits = jnp.where(sees, logits * size**-0.5, -jnp.inf)
  lse = jnp.maximum(jax.nn.logsumexp(logits, axis=-1), NOTHING)
  weights = jnp.exp(logits - lse[..., None])
  out = jnp.einsum("bhts,bhsd->bhtd", weights, clean(v), precision="highest")
  return PageAttention(out.astype(q.dtype), lse)
