"""Bytes of everything that moves, from a model's abstract description: no array is made."""

import math
from typing import Any

import jax
import numpy as np

from offload.layout import Layout
from offload.programs import Model, Shape
from schedules.pools import Sizes
from schedules.steps import Kind


def sizes_of(model: Model, layout: Layout, shape: Shape, state_vectors: int) -> Sizes:
  """Sizes in bytes; states and gradients are float32, everything else is of the model's dtype."""
  item = np.dtype(model.dtype).itemsize
  widths = {Kind.PARAMETERS: item, Kind.STATES: 4 * state_vectors, Kind.GRADIENTS: 4}
  whole = _whole(model, shape, state_vectors, item)
  payload = {kind: width * layout.payload for kind, width in widths.items()}
  elements = {part: layout.length(part) for part in layout.parts}
  return Sizes(widths, elements, payload | whole, whole)


def _whole(model: Model, shape: Shape, state_vectors: int, item: int) -> dict[Kind, int]:
  elements = _elements(jax.eval_shape(model.init_resident, jax.random.key(0)))
  boundary = math.prod(boundary_of(model, shape).shape) * item
  return {
    Kind.BOUNDARY: boundary,
    Kind.BOUNDARY_GRADIENT: boundary,
    # Parameters, float32 masters and the optimizer's vectors.
    Kind.RESIDENT: elements * (item + 4 + 4 * state_vectors),
    Kind.RESIDENT_GRADIENTS: elements * 4,
  }


def boundary_of(model: Model, shape: Shape) -> jax.ShapeDtypeStruct:
  """The activation between two units, of one micro-batch."""
  resident = jax.eval_shape(model.init_resident, jax.random.key(0))
  tokens = jax.ShapeDtypeStruct((shape.sequences, shape.tokens), np.int32)
  return jax.eval_shape(lambda r, t: model.embed(r, t, model.context(t, None)), resident, tokens)


def _elements(tree: Any) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
