"""The one entry: checks the arguments and picks the implementation."""

from jaxtyping import Array, Float, Int

from pallas_kernels import choice
from pallas_kernels.page_attention import mosaic_gpu, triton, xla
from pallas_kernels.page_attention.reference import PageAttention, reference

IMPLEMENTATIONS = {
  "reference": (reference, xla.supports),
  "xla": (xla.page_attention, xla.supports),
  "triton": (triton.page_attention, triton.supports),
  "mosaic_gpu": (mosaic_gpu.page_attention, mosaic_gpu.supports),
}


def page_attention(
  q: Float[Array, "B H T D"],
  k: Float[Array, "B K S D"],
  v: Float[Array, "B K S D"],
  lengths: Int[Array, " B"],
  pages: Int[Array, "B Hsel E"],
  tail_starts: Int[Array, " B"],
  *,
  page_size: int,
  tail: int,
  implementation: str | None = None,
) -> PageAttention:
  """Attention of each sequence's newest T rows over selected pages and a dense tail of its cache.

  Row t of a sequence stands at slot `length - T + t`, and sees the selected pages and the slots
  [tail_start, length - T + t]. All else is not read, and may be NaN.

  Args:
    q: queries, not yet scaled; logits are q . k / sqrt(D), in f32.
    k, v: one layer's cache, the T new rows already in it.
    lengths: filled slots of each sequence, the T new rows included; T to S.
    pages: a set of pages for all heads (Hsel = 1) or one for each KV head (Hsel = K), as
      `select_pages` returns them: distinct, -1 (no page) in front. Every page ends at or before
      the tail's start, and the tail starts at or before the first new row.
    tail_starts: first slot of each sequence's tail.
    page_size: slots of a page; divides S.
    tail: static bound of `length - tail_start`.
    implementation: a name of IMPLEMENTATIONS; the platform's best unless given.

  Raises:
    ValueError: the shapes do not fit one another, or the implementation named cannot.
  """
  slots, kv_heads = k.shape[2], k.shape[1]
  if q.shape[1] % kv_heads:
    raise ValueError(f"{q.shape[1]} query heads cannot share {kv_heads} key/value heads.")
  if pages.shape[1] not in (1, kv_heads):
    raise ValueError(f"{pages.shape[1]} sets of pages are neither one nor one for each KV head.")
  if page_size < 1 or slots % page_size:
    raise ValueError(f"a cache of {slots} slots has no whole number of pages of {page_size}.")
  if not q.shape[2] <= tail <= slots:
    raise ValueError(f"a tail of {tail} slots does not hold {q.shape[2]} rows of {slots} slots.")
  arguments = (q, k, v, lengths, pages, tail_starts)
  options = {"page_size": page_size, "tail": tail}
  # Triton took three quarters of Mosaic's time for one row on an H100.
  run = choice.choose(
    *("page_attention", IMPLEMENTATIONS, implementation, *arguments), first="triton", **options
  )
  return run(*arguments, **options)
