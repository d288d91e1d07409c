"""The parameters that stay on the device (embedding, last norm, head) and their optimizer step."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from offload.device_slots import DeviceSlots
from offload.update import Optimizer
from schedules.steps import Kind, Step, Tier

Tree = Any


class Resident:
  """Float32 master values, their optimizer's state, and the parameters cast from them.

  Attributes:
    parameters: the tree that computations read.
  """

  def __init__(self, parameters: Tree, optimizer: Optimizer, dtype: Any):
    # Copies: the step donates them, and the caller's tree must outlive it.
    self._masters = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), parameters)
    decays = jax.tree.map(lambda leaf: leaf.ndim >= 2, parameters)
    self._transformation = optax.chain(
      optax.masked(optimizer.decayed, decays),
      optax.masked(optimizer.plain, jax.tree.map(lambda d: not d, decays)),
    )
    self._state = self._transformation.init(self._masters)
    self._cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    self._step = jax.jit(self._update, donate_argnums=(0, 1))
    self.parameters = parameters

  @property
  def bytes(self) -> int:
    """Of all that a commit has to hold."""
    trees = (self._masters, self._state)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))

  def leaves(self) -> Iterator[np.ndarray]:
    """All that a commit has to hold, as flat arrays until the next step: on a GPU one at a time is
    in host memory, as long as the caller keeps it."""
    for leaf in jax.tree.leaves((self._masters, self._state)):
      yield np.asarray(leaf.addressable_data(0)).reshape(-1)

  def restore(self, leaves: Iterable[np.ndarray]) -> None:
    """Takes up what `leaves` gave."""
    old, treedef = jax.tree.flatten((self._masters, self._state))
    new = [jnp.array(leaf.reshape(like.shape)) for leaf, like in zip(leaves, old, strict=True)]
    self._masters, self._state = jax.tree.unflatten(treedef, new)
    self.parameters = self._cast(self._masters)

  def step(self, gradients: Tree) -> None:
    """Applies the gradients of all resident parameters (`gradients_of`)."""
    step = self._step(self._masters, self._state, gradients)
    self._masters, self._state, self.parameters = jax.block_until_ready(step)

  def _update(self, masters: Tree, state: Any, gradients: Tree):
    updates, state = self._transformation.update(gradients, state, masters)
    masters = optax.apply_updates(masters, updates)
    return masters, state, self._cast(masters)


def gradients_of(step: Step, device: DeviceSlots) -> Tree:
  """The resident parameters' gradients that a step reads: of the embedding and of what the loss
  reads, which a tied embedding is part of too."""
  sums: dict[str, Tree] = {}
  for access in step.accesses_to(Tier.DEVICE, Kind.RESIDENT_GRADIENTS):
    sums |= device[access]
  embed, head = sums["embed"], sums["head"]
  if "embed" in head:
    embed = jax.tree.map(jnp.add, embed, head["embed"])
  return {**head, "embed": embed}
