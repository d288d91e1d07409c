"""Initial values from which a small rotary model learns to copy in hundreds of steps.

Copying text takes two attention heads in a row (Olsson et al., arXiv 2209.11895): one brings each
token the token before it, a later one looks for places whose previous token is the current one, and
what stands there is written out. From the usual random values a model finds that circuit late or
never, since no part of it pays before the others are there. Four changes shorten the search; the
second head still has to be learned.

1. Token embeddings share one direction. Without biases a rotary head can prefer a distance only
   through a component that all tokens have in common.
2. The first head of the first block looks at the previous token: along that direction its query is
   its key turned back by one position.
3. Each block's output projection is its value projection transposed and scaled down, so that a head
   writes the token that it attends to (as Trockman and Kolter, arXiv 2305.09828, initialise value
   and output to a multiple of the identity).
4. The MLPs write nothing at first, so that tokens are not drowned in noise.
"""

import jax
import jax.numpy as jnp

from models.axes import Key
from models.transformer import Parameters, Transformer

_VALUE_TO_OUTPUT = 0.04  # with unit-variance values: about the size of an embedding
_SHARPNESS = 2.5  # of the previous-token head: its logits are near 50 there, and 6 less beside it
_FREQUENCIES = 8  # the fastest rotations, which tell one position from the next
_NOISE = 0.3  # what that head keeps of its random query and key


def check(model: Transformer) -> None:
  """Raises ValueError if `copying` is not for this model."""
  c = model.config
  if c.family != "llama" or not c.tied_embeddings or c.qk_norm:
    raise ValueError(
      "The copying initialisation is for rotary models with tied embeddings and no head norms."
    )


def copying(model: Transformer, key: Key) -> Parameters:
  """A whole tree of parameters for a model of the llama family with tied embeddings.

  Raises:
    ValueError: the model is of another family, or does not tie its embeddings.
  """
  check(model)
  c = model.config
  init_key, direction_key = jax.random.split(key)
  parameters = model.init(init_key)
  shared = jax.random.normal(direction_key, (c.width,), model.dtype)
  shared /= jnp.linalg.norm(shared)
  parameters["resident"]["embed"]["tokens"]["embedding"] += shared[None, :]
  for unit in parameters["units"]:
    values = unit["attention"]["value"]["kernel"]
    values = jnp.repeat(values.reshape(c.width, c.kv_heads, c.head_size), c.group, axis=1)
    unit["attention"]["output"]["kernel"] = (
      _VALUE_TO_OUTPUT * values.reshape(c.width, c.heads * c.head_size).T
    )
    unit["mlp"]["down"]["kernel"] = jnp.zeros_like(unit["mlp"]["down"]["kernel"])
  _look_back(parameters["units"][0]["attention"], model, shared)
  return parameters


def _look_back(attention: Parameters, model: Transformer, shared: jax.Array) -> None:
  """Turns the first head to the previous token, in place."""
  size = model.config.head_size
  half = size // 2
  pairs = jnp.arange(min(_FREQUENCIES, half))
  turn = model.config.rope_theta ** (-pairs / half)  # radians from one position to the next
  unit = jnp.zeros(size, model.dtype)
  key = unit.at[pairs].set(1.0)
  query = unit.at[pairs].set(jnp.cos(turn)).at[pairs + half].set(-jnp.sin(turn))
  for name, wanted in (("query", query), ("key", key)):
    kernel = attention[name]["kernel"]
    wanted = _SHARPNESS * wanted / jnp.sqrt(len(pairs))
    head = _NOISE * kernel[:, :size] + shared[:, None] * wanted[None, :]
    attention[name]["kernel"] = kernel.at[:, :size].set(head)
