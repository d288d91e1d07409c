"""The one entry: checks the arguments and picks the implementation."""

from typing import Any

from jaxtyping import Array, Float, Int

from pallas_kernels import choice
from pallas_kernels.gather_pages import xla
from pallas_kernels.gather_pages.reference import reference

IMPLEMENTATIONS = {
  "reference": (reference, xla.supports),
  "xla": (xla.gather_pages, xla.supports),
}


def gather_pages(
  cache: Float[Array, "B K S D"],
  pages: Int[Array, "B Hsel E"],
  *,
  page_size: int,
  implementation: str | None = None,
) -> Float[Array, "B K N D"]:
  """Pages of a cache, one after the other in the order given: N = E * page_size slots.

  Args:
    cache: keys or values of one layer.
    pages: a set of pages for all heads (Hsel = 1) or one for each (Hsel = K); numbers in
      [0, S / page_size), or -1 for no page, whose place then holds some page's content.
    page_size: slots of a page; divides S.
    implementation: a name of IMPLEMENTATIONS; the platform's best unless given.

  Raises:
    ValueError: the shapes do not fit one another, or the implementation named cannot.
  """
  if pages.shape[1] not in (1, cache.shape[1]):
    raise ValueError(f"{pages.shape[1]} sets of pages are neither one nor one for each KV head.")
  if page_size < 1 or cache.shape[2] % page_size:
    raise ValueError(
      f"a cache of {cache.shape[2]} slots has no whole number of pages of {page_size}."
    )
  options: dict[str, Any] = {"page_size": page_size}
  run = choice.choose("gather_pages", IMPLEMENTATIONS, implementation, cache, pages, **options)
  return run(cache, pages, **options)
