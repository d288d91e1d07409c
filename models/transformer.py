"""A decoder-only transformer as *embed, block, head*: the form in which it can be streamed.

`Transformer` is a model as the offload layer sees it: an abstract description and three pure
functions of plain parameter trees. Decoding uses the same block with another `attend`.

    parameters = {"resident": {"embed": ..., "head": ...}, "units": (block 0, block 1, ...)}

The *resident* parameters (embedding, last norm, head) stay on the device; each block is one
streamed *unit*.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.axes import Activations, Key, Logits, Positions, Tokens
from models.config import ModelConfig
from models.layers import MLP, Attend, Attention, Norm, causal_attention

Parameters = Any  # a nested dict of arrays, as Flax makes it


class Context(NamedTuple):
  """What a computation needs beside parameters and activations.

  `key` is made of (seed, iteration, unit, micro-batch) alone, so that a recomputation and every
  schedule draw the same dropout masks; None where nothing is dropped.
  """

  positions: Positions
  key: Key | None = None


class Embed(nn.Module):
  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Tokens, positions: Positions) -> Activations:
    c = self.config
    table = nn.Embed(c.vocabulary, c.width, dtype=self.dtype, param_dtype=self.dtype, name="tokens")
    x = table(tokens)
    if c.family == "gpt":
      x += nn.Embed(c.context, c.width, dtype=self.dtype, param_dtype=self.dtype, name="positions")(
        positions
      )
    return x


class Block(nn.Module):
  """Attention and MLP, each behind a norm and a residual connection; dropout on both branches."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Activations, positions: Positions, attend: Attend, key: Key | None = None):
    c = self.config
    drop = nn.Dropout(c.dropout, deterministic=key is None)
    keys = (None, None) if key is None else jax.random.split(key)
    out, by_product = Attention(c, name="attention")(
      Norm(c, name="attention_norm")(x), positions, attend
    )
    x = x + drop(out, rng=keys[0])
    out = MLP(c, name="mlp")(Norm(c, name="mlp_norm")(x))
    return x + drop(out, rng=keys[1]), by_product


class Head(nn.Module):
  """The last norm and the projection to logits in float32; `table` ties it to the embedding."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Activations, table: jax.Array | None = None) -> Logits:
    x = Norm(self.config, name="norm")(x)
    if table is not None:
      return jnp.einsum("btm,vm->btv", x, table, preferred_element_type=jnp.float32)
    dense = nn.Dense(
      self.config.vocabulary, use_bias=False, dtype=x.dtype, param_dtype=x.dtype, name="logits"
    )
    return dense(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Transformer:
  """The pure functions of a model, with the dtype of its parameters and activations."""

  config: ModelConfig
  dtype: Any = jnp.float32

  @property
  def units(self) -> int:
    return self.config.layers

  @property
  def ties_embeddings(self) -> bool:
    """Whether the loss reads the embedding's table too."""
    return self.config.tied_embeddings

  def context(self, positions: Positions, key: Key | None) -> Context:
    return Context(positions, key)

  def init_resident(self, key: Key) -> Parameters:
    """{"embed", "head"} from a random key."""
    tokens, x = self._example()
    embed_key, head_key = jax.random.split(key)
    embed = Embed(self.config, self.dtype).init(embed_key, tokens, tokens)["params"]
    table = self._table({"embed": embed})
    return {"embed": embed, "head": Head(self.config).init(head_key, x, table)["params"]}

  def init_unit(self, key: Key) -> Parameters:
    """One block's parameters; residual outputs are scaled down by sqrt(2 layers) as GPT-2 does."""
    tokens, x = self._example()
    block = Block(self.config).init(key, x, tokens, causal_attention)["params"]
    scale = (2 * self.config.layers) ** -0.5
    for part, name in (("attention", "output"), ("mlp", "down")):
      block[part][name]["kernel"] = (block[part][name]["kernel"] * scale).astype(self.dtype)
    return block

  def init(self, key: Key) -> Parameters:
    """The whole tree in memory; a streamed model is made unit by unit with the same keys."""
    return {
      "resident": self.init_resident(jax.random.fold_in(key, self.units)),
      "units": tuple(self.init_unit(jax.random.fold_in(key, u)) for u in range(self.units)),
    }

  def embed(self, resident: Parameters, tokens: Tokens, context: Context) -> Activations:
    """Tokens to the first unit's input."""
    apply: Any = Embed(self.config, self.dtype).apply  # Flax's may return variables too
    return apply({"params": resident["embed"]}, tokens, context.positions)

  def block(self, unit: Parameters, x: Activations, context: Context) -> Activations:
    """One unit over whole sequences, causal."""
    apply: Any = Block(self.config).apply
    return apply({"params": unit}, x, context.positions, causal_attention, context.key)[0]

  def block_attending(
    self, unit: Parameters, x: Activations, positions: Positions, attend: Attend
  ) -> tuple[Activations, Any]:
    """One unit with the caller's attention; returns its by-product too. For decoding."""
    return Block(self.config).apply({"params": unit}, x, positions, attend)

  def logits(self, resident: Parameters, x: Activations) -> Logits:
    """The last unit's output to logits, in float32."""
    apply: Any = Head(self.config).apply
    return apply({"params": resident["head"]}, x, self._table(resident))

  def loss(
    self, resident: Parameters, x: Activations, targets: Tokens, context: Context
  ) -> tuple[jax.Array, jax.Array]:
    """Cross entropy in nats, summed over tokens, and the number of tokens; negative targets are
    left out of both."""
    del context
    logits = self.logits(resident, x)
    known = targets >= 0
    log_z = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    loss = jnp.where(known, log_z - hit, 0.0).sum()
    return loss, known.sum().astype(jnp.float32)

  def _table(self, resident: Parameters) -> jax.Array | None:
    return resident["embed"]["tokens"]["embedding"] if self.config.tied_embeddings else None

  def _example(self) -> tuple[Tokens, Activations]:
    return jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1, self.config.width), self.dtype)
