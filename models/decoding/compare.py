"""Is a text what autoregressive greedy decoding gives? Exactly, or up to counted near-ties.

Programs of one row and of several round differently, which can flip an argmax between two logits
that are equal but for rounding. So a difference is judged by the autoregressive logits themselves:
the candidate's text is fed token by token through the one-row program, and each of its tokens must
be the one that program chooses there, or its logit must lie within a stated fraction of the largest
|logit| below the chosen one: a *near-tie*. Following the candidate's own text is what starting the
comparison again behind each near-tie comes to.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from models.axes import Array, Float, Int, Tokens
from models.decoding.verify import verify
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer

NEAR_TIE = 2e-5  # of the largest |logit|, for float32: a few times what rounding was seen to do


@dataclasses.dataclass(frozen=True)
class Comparison:
  """`wrong` is the index of the first token that is neither chosen nor near-tied; None if none."""

  near_ties: int
  wrong: int | None

  @property
  def identical(self) -> bool:
    """Token for token what autoregressive decoding gives, near-ties counted as such."""
    return self.wrong is None


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _follow(
  model: Transformer, parameters: Parameters, cache: KVCache, fed: Tokens, texts: Tokens
) -> tuple[Tokens, Float[Array, "B T"], KVCache]:
  """Feeds `fed` row by row; at each row the program's choice, and how far below it `texts` lies."""

  def step(cache, tokens):
    token, text = tokens
    seen = verify(model, parameters, cache, token[:, None])
    logits = seen.logits[:, 0]
    theirs = jnp.take_along_axis(logits, text[:, None], axis=1)[:, 0]
    gap = (logits.max(axis=1) - theirs) / jnp.abs(logits).max(axis=1)
    return seen.cache.with_lengths(cache.lengths + 1), (logits.argmax(axis=1), gap)

  cache, (choices, gaps) = jax.lax.scan(step, cache, (fed.T, texts.T))
  return choices.T.astype(jnp.int32), gaps.T, cache


def follow(
  model: Transformer,
  parameters: Parameters,
  cache: KVCache,
  last_tokens: Int[Array, " B"],
  texts: list[list[int]],
  near_tie: float = NEAR_TIE,
) -> tuple[list[Comparison], KVCache]:
  """Judges one text per sequence.

  Args:
    cache: all but each prompt's last token, as `prefill` leaves it; donated.
    last_tokens: each prompt's last token.
    texts: tokens behind each prompt, of any lengths.
    near_tie: the largest gap of a near-tie, as a fraction of the largest |logit|.

  Returns:
    A comparison per sequence, and the cache for another use, its lengths as they were.
  """
  begin = cache.lengths + 0  # the donated cache's own array is gone afterwards
  width = max(map(len, texts))
  padded = np.array([text + [0] * (width - len(text)) for text in texts], np.int32)
  fed = jnp.concatenate([last_tokens[:, None], jnp.asarray(padded[:, :-1])], axis=1)
  choices, gaps, cache = _follow(model, parameters, cache, fed, jnp.asarray(padded))
  judged = [
    judge(text, choice[: len(text)], gap[: len(text)], near_tie)
    for text, choice, gap in zip(texts, choices.tolist(), gaps.tolist(), strict=True)
  ]
  return judged, cache.with_lengths(begin)


def complete(text: list[int], wanted: int, end_token: int | None) -> bool:
  """Whether a text ends where it should: at its first end token, else at `wanted` tokens."""
  if end_token in text:
    return text.index(end_token) == len(text) - 1
  return len(text) == wanted


def judge(text: list[int], choices: list[int], gaps: list[float], near_tie: float) -> Comparison:
  """Counts near-ties up to the first wrong token."""
  near_ties = 0
  for at, (token, choice, gap) in enumerate(zip(text, choices, gaps, strict=True)):
    if token != choice and not gap <= near_tie:
      return Comparison(near_ties, at)
    near_ties += token != choice
  return Comparison(near_ties, None)
