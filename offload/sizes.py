"""Bytes of everything that moves, from a model's abstract description: no array is made."""

import math
from typing import Any

import jax
import numpy as np

from offload.layout import Layout
from offload.programs import Model, Shape
from schedules.pools import Sizes
from schedules.steps import Kind, Part


def sizes_of(model: Model, layout: Layout, shape: Shape, state_vectors: int) -> Sizes:
  """Sizes in bytes; states and gradients are float32, everything else is of the model's dtype."""
  item = np.dtype(model.dtype).itemsize
  widths = {Kind.PARAMETERS: item, Kind.STATES: 4 * state_vectors, Kind.GRADIENTS: 4}
  buffers = {(k, p): w * layout.length(p) for k, w in widths.items() for p in layout.parts}
  payload = {(k, p): w * layout.payload(p) for k, w in widths.items() for p in layout.parts}
  whole = _whole(model, shape, state_vectors, item)
  return Sizes(buffers | whole, payload | whole)


def _whole(
  model: Model, shape: Shape, state_vectors: int, item: int
) -> dict[tuple[Kind, Part], int]:
  resident = jax.eval_shape(model.init_resident, jax.random.key(0))
  elements = _elements(resident)
  tokens = jax.ShapeDtypeStruct((shape.sequences, shape.tokens), np.int32)
  x = jax.eval_shape(lambda r, t: model.embed(r, t, model.context(t, None)), resident, tokens)
  boundary = math.prod(x.shape) * item
  return {
    (Kind.BOUNDARY, Part.WHOLE): boundary,
    (Kind.BOUNDARY_GRADIENT, Part.WHOLE): boundary,
    # Parameters, float32 masters and the optimizer's vectors.
    (Kind.RESIDENT, Part.WHOLE): elements * (item + 4 + 4 * state_vectors),
    (Kind.RESIDENT_GRADIENTS, Part.WHOLE): elements * 4,
  }


def _elements(tree: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
