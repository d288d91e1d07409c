"""The one entry: checks the arguments and picks the implementation."""

from jaxtyping import Array, Float, Int

from pallas_kernels import choice
from pallas_kernels.cache_append import xla
from pallas_kernels.cache_append.reference import reference

IMPLEMENTATIONS = {
  "reference": (reference, xla.supports),
  "xla": (xla.append, xla.supports),
}


def append(
  cache: Float[Array, "B K S D"],
  new: Float[Array, "B K T D"],
  positions: Int[Array, " B"],
  *,
  implementation: str | None = None,
) -> Float[Array, "B K S D"]:
  """The cache with row t of `new` at slot `position + t` of each sequence.

  Nothing of the cache's size is copied where the caller donates the cache or carries it through a
  loop. Rows whose slot is not in [0, S) are dropped.
  """
  run = choice.choose("cache_append", IMPLEMENTATIONS, implementation, cache, new, positions)
  return run(cache, new, positions)
