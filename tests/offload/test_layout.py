"""The flat vector of a unit: leaves, decay, cuts."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload.layout import CUT, Layout
from schedules.steps import Part

shapes = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=6)


def tree_of(shapes):
  return {f"leaf{i}": jax.ShapeDtypeStruct(tuple(s), jnp.float32) for i, s in enumerate(shapes)}


@hypothesis.given(shapes, st.floats(0, 1))
def test_every_element_has_one_place(shapes, delayed):
  layout = Layout.of(tree_of(shapes), delayed)
  vector = np.zeros(layout.elements, np.float32)
  for i, view in enumerate(jax.tree.leaves(layout.views(vector))):
    assert view.base is not None and (view == 0).all()  # no two leaves share an element
    view[...] = i + 1
    assert view.__array_interface__["data"][0] % 64 == vector.__array_interface__["data"][0] % 64
  decayed = {i + 1 for i, shape in enumerate(shapes) if len(shape) >= 2}
  assert set(np.unique(vector[: layout.decayed])) - {0} == decayed
  assert not decayed & set(np.unique(vector[layout.decayed :]))
  sizes = sum(layout.payload(part) for part in layout.parts)
  assert sizes == sum(int(np.prod(s)) for s in shapes) == (vector > 0).sum()


@hypothesis.given(st.integers(1, 50_000), st.floats(0, 1))
def test_parts_cover_the_vector_and_do_not_overlap(size, delayed):
  layout = Layout.of(tree_of([[size]]), delayed)
  seen = np.zeros(layout.elements, int)
  for start, stop in layout.cuts.values():
    assert start % CUT == stop % CUT == 0 and start < stop
    seen[start:stop] += 1
  assert (seen == 1).all()
  part = layout.length(Part.DELAYED) if Part.DELAYED in layout.cuts else 0
  assert delayed * layout.elements <= part <= delayed * layout.elements + CUT
  assert (part == 0) == (delayed == 0)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range(fraction):
  with pytest.raises(ValueError, match="--delayed_fraction"):
    Layout.of(tree_of([[5]]), fraction)
