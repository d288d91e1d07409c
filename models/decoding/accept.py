"""Which drafts stand, and the token that follows them.

Greedy: drafts stand as long as each is the verification's own choice. Sampling: speculative
sampling (Leviathan et al., arXiv 2211.17192, algorithm 1), under which the emitted tokens have
exactly the distribution of sampling from the verification's `p` one by one, whatever the drafts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Float, Int, Logits, Tokens
from models.decoding.sampling import Sampler, SequenceKeys, draw, fold


class Acceptance(NamedTuple):
  """`tokens[:, : accepted + 1]` is what a verification yields: drafts that stand, and one more."""

  tokens: Tokens
  accepted: Int[Array, " B"]


def _leading(stands: Array) -> Int[Array, " B"]:
  """How many drafts stand before the first that does not."""
  return jnp.cumprod(stands.astype(jnp.int32), axis=1).sum(axis=1)


def accept_greedy(drafts: Int[Array, "B G"], logits: Logits) -> Acceptance:
  """`drafts` [B, gamma] against the choices of `logits` [B, gamma + 1, V]."""
  choices = logits.argmax(axis=-1).astype(jnp.int32)
  return Acceptance(choices, _leading(drafts == choices[:, :-1]))


def accept_sampled(
  keys: SequenceKeys, drafts: Int[Array, "B G"], q: Float[Array, "B G V"], p: Logits
) -> Acceptance:
  """Speculative sampling.

  Args:
    keys: one for each sequence, used for nothing else.
    drafts: [B, gamma], drawn from `q`.
    q: [B, gamma, V], the distributions that the drafts were drawn from.
    p: [B, gamma + 1, V], the verification's distributions.
  """
  batch, gamma = drafts.shape
  of_draft = lambda x: jnp.take_along_axis(x, drafts[..., None], axis=-1)[..., 0]
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (gamma,)))(fold(keys, 0))
  stands = uniform * of_draft(q) < of_draft(p[:, :-1])  # with probability min(1, p/q)
  accepted = _leading(stands)
  # Behind gamma standing drafts q is nothing, and the token comes from p itself.
  q = jnp.concatenate([q, jnp.zeros((batch, 1, q.shape[-1]), q.dtype)], axis=1)
  at = accepted[:, None, None]
  p_next = jnp.take_along_axis(p, at, axis=1)[:, 0]
  rest = jnp.maximum(p_next - jnp.take_along_axis(q, at, axis=1)[:, 0], 0.0)
  mass = rest.sum(axis=-1, keepdims=True)
  # p == q leaves nothing to draw from and also rejects nothing, except by rounding: then p serves.
  rest = jnp.where(mass > 0, rest / jnp.where(mass > 0, mass, 1.0), p_next)
  follows = draw(fold(keys, 1), rest)
  tokens = jnp.concatenate([drafts, follows[:, None]], axis=1)
  here = jnp.arange(gamma + 1)[None, :] == accepted[:, None]
  return Acceptance(jnp.where(here, follows[:, None], tokens), accepted)


def accept(
  sampler: Sampler,
  keys: SequenceKeys,
  drafts: Int[Array, "B G"],
  q: Float[Array, "B G V"] | None,
  logits: Logits,
) -> Acceptance:
  """By tokens where the sampler is greedy (no `q` needed), else by distributions."""
  if q is None:
    return accept_greedy(drafts, logits)
  return accept_sampled(keys, drafts, q, sampler.probabilities(logits))
