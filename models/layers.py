"""The parts of a block: norms, positions, attention and MLP.

Attention is split at its one seam: `Attention` projects to queries, keys and values and hands them
to an `attend` function. Training, prefill, drafting and verification are four such functions over
one and the same block, so a model is written once.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.axes import Activations, KeysOrValues, Positions, Queries
from models.config import ModelConfig

# (queries, keys, values) of the rows at hand -> (what they attend to, a by-product of any kind)
Attend = Callable[[Queries, KeysOrValues, KeysOrValues], tuple[Queries, Any]]


class Norm(nn.Module):
  """LayerNorm (gpt) or RMSNorm (llama), computed in float32."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kind = nn.LayerNorm if self.config.family == "gpt" else nn.RMSNorm
    norm = kind(
      epsilon=self.config.norm_epsilon, dtype=jnp.float32, param_dtype=x.dtype, name="norm"
    )
    return norm(x).astype(x.dtype)


def rotate(x: Queries, positions: Positions, theta: float) -> Queries:
  """Rotary position embedding in the half-split form (arXiv 2104.09864), computed in float32."""
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[:, None, :, None].astype(jnp.float32) * frequency[None, None, None, :]
  low, high = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  turned = jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)
  return turned.astype(x.dtype)


class Attention(nn.Module):
  """Projections around an `attend` function, with rotary positions and head norms if configured."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Activations, positions: Positions, attend: Attend):
    c = self.config
    bias = c.family == "gpt"

    def project(heads: int, name: str) -> jax.Array:
      dense = nn.Dense(
        heads * c.head_size, use_bias=bias, dtype=x.dtype, param_dtype=x.dtype, name=name
      )
      return dense(x).reshape(*x.shape[:2], heads, c.head_size).swapaxes(1, 2)

    q, k, v = project(c.heads, "query"), project(c.kv_heads, "key"), project(c.kv_heads, "value")
    if c.qk_norm:
      q, k = Norm(c, name="query_norm")(q), Norm(c, name="key_norm")(k)
    if c.family == "llama":
      q, k = rotate(q, positions, c.rope_theta), rotate(k, positions, c.rope_theta)
    out, by_product = attend(q, k, v)
    out = out.swapaxes(1, 2).reshape(*x.shape[:2], c.heads * c.head_size)
    dense = nn.Dense(c.width, use_bias=bias, dtype=x.dtype, param_dtype=x.dtype, name="output")
    return dense(out), by_product


class MLP(nn.Module):
  """GELU (gpt) or SwiGLU (llama)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x: Activations) -> Activations:
    c = self.config
    bias = c.family == "gpt"
    dense = lambda size, name: nn.Dense(
      size, use_bias=bias, dtype=x.dtype, param_dtype=x.dtype, name=name
    )
    if c.family == "gpt":
      hidden = nn.gelu(dense(c.mlp_width, "up")(x))
    else:
      hidden = nn.silu(dense(c.mlp_width, "gate")(x)) * dense(c.mlp_width, "up")(x)
    return dense(c.width, "down")(hidden)


def causal_attention(
  q: Queries, k: KeysOrValues, v: KeysOrValues, block: int = 512
) -> tuple[Queries, None]:
  """Causal self-attention of a whole sequence, for training.

  Queries go in blocks of `block` rows, and each block sees only the keys up to its own end: half
  the arithmetic of a masked square, and no [T, T] array beyond one block's rows. Blocks recompute
  their weights in the backward pass.
  """
  rows, size = q.shape[2], q.shape[3]
  group = q.shape[1] // k.shape[1]

  @jax.checkpoint
  def attend_block(q, k, v):
    seen = k.shape[2]
    q = q.reshape(q.shape[0], k.shape[1], group, *q.shape[2:])
    logits = jnp.einsum("bkgtd,bksd->bkgts", q, k, preferred_element_type=jnp.float32)
    at = seen - q.shape[3] + jnp.arange(q.shape[3])
    visible = jnp.arange(seen)[None, :] <= at[:, None]
    logits = jnp.where(visible[None, None, None], logits * size**-0.5, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bksd->bkgtd", weights, v)
    return out.reshape(out.shape[0], -1, *out.shape[3:])

  pieces = [
    attend_block(q[:, :, i : i + block], k[:, :, : i + block], v[:, :, : i + block])
    for i in range(0, rows, block)
  ]
  return jnp.concatenate(pieces, axis=2), None
