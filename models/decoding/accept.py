"""Which drafts stand, and the token that follows them.

Greedy: drafts stand as long as each is the verification's own choice. Sampling: speculative
sampling (Leviathan et al., arXiv 2211.17192, algorithm 1), under which the emitted tokens have
exactly the distribution of sampling from the verification's `p` one by one, whatever the drafts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Float, Int, Logits, Tokens
from models.decoding.sampling import SequenceKeys, draw, fold


class Acceptance(NamedTuple):
  """`tokens[:, : accepted + 1]` is what a verification yields: drafts that stand, and one more."""

  tokens: Tokens
  accepted: Int[Array, " B"]


# Hidden states of one row [B, M] to the distribution [B, V] that a draft was drawn from.
Distribution = Callable[[Float[Array, "B M"]], Float[Array, "B V"]]


def _leading(stands: Array) -> Int[Array, " B"]:
  """How many drafts stand before the first that does not."""
  return jnp.cumprod(stands.astype(jnp.int32), axis=1).sum(axis=1)


def accept_greedy(drafts: Int[Array, "B G"], logits: Logits) -> Acceptance:
  """`drafts` [B, gamma] against the choices of `logits` [B, gamma + 1, V]."""
  choices = logits.argmax(axis=-1).astype(jnp.int32)
  return Acceptance(choices, _leading(drafts == choices[:, :-1]))


def accept_sampled(
  keys: SequenceKeys,
  drafts: Int[Array, "B G"],
  hidden: Float[Array, "B G M"],
  distribution: Distribution,
  p: Logits,
) -> Acceptance:
  """Speculative sampling.

  Args:
    keys: one for each sequence, used for nothing else.
    drafts: [B, gamma], draft i drawn from `distribution(hidden[:, i])`.
    hidden: [B, gamma, M]. Of the distributions only one row at a time is ever held, where all
      would take gamma times the vocabulary.
    p: [B, gamma + 1, V], the verification's distributions.
  """
  gamma = drafts.shape[1]
  of_token = lambda x, token: jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (gamma,)))(fold(keys, 0))

  def stands(row):
    drafted, at_row, chance, p_row = row
    q_row = distribution(at_row)
    return chance * of_token(q_row, drafted) < of_token(p_row, drafted)  # probability min(1, p/q)

  rows = (drafts, hidden, uniform, p[:, :-1])
  accepted = _leading(jax.lax.map(stands, jax.tree.map(lambda x: x.swapaxes(0, 1), rows)).T)
  # Behind gamma standing drafts q is nothing, and the token comes from p itself.
  take = lambda x, at: jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
  q_next = distribution(take(hidden, jnp.minimum(accepted, gamma - 1)))
  q_next = jnp.where((accepted < gamma)[:, None], q_next, 0.0)
  p_next = take(p, accepted)
  rest = jnp.maximum(p_next - q_next, 0.0)
  mass = rest.sum(axis=-1, keepdims=True)
  # p == q leaves nothing to draw from and also rejects nothing, except by rounding: then p serves.
  rest = jnp.where(mass > 0, rest / jnp.where(mass > 0, mass, 1.0), p_next)
  follows = draw(fold(keys, 1), rest)
  tokens = jnp.concatenate([drafts, follows[:, None]], axis=1)
  here = jnp.arange(gamma + 1)[None, :] == accepted[:, None]
  return Acceptance(jnp.where(here, follows[:, None], tokens), accepted)


def sample_next(keys: SequenceKeys, p: Float[Array, "B V"]) -> Acceptance:
  """Behind no draft: one token from `p`."""
  accepted = jnp.zeros(p.shape[0], jnp.int32)
  return Acceptance(draw(fold(keys, 1), p)[:, None], accepted)
