"""How long to draft: the length that yields most tokens a second, by measured costs.

A round of draft length g takes t(g) seconds and yields tau(g) = 1 + s(1) + ... + s(g) tokens, s(i)
being the chance that the first i drafts all stand. One more draft pays as long as it raises the
yield by a larger part than the time: in the published form, for drafts that stand with one chance
alpha and seconds c_d of a draft step and c_v of a verification,

    lengthen iff alpha^(g + 1) / tau(g) > c_d / (g c_d + c_v)

which is to say: as long as tau / t rises. Of a few lengths with seconds measured for each, the one
of the largest tau / t is where the rule ends, however the seconds grow. Length 0 is autoregressive
decoding, tau(0) = 1: where it wins, speculation does not pay.

All of it is functions of arrays, part of the compiled program that decodes (`pacing.py`): a choice
takes microseconds, where one in Python takes as long as a round of a small model. N counts the
draft lengths, which ascend from 0; G is the longest of them, and A = G + 1 counts what may be
accepted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from models.axes import Array, Bool, Float, Int

LENGTHS = (0, 1, 2, 4, 6, 8, 12, 16)

_HOPE, _HOPE_WEIGHT = 0.9, 2.0  # a draft's chance before any is seen, worth so many drafts
_POOL_WEIGHT = 4.0  # what all positions together say of one, in drafts of its own
_HALF_LIFE = 64.0  # sequences' rounds in which what was seen comes to count half
_STRETCH = 4  # most rounds between two choices
_FIRST_WAIT, _LONGEST_WAIT = 16, 512  # autoregressive rounds between two tries


class RoundSeconds(NamedTuple):
  """Measured seconds of a round at two contexts, by draft length; between them, on a line.

  Attributes:
    contexts: tokens in the cache, ascending.
    low, high: at either context.
  """

  contexts: Float[Array, "2"]
  low: Float[Array, " N"]
  high: Float[Array, " N"]

  def at(self, context: Float[Array, ""]) -> Float[Array, " N"]:
    """Seconds of a round by draft length; outside the contexts, those of the nearer one."""
    first, last = self.contexts
    share = jnp.clip((context - first) / jnp.maximum(last - first, 1), 0, 1)
    return (1 - share) * self.low + share * self.high


class Seen(NamedTuple):
  """Drafts so far, those of long ago counting less.

  Attributes:
    reached: by position, drafts all of whose predecessors stood.
    stood: by position, those of them that stood.
  """

  reached: Float[Array, " G"]
  stood: Float[Array, " G"]

  @staticmethod
  def nothing(longest: int) -> "Seen":
    """Before the first draft."""
    return Seen(jnp.zeros(longest), jnp.zeros(longest))

  def after(self, draft_length: Int[Array, ""], by_accepted: Int[Array, " A"]) -> "Seen":
    """With rounds of one draft length more, counted by accepted drafts."""
    keep = 0.5 ** (by_accepted.sum() / _HALF_LIFE)
    at_least = by_accepted[::-1].cumsum()[::-1].astype(jnp.float32)
    drafted = jnp.arange(len(self.reached)) < draft_length
    return Seen(
      keep * self.reached + jnp.where(drafted, at_least[:-1], 0),
      keep * self.stood + jnp.where(drafted, at_least[1:], 0),
    )

  def standing(self) -> Float[Array, " G"]:
    """The chance that the first i drafts all stand, for i from 1 on.

    A product of each position's chance given that those before it stood (Kaplan and Meier's
    estimate, since a round says nothing of positions behind its first rejection), drawn towards the
    chance at all positions; where nothing was seen, that is all there is.
    """
    hoped, of = _HOPE * _HOPE_WEIGHT, _HOPE_WEIGHT
    anywhere = (self.stood.sum() + hoped) / (self.reached.sum() + of)
    chances = (self.stood + _POOL_WEIGHT * anywhere) / (self.reached + _POOL_WEIGHT)
    return chances.cumprod()


def expected_tokens(
  standing: Float[Array, " G"], lengths: Sequence[int], remaining: Int[Array, " B"]
) -> Float[Array, " N"]:
  """What one round of each draft length yields in all, of sequences that want `remaining` tokens;
  of one that wants none, nothing."""
  yielded = jnp.cumsum(jnp.append(1.0, standing))
  counted = jnp.minimum(jnp.array(lengths)[:, None], jnp.maximum(remaining - 1, 0)[None, :])
  return jnp.sum(yielded[counted], axis=1, where=(remaining > 0)[None, :])


class Stretch(NamedTuple):
  """So many rounds of one draft length.

  Attributes:
    index: the length's, among the draft lengths.
    rounds: how many; never less than one.
    tries: whether it drafts against what is expected, to see whether drafts still fail.
    even: tokens that a sequence's round is to yield, to be as fast as autoregressive decoding.
  """

  index: Int[Array, ""]
  rounds: Int[Array, ""]
  tries: Bool[Array, ""]
  even: Float[Array, ""]


class Chooser(NamedTuple):
  """Chooses stretch after stretch, and falls back to autoregressive decoding where drafts lose.

  From there it tries again, with an open mind and the length that would pay most if all its drafts
  stood: after 16 rounds, twice as many behind each try, and half as many behind each other stretch
  that wins. So what trying costs vanishes in a long text, and a text whose character changes (it
  begins to repeat what stands far back) is noticed. Where not even drafts that all stand would pay,
  below the break-even, nothing is tried.

  Attributes:
    seen: since the last try began.
    waited: autoregressive rounds since the last draft.
    wait: so many before the next try.
  """

  seen: Seen
  waited: Int[Array, ""]
  wait: Int[Array, ""]

  @staticmethod
  def fresh(longest: int) -> "Chooser":
    """Before the first round of texts whose longest draft has so many tokens."""
    return Chooser(Seen.nothing(longest), jnp.int32(0), jnp.int32(_FIRST_WAIT))

  def choose(
    self, lengths: Sequence[int], seconds: Float[Array, " N"], remaining: Int[Array, " B"]
  ) -> Stretch:
    """The next stretch.

    Args:
      lengths: draft lengths; of two that are worth the same, the shorter wins.
      seconds: of a round, by draft length.
      remaining: tokens that each sequence still wants.
    """
    rates = lambda standing: expected_tokens(standing, lengths, remaining) / seconds
    expected, wanted = rates(self.seen.standing()), remaining.max()
    best = expected.argmax()
    at_best = rates(jnp.ones_like(self.seen.stood)).argmax()  # if all drafts stood
    could_pay = at_best > 0
    tries = (best == 0) & could_pay & (self.waited >= self.wait)
    # Little was seen: look again soon. And no stretch drafts far beyond the texts' end.
    few = jnp.minimum(_STRETCH, 1 + self.seen.reached[0].astype(jnp.int32))
    drafting = jnp.clip(wanted // (jnp.array(lengths)[best] + 1), 1, few)
    waiting = jnp.where(could_pay, self.wait - self.waited, _FIRST_WAIT)
    rounds = jnp.where(tries, 1, jnp.where(best > 0, drafting, waiting))
    index = jnp.where(tries, at_best, best)
    return Stretch(index, rounds, tries, seconds[index] / seconds[0])

  def after(
    self, lengths: Sequence[int], stretch: Stretch, by_accepted: Int[Array, " A"]
  ) -> "Chooser":
    """What is known behind a stretch of so many rounds, counted by accepted drafts."""
    drafted, tried = stretch.index > 0, stretch.tries
    old = Seen(*(jnp.where(tried, 0, x) for x in self.seen))  # a try is judged by itself
    new = old.after(jnp.array(lengths)[stretch.index], by_accepted)
    yielded = by_accepted @ jnp.arange(1, len(by_accepted) + 1)
    won = yielded > stretch.even * by_accepted.sum()
    longer = jnp.minimum(2 * self.wait, _LONGEST_WAIT)
    shorter = jnp.where(won, jnp.maximum(self.wait // 2, _FIRST_WAIT), self.wait)
    return Chooser(
      Seen(*(jnp.where(drafted, a, b) for a, b in zip(new, self.seen, strict=True))),
      jnp.where(drafted, 0, self.waited + stretch.rounds),
      jnp.where(drafted, jnp.where(tried, longer, shorter), self.wait),
    )
