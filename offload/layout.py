"""A unit's parameter tree as one flat vector, and the vector's cuts.

Leaves that weight decay applies to come first, so that one boundary separates them and no mask
array is needed. Every leaf starts at a multiple of 64 elements: a loaded vector is handed on as a
tree of aligned views, and nothing is copied out of it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from offload.cuts import Run
from schedules.pools import PAGE
from schedules.steps import Part

_LEAF_ALIGNMENT = 64  # elements: 128 bytes in bfloat16


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where each leaf of a unit lies in its vector; all units of a model share one layout.

  Attributes:
    treedef, shapes: of the parameter tree, in its own order.
    offsets: first element of each leaf, in the tree's order.
    decayed: elements from the start that weight decay applies to.
    elements: length of the vector, padded to a multiple of `PAGE`.
    cuts: [start, stop) of each part; together they cover the vector.
  """

  treedef: Any
  shapes: tuple[tuple[int, ...], ...]
  offsets: tuple[int, ...]
  decayed: int
  elements: int
  cuts: dict[Part, tuple[int, int]] = dataclasses.field(hash=False)

  @classmethod
  def of(
    cls, tree: Any, delayed_fraction: float = 0.0, decays: Callable[[Any], bool] | None = None
  ) -> "Layout":
    """Lays out a tree of arrays or of `jax.ShapeDtypeStruct`; by default matrices decay.

    The delayed part comes first: ceil(delayed_fraction * elements), rounded up to a page.
    """
    decays = decays or (lambda leaf: leaf.ndim >= 2)
    leaves, treedef = jax.tree.flatten(tree)
    order = sorted(range(len(leaves)), key=lambda i: (not decays(leaves[i]), i))
    offsets, at, decayed = [0] * len(leaves), 0, 0
    for i in order:
      offsets[i] = at
      at += _round_up(leaves[i].size, _LEAF_ALIGNMENT)
      if decays(leaves[i]):
        decayed = at
    elements = _round_up(max(at, 1), PAGE)
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    cuts = _cuts(elements, delayed_fraction)
    return cls(treedef, shapes, tuple(offsets), decayed, elements, cuts)

  @functools.cached_property
  def parts(self) -> tuple[Part, ...]:
    return tuple(part for part in (Part.NOW, Part.DELAYED) if part in self.cuts)

  def length(self, part: Part) -> int:
    start, stop = self.cuts[part]
    return stop - start

  @property
  def lengths(self) -> tuple[int, int]:
    """Elements that weight decay applies to, and the others, with the padding."""
    return self.decayed, self.elements - self.decayed

  @property
  def payload(self) -> int:
    """Elements of leaves, without padding."""
    return sum(math.prod(shape) for shape in self.shapes)

  def views(self, vector: np.ndarray) -> Any:
    """The tree whose leaves are views of a flat vector."""
    return self.gather([Run(0, vector)])

  def gather(self, runs: list[Run]) -> Any:
    """The tree whose leaves are views of the runs that together hold a vector; leaves that lie in
    more than one are copies."""
    leaves = []
    for at, shape in zip(self.offsets, self.shapes, strict=True):
      pieces = _pieces(runs, at, math.prod(shape))
      leaf = pieces[0][1] if len(pieces) == 1 else np.concatenate([array for _, array in pieces])
      leaves.append(leaf.reshape(shape))
    return jax.tree.unflatten(self.treedef, leaves)

  def scatter(self, tree: Any, runs: list[Run]) -> None:
    """Puts leaves of a gathered tree that are copies back into the runs that hold them."""
    for at, leaf in zip(self.offsets, jax.tree.leaves(tree), strict=True):
      pieces = _pieces(runs, at, leaf.size)
      if len(pieces) > 1:
        for offset, array in pieces:
          np.copyto(array, leaf.reshape(-1)[offset : offset + array.size])

  def abstract(self, dtype: Any) -> Any:
    """The tree as `jax.ShapeDtypeStruct`."""
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape in self.shapes]
    return jax.tree.unflatten(self.treedef, leaves)


def _pieces(runs: list[Run], at: int, size: int) -> list[tuple[int, np.ndarray]]:
  """What the runs hold of a leaf: its first element there, and the memory."""
  out = []
  for run in sorted(runs, key=lambda run: run.start):
    start, stop = max(at, run.start), min(at + size, run.stop)
    if start < stop:
      out.append((start - at, run.array[start - run.start : stop - run.start]))
  return out


def _cuts(elements: int, delayed_fraction: float) -> dict[Part, tuple[int, int]]:
  if not 0 <= delayed_fraction <= 1:
    raise ValueError(f"--delayed_fraction={delayed_fraction} must be between 0 and 1.")
  cut = min(_round_up(math.ceil(delayed_fraction * elements), PAGE), elements)
  cuts = {Part.DELAYED: (0, cut), Part.NOW: (cut, elements)}
  return {part: span for part, span in cuts.items() if span[0] < span[1]}


def _round_up(value: int, multiple: int) -> int:
  return -(-value // multiple) * multiple
