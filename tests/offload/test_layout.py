"""The flat vector of a unit: leaves, decay, cuts."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload.cuts import Cuts, together
from offload.layout import Layout
from schedules.pools import CUT, PAGE, cut
from schedules.steps import Kind, Part, Tier

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
  assert layout.payload == sum(int(np.prod(s)) for s in shapes) == (vector > 0).sum()


@hypothesis.given(st.integers(1, 50_000), st.floats(0, 1))
def test_parts_cover_the_vector_and_do_not_overlap(size, delayed):
  layout = Layout.of(tree_of([[size]]), delayed)
  seen = np.zeros(layout.elements, int)
  for start, stop in layout.cuts.values():
    assert start % PAGE == stop % PAGE == 0 and start < stop
    seen[start:stop] += 1
  assert (seen == 1).all()
  part = layout.length(Part.DELAYED) if Part.DELAYED in layout.cuts else 0
  assert delayed * layout.elements <= part <= delayed * layout.elements + PAGE
  assert (part == 0) == (delayed == 0)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range(fraction):
  with pytest.raises(ValueError, match="--delayed_fraction"):
    Layout.of(tree_of([[5]]), fraction)


def split(layout, share):
  """The cuts of a placement that keeps a share of every vector on the host."""
  elements = {part: layout.length(part) for part in layout.parts}
  vectors = {kind: cut(elements, share) for kind in CUT}
  return vectors[Kind.STATES], Cuts(vectors)


@hypothesis.given(st.integers(1, 50_000), st.floats(0, 1), st.floats(0, 1))
def test_slices_cover_the_vector_in_whole_pages(size, delayed, share):
  layout = Layout.of(tree_of([[size]]), delayed)
  slices, cuts = split(layout, share)
  ends = [0]
  for piece, elements in slices.items():
    assert cuts.start(Kind.STATES, piece) == ends[-1] and elements % PAGE == 0 and elements > 0
    ends.append(ends[-1] + elements)
  assert ends[-1] == layout.elements
  on_host = cuts.length(Kind.STATES, Tier.HOST)
  assert share * layout.elements - 2 * PAGE <= on_host <= share * layout.elements
  for part in layout.parts:
    inside = [n for piece, n in slices.items() if piece.part is part]
    assert sum(inside) == layout.length(part)


@hypothesis.given(shapes, st.floats(0, 1), st.floats(0, 1))
def test_a_vector_in_pieces_is_the_same_tree(shapes, delayed, share):
  layout = Layout.of(tree_of([*shapes, [100, 90]]), delayed)
  slices, cuts = split(layout, share)
  vector = np.arange(layout.elements, dtype=np.float32)
  homes = {home: np.zeros(cuts.length(Kind.STATES, home), np.float32) for home in Tier}
  runs = []
  for home, buffer in homes.items():
    here = [piece for piece in slices if piece.home is home]
    for run in cuts.runs(Kind.STATES, here, buffer):
      run.array[...] = vector[run.start : run.stop]
      runs.append(run)
  tree = layout.gather(runs)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(layout.views(vector)), strict=True):
    np.testing.assert_array_equal(a, b)
    a += 1
  layout.scatter(tree, runs)
  for a, b in zip(
    jax.tree.leaves(layout.gather(runs)), jax.tree.leaves(layout.views(vector)), strict=True
  ):
    np.testing.assert_array_equal(a, b + 1)


def test_runs_of_several_kinds_are_cut_where_any_of_them_is():
  layout = Layout.of(tree_of([[10 * PAGE]]))
  (_, halves), (_, tenths) = split(layout, 0.5), split(layout, 0.1)
  vector = np.arange(10 * PAGE)
  whole = [
    [run for home in Tier for run in cuts.runs(Kind.STATES, [s for s in v if s.home is home], b)]
    for cuts, v, b in [
      (halves, split(layout, 0.5)[0], vector),
      (tenths, split(layout, 0.1)[0], vector),
    ]
  ]
  spans = [(a.start, a.stop) for a, b in together(whole) if (a.start, a.stop) == (b.start, b.stop)]
  assert spans == [(0, 5 * PAGE), (5 * PAGE, 9 * PAGE), (9 * PAGE, 10 * PAGE)]
