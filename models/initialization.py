"""Initial values from which a small rotary model learns to copy in hundreds of steps.

Copying text takes two attention heads in a row (Olsson et al., arXiv 2209.11895): one brings each
token the token before it, a later one looks for places whose previous token is the current one, and
what stands there is written out. In text one token says too little about where to look; it takes
the last three or four. From the usual random values a model finds that circuit late or never, since
no part of it pays before the others are there. Four changes shorten the search; the later head
still has to be learned.

1. Token embeddings share one direction. Without biases a rotary head can prefer a distance only
   through a component that all tokens have in common.
2. The first block's heads but one look at the token one, two, ... positions back: along that
   direction such a head's query is its key turned back by as many positions.
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
_SHARPNESS = 2.5  # of heads that look back: their logits are near 50 there, and 9 less beside it
_FREQUENCIES = 4  # the fastest rotations, which tell one position from the next
_NOISE = 0.3  # what those heads keep of their random queries and keys


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
  first = parameters["units"][0]["attention"]
  for back in range(1, max(c.kv_heads, 2)):
    _look_back(first, model, shared, head=back - 1, back=back)
  return parameters


def _look_back(
  attention: Parameters, model: Transformer, shared: jax.Array, head: int, back: int
) -> None:
  """Turns a key/value head, and the query heads that share it, `back` tokens back, in place."""
  size, group = model.config.head_size, model.config.group
  half = size // 2
  pairs = jnp.arange(min(_FREQUENCIES, half))
  turn = back * model.config.rope_theta ** (-pairs / half)  # radians
  key = jnp.zeros(size, model.dtype).at[pairs].set(1.0)
  query = key.at[pairs].set(jnp.cos(turn)).at[pairs + half].set(-jnp.sin(turn))
  queries = range(head * group, (head + 1) * group)
  for name, heads, wanted in (("query", queries, query), ("key", (head,), key)):
    wanted = _SHARPNESS / jnp.sqrt(len(pairs)) * shared[:, None] * wanted[None, :]
    kernel = attention[name]["kernel"]
    for columns in (slice(h * size, (h + 1) * size) for h in heads):
      kernel = kernel.at[:, columns].set(_NOISE * kernel[:, columns] + wanted)
    attention[name]["kernel"] = kernel
