"""Page attention for any backend: gather pages and tail, then attend to the scratch densely."""

import jax.numpy as jnp

from pallas_kernels.attention_with_mass.xla import attention
from pallas_kernels.gather_pages.xla import gather_pages
from pallas_kernels.page_attention.reference import PageAttention


def supports(*_, **__) -> None:
  """Every case is supported."""


def page_attention(q, k, v, lengths, pages, tail_starts, *, page_size, tail) -> PageAttention:
  """See `api.page_attention`."""
  batch, sets, places = pages.shape
  slots = tail_starts[:, None] + jnp.arange(tail)[None]
  slots = jnp.minimum(slots, k.shape[2] - 1)[:, None]
  scratch = lambda x: jnp.concatenate(
    [gather_pages(x, pages, page_size=page_size), gather_pages(x, slots, page_size=1)], axis=2
  )
  ends = places * page_size + lengths - tail_starts
  starts = (pages < 0).sum(axis=-1, dtype=jnp.int32) * page_size
  # Every set is a sequence of its own to the dense attention.
  apart = lambda x: x.reshape(batch * sets, x.shape[1] // sets, *x.shape[2:])
  out, lse, _ = attention(
    apart(q),
    apart(scratch(k)),
    apart(scratch(v)),
    jnp.repeat(ends, sets),
    starts.reshape(-1),
    rows=(),
    page_size=1,
  )
  return PageAttention(out.reshape(q.shape), lse.reshape(q.shape[:3]))
