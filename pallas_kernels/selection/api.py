"""The entries: check the arguments and pick the implementation."""

from typing import Any

from jaxtyping import Array, Float, Int

from pallas_kernels import choice
from pallas_kernels.selection import reference, xla

MASSES = {
  "reference": (reference.page_mass, xla.supports),
  "xla": (xla.page_mass, xla.supports),
}
IMPLEMENTATIONS = {
  "reference": (reference.select_pages, xla.supports),
  "xla": (xla.select_pages, xla.supports),
}


def page_mass(
  page_lse: Float[Array, "B H R P"],
  lse: Float[Array, "B H R"],
  *,
  sets: int = 1,
  implementation: str | None = None,
) -> Float[Array, "B Hsel P"]:
  """Each page's share of attention: the mean over rows and over the query heads of each set.

  One set for all heads is SpecAttn's rule (arXiv 2602.07223), one for each key/value head that of
  PillarAttn (arXiv 2512.01278).

  Args:
    page_lse: of `attention_with_mass`, for R rows.
    lse: of the same R rows, as verification returned it.
    sets: Hsel, the sets into which the heads are divided; divides H.
    implementation: a name of MASSES; the platform's best unless given.

  Raises:
    ValueError: the sets do not divide the heads.
  """
  if page_lse.shape[1] % sets:
    raise ValueError(f"{page_lse.shape[1]} query heads do not divide into {sets} sets.")
  run = choice.choose("page_mass", MASSES, implementation, page_lse, lse, sets=sets)
  return run(page_lse, lse, sets=sets)


def select_pages(
  mass: Float[Array, "B Hsel P"],
  limits: Int[Array, " B"],
  counts: Int[Array, " B"],
  *,
  capacity: int,
  implementation: str | None = None,
) -> tuple[Int[Array, "B Hsel capacity"], Int[Array, " B"]]:
  """The pages of most mass, in ascending order, and how many they are.

  Of equal masses the earlier page is taken. Fewer than `capacity` pages are padded with -1 in
  front, so that what is gathered lies against the scratch's end.

  Args:
    mass: of each page, to be compared within a set.
    limits: pages of each sequence that may be chosen, counted from the first.
    counts: pages wanted of each sequence; at most limit and capacity are given.
    capacity: static number of places in the result.
    implementation: a name of IMPLEMENTATIONS; the platform's best unless given.

  Raises:
    ValueError: the implementation named does not exist.
  """
  arguments = mass, limits, counts
  options: dict[str, Any] = {"capacity": capacity}
  run = choice.choose("selection", IMPLEMENTATIONS, implementation, *arguments, **options)
  return run(*arguments, **options)
