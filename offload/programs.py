"""The compiled computations of a unit, which every schedule calls, the in-memory reference too.

A fused program of the whole model would round differently, so bit-equality between schedules rests
on these being the same executables.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from offload.layout import Layout

Tree = Any


@runtime_checkable
class Model(Protocol):
  """A model as the streamer sees it: pure functions and an abstract description.

  `resident` is {"embed": ..., "head": ...}; with `ties_embeddings` the loss reads both.
  A context has `positions` and a random `key` made of (seed, iteration, unit, micro-batch).
  """

  @property
  def units(self) -> int: ...
  @property
  def dtype(self) -> Any: ...
  @property
  def ties_embeddings(self) -> bool: ...
  def init_resident(self, key: jax.Array) -> Tree: ...
  def init_unit(self, key: jax.Array) -> Tree: ...
  def context(self, positions: jax.Array, key: jax.Array | None) -> Any: ...
  def embed(self, resident: Tree, tokens: jax.Array, context: Any) -> jax.Array: ...
  def block(self, unit: Tree, x: jax.Array, context: Any) -> jax.Array: ...
  def loss(
    self, resident: Tree, x: jax.Array, targets: jax.Array, context: Any
  ) -> tuple[jax.Array, jax.Array]: ...


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of one micro-batch."""

  sequences: int
  tokens: int  # of a sequence


class Where(NamedTuple):
  """Which computation of a run this is, and what its tokens' positions are."""

  numbers: np.ndarray | jax.Array  # int32 [4]: seed, iteration, unit, micro-batch
  positions: np.ndarray | jax.Array  # int32 [B, T]

  @classmethod
  def of(
    cls, seed: int, iteration: int, unit: int, micro_batch: int | None, positions: np.ndarray
  ) -> "Where":
    return cls(np.array([seed, iteration, unit, micro_batch or 0], np.int32), positions)


class Programs:
  """Compiles on construction; `where` is a `Where`.

  forward(unit, x, where) -> y                                 all activations [B, T, M]
  embed(embed, tokens, where) -> x
  backward(unit, x, dy, gradients, where) -> (dx, gradients)
  loss_backward(unit, head, x, targets, scale, gradients, head_gradients, where)
      -> (loss, dx, gradients, head_gradients)
  embed_backward(embed, tokens, dx, embed_gradients, where) -> embed_gradients
  infer(unit, x, where) -> y, and loss(unit, head, x, targets, where) -> loss: nothing is dropped

  `loss` is summed over tokens; gradients are those of loss * scale, summed over micro-batches in
  float32. Gradients given to a backward pass are donated; None, for all of its sums, begins them.

  Attributes:
    on_cpu: whether they run on the host's cores and in its memory.
    scratch_bytes: what the largest takes for itself, gradients that are to be added among it (with
      one micro-batch too, which adds none).
    reserved_bytes: device memory beside the pools: the scratch memory, on a CPU twice, and the
      first unit's input and its gradient, which are made where they are used.
  """

  def __init__(self, model: Model, layout: Layout, shape: Shape):
    self._model = model
    unit = layout.abstract(model.dtype)
    resident = jax.eval_shape(model.init_resident, jax.random.key(0))
    embed, head = resident["embed"], self.head_part(resident)
    b, t = shape.sequences, shape.tokens
    tokens = jax.ShapeDtypeStruct((b, t), jnp.int32)
    numbers: Any = jax.ShapeDtypeStruct((4,), jnp.int32)
    where = Where(numbers, cast(Any, tokens))
    x = jax.eval_shape(self._embed, embed, tokens, where)
    self.boundary = x
    gradients = _float32(unit)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    head_gradients, embed_gradients = _float32(head), _float32(embed)
    self.on_cpu = jax.default_backend() == "cpu"
    backward = _AddsApart if self.on_cpu else _AddsInPlace
    self.embed = _compile(self._embed, embed, tokens, where)
    self.forward = _compile(self._forward, unit, x, where)
    self.backward = backward(self._backward, unit, x, x, gradients, where, sums=(3,))
    self.loss_backward = backward(
      *(self._loss_backward, unit, head, x, tokens, scale, gradients, head_gradients, where),
      sums=(5, 6),
    )
    # Its gradients are scattered: in place, in float32, only the rows of the tokens are touched.
    self.embed_backward = _AddsInPlace(
      self._embed_backward, embed, tokens, x, embed_gradients, where, sums=(3,)
    )
    self.infer = _compile(self._infer, unit, x, where)
    self.loss = _compile(self._loss, unit, head, x, tokens, where)
    passes = (self.backward, self.loss_backward, self.embed_backward)
    self.scratch_bytes = max(_scratch_bytes(self.forward), *(each.scratch_bytes for each in passes))
    # Where the device goes ahead a program begins before the one at work has given back its memory.
    at_once = 2 if self.on_cpu else 1
    self.reserved_bytes = at_once * self.scratch_bytes + 2 * x.size * x.dtype.itemsize

  def head_part(self, resident: Tree) -> Tree:
    """What of the resident parameters the loss reads."""
    return resident if self._model.ties_embeddings else {"head": resident["head"]}

  def _context(self, where):
    key = jax.random.key(where.numbers[0])
    for number in where.numbers[1:]:
      key = jax.random.fold_in(key, number)
    return self._model.context(where.positions, key)

  def _embed(self, embed, tokens, where):
    return self._model.embed({"embed": embed}, tokens, self._context(where))

  def _forward(self, unit, x, where):
    return self._model.block(unit, x, self._context(where))

  def _backward(self, unit, x, dy, gradients, where):
    _, pull = jax.vjp(lambda unit, x: self._forward(unit, x, where), unit, x)
    d_unit, dx = pull(dy)
    return dx, _add(gradients, d_unit)

  def _infer(self, unit, x, where):
    return self._model.block(unit, x, self._model.context(where.positions, None))

  def _loss(self, unit, head, x, targets, where):
    return self._head_loss(head, self._infer(unit, x, where), targets, where)

  def _head_loss(self, head, y, targets, where):
    return self._model.loss(head, y, targets, self._model.context(where.positions, None))[0]

  def _loss_backward(self, unit, head, x, targets, scale, gradients, head_gradients, where):
    def loss_of(unit, head, x):
      return self._head_loss(head, self._forward(unit, x, where), targets, where)

    loss, pull = jax.vjp(loss_of, unit, head, x)
    d_unit, d_head, dx = pull(scale)
    return loss, dx, _add(gradients, d_unit), _add(head_gradients, d_head)

  def _embed_backward(self, embed, tokens, dx, embed_gradients, where):
    _, pull = jax.vjp(lambda embed: self._embed(embed, tokens, where), embed)
    return _add(embed_gradients, pull(dx)[0])


class _AddsInPlace:
  """A function of sums, compiled in two forms: one that begins them, given None, and one that adds
  to them and takes their memory.

  Nothing is read, and no zeros are written, where there is nothing to add to.
  """

  def __init__(self, function: Callable, *shapes: Any, sums: tuple[int, ...]):
    self._sum = sums[0]
    self._begins = _compile(function, *_without(shapes, sums))
    self._adds = _compile(function, *shapes, donate=sums)
    self.scratch_bytes = max(map(_scratch_bytes, (self._begins, self._adds)))

  def __call__(self, *arguments: Any) -> Any:
    begins = arguments[self._sum] is None
    return (self._begins if begins else self._adds)(*arguments)


class _AddsApart:
  """A function that begins sums, its last results, and a program that adds such results to sums and
  takes their memory.

  On a CPU dense gradients are added faster so: an iteration of 16 units of 0.8M parameters took
  0.93 and 0.96 of the time (medians of four and six pairs of runs). On a GPU the form in place
  saves a unit's gradients, of memory and of its traffic. The function's other results pass through
  the program that adds: who has waited for them has waited for the sums.
  """

  def __init__(self, function: Callable, *shapes: Any, sums: tuple[int, ...]):
    self._sums = sums
    first = _without(shapes, sums)
    self._begins = _compile(function, *first)
    others, gradients = self._split(jax.eval_shape(function, *first))
    given = tuple(shapes[i] for i in sums)
    add = lambda others, sums, gradients: (*others, *_add(sums, gradients))
    self._adds = _compile(add, others, given, gradients, donate=(0, 1))
    added = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(gradients))
    self.scratch_bytes = _scratch_bytes(self._begins) + added

  def __call__(self, *arguments: Any) -> Any:
    sums = tuple(arguments[i] for i in self._sums)
    if sums[0] is None:
      return self._begins(*arguments)
    others, gradients = self._split(self._begins(*_without(arguments, self._sums)))
    return self._adds(others, sums, gradients)

  def _split(self, results: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return results[: -len(self._sums)], results[-len(self._sums) :]


def _without(arguments: tuple[Any, ...], sums: tuple[int, ...]) -> list[Any]:
  return [None if i in sums else each for i, each in enumerate(arguments)]


def _compile(function, *shapes, donate=()):
  return jax.jit(function, donate_argnums=donate).lower(*shapes).compile()


def _scratch_bytes(program: Any) -> int:
  size = program.memory_analysis()
  return size.temp_size_in_bytes if size is not None else 0


def _float32(tree: Tree) -> Tree:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), tree)


def _add(sums: Tree | None, gradients: Tree) -> Tree:
  gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
  return gradients if sums is None else jax.tree.map(jnp.add, sums, gradients)
