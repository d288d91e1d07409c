"""An elementwise optax transformation applied to slices of flat vectors.

One compiled program updates one block of fixed size, padded at the end, so that where a vector is
cut cannot change a bit of the result; another, with a size of its own, the elements that do not
decay. What belongs to a whole step (counts, and with them learning rates) is kept once for each
iteration.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from offload.buffers import aligned

# Elements of a block, at most, and what it is a multiple of. A block's vectors stay in the
# processor's cache on their way back, beside computations: alone, larger ones are faster.
_BLOCK, _STEP = 2**17, 2**10
MASTER = "master"


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A transformation for the leaves that decay and one for the others, alike but for the decay."""

  decayed: optax.GradientTransformation
  plain: optax.GradientTransformation


class _Rule(NamedTuple):
  """The program of a transformation, and the elements that it updates at once."""

  program: Callable[..., Any]
  block: int


class Updater:
  """Applies an optimizer to parameters, states and gradients that lie in host memory.

  `lengths` are the elements of a whole vector that decay, and those that do not. Blocks of at most
  `most` elements, a multiple of 1,024, divide them evenly: what is padded costs as much as what is
  not. A slice may have one padded block of each.

  Attributes:
    names: of the state vectors, in the order in which they are stacked. The float32 master values
      are the last one where the parameters are of another type.

  Raises:
    ValueError: the optimizer is not elementwise, so that it cannot be applied to slices.
  """

  def __init__(
    self,
    optimizer: Optimizer,
    parameter_dtype: Any,
    lengths: tuple[int, int],
    most: int = _BLOCK,
  ):
    self._dtype = np.dtype(parameter_dtype)
    self._cpu = jax.local_devices(backend="cpu")[0]
    blocks = [block_of(length, most) for length in lengths]
    state = jax.eval_shape(optimizer.decayed.init, jax.ShapeDtypeStruct((_STEP,), jnp.float32))
    paths, self._treedef = jax.tree.flatten_with_path(state)
    self._is_vector = [_is_vector(path, leaf, _STEP) for path, leaf in paths]
    kept = zip(paths, self._is_vector, strict=True)
    self.names = _distinct([_name(path) for (path, _), vector in kept if vector])
    self.has_master = self._dtype != np.float32
    if self.has_master:
      self.names.append(MASTER)
    transformations = (optimizer.decayed, optimizer.plain)
    for transformation in transformations:
      _refuse_unless_elementwise(transformation)
    programs = map(self._compile, transformations)
    self._decayed, self._plain = map(_Rule, programs, blocks)
    self._initial = jax.jit(optimizer.decayed.init)
    self._scalars: dict[int, list[Any]] = {}  # before the step of an iteration
    self._scratch = aligned((len(self.names) + 2, max(blocks)), np.float32)

  def start(self, iteration: int, scalars: list[Any] | None = None) -> None:
    """Sets what belongs to a whole step to `scalars`, or to that of a fresh start, for the
    iteration to come."""
    if scalars is not None:
      self._scalars = {iteration: [jnp.array(scalar) for scalar in scalars]}
      return
    state = jax.tree.leaves(self._initial(jnp.zeros(_STEP, jnp.float32)))
    fresh = [leaf for leaf, vector in zip(state, self._is_vector, strict=True) if not vector]
    self._scalars = {iteration: fresh}

  def scalars(self, iteration: int) -> list[Any]:
    """What belongs to the whole step of the iteration to come."""
    return self._scalars[iteration]

  def initial_states(self, parameters: np.ndarray, states: np.ndarray) -> None:
    """Fills the stacked states of a vector of initial float32 values."""
    leaves = jax.tree.leaves(jax.device_get(self._initial(jnp.array(parameters))))
    vectors = [leaf for leaf, vector in zip(leaves, self._is_vector, strict=True) if vector]
    for target, vector in zip(states, [*vectors, parameters][: len(states)], strict=True):
      np.copyto(target, vector)

  def apply(
    self,
    iteration: int,
    parameters: np.ndarray,
    states: np.ndarray,
    gradients: np.ndarray,
    decayed: int,
    scaled: Callable[[Any], Any] = lambda gradients: gradients,
  ) -> None:
    """Updates vectors in place: the first `decayed` elements with weight decay, the rest without.

    Shapes: parameters [n] of the parameter dtype, states float32 [vectors, n], gradients float32
    [n], which are overwritten nowhere: `scaled` makes new ones of them, block by block.
    """
    scalars = self._scalars_of(iteration)
    with jax.default_device(self._cpu):
      for rule, start, stop in self._blocks(len(gradients), decayed):
        blocks = (parameters[start:stop], states[:, start:stop], gradients[start:stop])
        after = self._apply_block(rule, scalars, *blocks, scaled)
        self._scalars.setdefault(iteration + 1, after)

  def skip(self, iteration: int, parameters: np.ndarray, states: np.ndarray) -> None:
    """Leaves vectors and step count as they are. Parameters that have masters are only written by
    updates, so that the buffer may hold anything: they are cast anew."""
    scalars = self._scalars_of(iteration)
    self._scalars.setdefault(iteration + 1, scalars)
    if self.has_master:
      np.copyto(parameters, states[-1].astype(self._dtype))

  def _scalars_of(self, iteration: int) -> list[Any]:
    self._scalars = {i: s for i, s in self._scalars.items() if i >= iteration - 1}
    return self._scalars[iteration]

  def _blocks(self, length: int, decayed: int):
    decayed = min(max(decayed, 0), length)
    for rule, begin, end in ((self._decayed, 0, decayed), (self._plain, decayed, length)):
      for start in range(begin, end, rule.block):
        yield rule, start, min(start + rule.block, end)

  def _apply_block(self, rule, scalars, parameters, states, gradients, scaled) -> list[Any]:
    size = len(gradients)
    inputs = [gradients, *states] if self.has_master else [gradients, *states, parameters]
    if size < rule.block:
      rows = self._scratch[: len(inputs), : rule.block]
      for row, values in zip(rows, inputs, strict=True):
        row[:size], row[size:] = values, 0
      inputs = list(rows)
    inputs[0] = scaled(inputs[0])
    cast, vectors, after = rule.program(inputs, scalars)
    for target, vector in zip(states, vectors, strict=False):
      np.copyto(target, np.asarray(vector)[:size])
    np.copyto(parameters, np.asarray(cast)[:size])
    return after

  def _compile(self, transformation: optax.GradientTransformation):
    def step(inputs, scalars):
      gradients, *vectors, master = inputs
      state = self._join(vectors, scalars)
      updates, state = transformation.update(gradients, state, master)
      master = jnp.asarray(optax.apply_updates(master, updates))
      vectors, scalars = self._split(state)
      if self.has_master:
        return master.astype(self._dtype), [*vectors, master], scalars
      return master, vectors, scalars

    return jax.jit(step)

  def _join(self, vectors: list[Any], scalars: list[Any]) -> Any:
    vectors, scalars = list(vectors), list(scalars)
    leaves = [(vectors if vector else scalars).pop(0) for vector in self._is_vector]
    return jax.tree.unflatten(self._treedef, leaves)

  def _split(self, state: Any) -> tuple[list[Any], list[Any]]:
    leaves = list(zip(jax.tree.leaves(state), self._is_vector, strict=True))
    return [x for x, vector in leaves if vector], [x for x, vector in leaves if not vector]


def block_of(length: int, most: int) -> int:
  """Elements of the fewest equal blocks that hold so many; `most` and they are whole steps."""
  count = -(-length // most)
  return _STEP * max(1, -(-length // (max(count, 1) * _STEP)))


def _name(path: Any) -> str:
  return str(path[-1]).lstrip(".") if path else "state"


def _distinct(names: list[str]) -> list[str]:
  """Numbers the names that come more than once: an array on disk has one name."""
  return [f"{n}_{names[:i].count(n)}" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _is_vector(path: Any, leaf: Any, block: int) -> bool:
  if leaf.shape not in ((), (block,)):
    raise ValueError(
      f"The optimizer keeps {_name(path)} of shape {leaf.shape} for {block} elements: only "
      "elementwise optimizers (AdamW, Lion, SGD, ...) can be applied to slices."
    )
  return leaf.shape == (block,)


@functools.cache  # an optimizer is asked for by several updaters of a run
def _refuse_unless_elementwise(transformation: optax.GradientTransformation) -> None:
  """Perturbs one gradient of a small matrix: no other element's updates may change.

  Three steps at gradients small and large, so that clipping and warm-up from zero show too.
  """
  parameters = jnp.linspace(0.5, 1.5, 12).reshape(3, 4)

  @jax.jit
  def updates(gradients):
    state, out = transformation.init(parameters), []
    for _ in range(3):
      update, state = transformation.update(gradients, state, parameters)
      out.append(jnp.asarray(update))
    return jnp.stack(out)

  for scale in (1e-3, 1.0, 1e4):
    gradients = scale * jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
    changed = updates(gradients) != updates(gradients.at[1, 2].add(3.0 * scale))
    if changed.sum() > changed[:, 1, 2].sum():
      raise ValueError(
        "The optimizer's update of one element depends on other elements: only elementwise "
        "optimizers (AdamW, Lion, SGD, ...) can be applied to slices."
      )
