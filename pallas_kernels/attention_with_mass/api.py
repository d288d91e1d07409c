"""The one entry: checks the arguments and picks the implementation."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import choice
from pallas_kernels.attention_with_mass import mosaic_gpu, triton, xla
from pallas_kernels.attention_with_mass.reference import AttentionWithMass, reference

IMPLEMENTATIONS = {
  "reference": (reference, xla.supports),
  "xla": (xla.attention, xla.supports),
  "triton": (triton.attention, triton.supports),
  "mosaic_gpu": (mosaic_gpu.attention, mosaic_gpu.supports),
}

# Packed rows up to which Triton's tile of 16 serves better on Hopper than Mosaic's of 64. Of 32,768
# entries on an H100: 0.98 against 0.88 of the copy bandwidth for one row in groups of four, 0.71
# against 0.87 for seven rows. (Of 131,072 on an H200 one row was 3% slower.)
_FEW = 16


def attention_with_mass(
  q: Float[Array, "B H T D"],
  k: Float[Array, "B K S D"],
  v: Float[Array, "B K S D"],
  lengths: Int[Array, " B"],
  *,
  starts: Int[Array, " B"] | None = None,
  rows: tuple[int, ...] = (),
  page_size: int = 1,
  implementation: str | None = None,
) -> AttentionWithMass:
  """Attention of each sequence's newest T rows over its cache, and where that attention went.

  Row t of a sequence stands at slot `length - T + t` and sees slots [start, length - T + t]. What
  the cache holds outside [start, length) does not matter, NaN included. H query heads share K key
  and value heads, H / K consecutive ones each.

  Args:
    q: queries, not yet scaled; logits are q . k / sqrt(D), in f32.
    k, v: one layer's cache, the T new rows already in it.
    lengths: filled slots of each sequence, the T new rows included; 0 to S.
    starts: first slot of each sequence; 0 unless given.
    rows: static indices of the rows whose page log-sum-exp is wanted; negative ones count from T.
    page_size: slots of a page; divides S. With 1, each token's logit comes out.
    implementation: a name of IMPLEMENTATIONS; the platform's best unless given.

  Returns:
    out, lse and page_lse; see `AttentionWithMass`.

  Raises:
    ValueError: the shapes do not fit one another, or the implementation named cannot.
  """
  count, slots = q.shape[2], k.shape[2]
  if q.shape[1] % k.shape[1]:
    raise ValueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads.")
  if page_size < 1 or slots % page_size:
    raise ValueError(f"a cache of {slots} slots has no whole number of pages of {page_size}.")
  if not all(-count <= row < count for row in rows):
    raise ValueError(f"rows {rows} are not all among the {count} rows of the queries.")
  if starts is None:
    starts = jnp.zeros_like(lengths)
  options = {"rows": tuple(row % count for row in rows), "page_size": page_size}
  arguments = (q, k, v, lengths, starts)
  few = q.shape[1] // k.shape[1] * count <= _FEW
  run = choice.choose(
    *("attention_with_mass", IMPLEMENTATIONS, implementation, *arguments),
    first="triton" if few else None,
    **options,
  )
  return run(*arguments, **options)
