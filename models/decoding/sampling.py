"""From logits to a distribution, and from a distribution to a token.

A sampler is a frozen dataclass with `probabilities(logits)`, the exact distribution that it draws
from. Speculative acceptance compares two such distributions, so the draft and the verification use
the very same function; where `greedy`, the loop compares tokens instead.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Key

from models.axes import Array, Float, Int

SequenceKeys = Key[Array, " B"]  # one typed random key per sequence


@dataclasses.dataclass(frozen=True)
class Greedy:
  """The most likely token; the first among equals."""

  greedy: ClassVar[bool] = True

  def probabilities(self, logits: Float[Array, "*rows V"]) -> Float[Array, "*rows V"]:
    return jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Temperature, then the `top_k` likeliest tokens, then the nucleus that holds `top_p`.

  The nucleus (arXiv 1904.09751) is the fewest likeliest tokens whose mass reaches `top_p`; tokens
  as likely as its last member stay in. `top_k=0` keeps all.
  """

  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  greedy: ClassVar[bool] = False

  def __post_init__(self):
    if not self.temperature >= 1e-4:  # logits over less overflow
      raise ValueError(f"temperature must be 0 or at least 0.0001, not {self.temperature}.")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be in (0, 1], not {self.top_p}.")
    if self.top_k < 0:
      raise ValueError(f"top_k must be 0 (all tokens) or more, not {self.top_k}.")

  def probabilities(self, logits: Float[Array, "*rows V"]) -> Float[Array, "*rows V"]:
    p = jax.nn.softmax(logits / self.temperature, axis=-1)
    if self.top_k and self.top_k < p.shape[-1]:
      least = jax.lax.top_k(p, self.top_k)[0][..., -1:]
      p = _renormalised(p, least)
    if self.top_p < 1:
      likeliest = jnp.flip(jnp.sort(p, axis=-1), axis=-1)
      before = jnp.cumsum(likeliest, axis=-1) - likeliest
      least = jnp.where(before < self.top_p, likeliest, jnp.inf).min(axis=-1, keepdims=True)
      p = _renormalised(p, least)
    return p


Sampler = Greedy | Sampling


def _renormalised(p: Float[Array, "*rows V"], least: Array) -> Float[Array, "*rows V"]:
  kept = jnp.where(p >= least, p, 0.0)
  return kept / kept.sum(axis=-1, keepdims=True)


def make_sampler(temperature: float, top_p: float, top_k: int = 0) -> Sampler:
  """Greedy at temperature 0, else `Sampling`; raises ValueError where a setting makes no sense."""
  if temperature == 0:
    return Greedy()
  return Sampling(temperature, top_p, top_k)


def draw(keys: SequenceKeys, probabilities: Float[Array, "B V"]) -> Int[Array, " B"]:
  """One token of each sequence, with a key of its own."""
  return jax.vmap(jax.random.categorical)(keys, jnp.log(probabilities)).astype(jnp.int32)


def fold(keys: SequenceKeys, data: Int[Array, " B"] | int) -> SequenceKeys:
  """Each sequence's key with a number folded in."""
  if isinstance(data, int):
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
  return jax.vmap(jax.random.fold_in)(keys, data)
