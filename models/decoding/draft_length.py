"""How long to draft: the length that yields most tokens a second, by measured costs.

A round of draft length g takes t(g) seconds and yields tau(g) = 1 + s(1) + ... + s(g) tokens, s(i)
being the chance that the first i drafts all stand. One more draft pays as long as it raises the
yield by a larger part than the time: in the published form, for drafts that stand with one chance
alpha and seconds c_d of a draft step and c_v of a verification,

    lengthen iff alpha^(g + 1) / tau(g) > c_d / (g c_d + c_v)

which is to say: as long as tau / t rises. Of a few lengths with seconds measured for each, the one
of the largest tau / t is where the rule ends, however the seconds grow. Length 0 is autoregressive
decoding, tau(0) = 1: where it wins, speculation does not pay.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LENGTHS = (0, 1, 2, 4, 6, 8, 12, 16)  # a compiled program each

_HOPE, _HOPE_WEIGHT = 0.9, 4.0  # a draft's chance before any is seen, worth so many drafts
_POOL_WEIGHT = 4.0  # what all positions together say of one, in drafts of its own
_HALF_LIFE = 64.0  # sequences' rounds in which what was seen comes to count half
_STRETCH = 4  # most rounds between two choices
_TRY = 2  # rounds of a try
_FIRST_WAIT, _LONGEST_WAIT = 16, 512  # autoregressive rounds between two tries


@dataclasses.dataclass(frozen=True)
class RoundSeconds:
  """Measured seconds of a round at two contexts, by draft length; between them, on a line.

  Attributes:
    contexts: tokens in the cache, ascending.
    seconds: by draft length, at either context.
  """

  contexts: tuple[int, int]
  seconds: Mapping[int, tuple[float, float]]

  def at(self, context: float) -> dict[int, float]:
    """Seconds of a round by draft length; outside the contexts, those of the nearer one."""
    low, high = self.contexts
    share = min(max((context - low) / max(high - low, 1), 0.0), 1.0)
    return {g: (1 - share) * a + share * b for g, (a, b) in self.seconds.items()}


@dataclasses.dataclass(frozen=True)
class Seen:
  """Drafts so far, those of long ago counting less.

  Attributes:
    reached: by position, drafts all of whose predecessors stood.
    stood: by position, those of them that stood.
  """

  reached: tuple[float, ...] = ()
  stood: tuple[float, ...] = ()

  def after(self, by_accepted: Sequence[int]) -> "Seen":
    """With rounds of draft length `len(by_accepted) - 1` more, counted by accepted drafts."""
    keep = 0.5 ** (sum(by_accepted) / _HALF_LIFE)
    new = [float(sum(by_accepted[i:])) for i in range(len(by_accepted))]  # i or more accepted
    return Seen(_sum(self.reached, new[:-1], keep), _sum(self.stood, new[1:], keep))

  def standing(self, length: int) -> list[float]:
    """The chance that the first i drafts all stand, for i from 1 to `length`.

    A product of each position's chance given that those before it stood (Kaplan and Meier's
    estimate, since a round says nothing of positions behind its first rejection), drawn towards the
    chance at all positions; where nothing was seen, that is all there is.
    """
    anywhere = (sum(self.stood) + _HOPE * _HOPE_WEIGHT) / (sum(self.reached) + _HOPE_WEIGHT)
    chances, chance = [], 1.0
    for i in range(length):
      reached, stood = (x[i] if i < len(x) else 0.0 for x in (self.reached, self.stood))
      chance *= (stood + _POOL_WEIGHT * anywhere) / (reached + _POOL_WEIGHT)
      chances.append(chance)
    return chances


def _sum(old: Sequence[float], new: Sequence[float], keep: float) -> tuple[float, ...]:
  size = max(len(old), len(new))
  wide = lambda x: [*x, *[0.0] * (size - len(x))]
  return tuple(keep * a + b for a, b in zip(wide(old), wide(new), strict=True))


def expected_tokens(standing: Sequence[float], length: int, remaining: Sequence[int]) -> float:
  """What one round yields in all, of sequences that want `remaining` tokens, each at least 1."""
  return sum(1.0 + sum(standing[: min(length, wanted - 1)]) for wanted in remaining)


def best_length(
  seconds: Mapping[int, float], standing: Sequence[float], remaining: Sequence[int]
) -> int:
  """The draft length of the most tokens a second; the shorter among equals.

  Args:
    seconds: of a round, by draft length.
    standing: the chance that the first i drafts all stand, from i = 1 to the longest length.
    remaining: tokens that each sequence still wants, at least 1.
  """
  rate = lambda g: expected_tokens(standing, g, remaining) / seconds[g]
  return max(sorted(seconds), key=rate)


class Stretch(NamedTuple):
  """So many rounds of one draft length."""

  draft_length: int
  rounds: int


@dataclasses.dataclass(frozen=True)
class Chooser:
  """Chooses stretch after stretch, and falls back to autoregressive decoding where drafts lose.

  From there it tries again, with an open mind: after 16 rounds, and twice as many behind each try
  that fails. So what trying costs vanishes in a long text, and a text whose character changes (it
  begins to repeat what stands far back) is noticed. Where not even drafts that all stand would pay,
  below the break-even, nothing is tried.

  Attributes:
    seen: since the last fall-back.
    waited: autoregressive rounds since the last draft.
    wait: so many before the next try.
  """

  seen: Seen = Seen()
  waited: int = 0
  wait: int = _FIRST_WAIT

  def choose(self, seconds: Mapping[int, float], remaining: Sequence[int]) -> Stretch:
    """The next stretch; arguments as `best_length` has them, 0 among the draft lengths."""
    longest = max(seconds)
    standing = self.seen.standing(longest)
    best = best_length(seconds, standing, remaining)
    if best == 0 and self.waited >= self.wait:
      drafting = {g: s for g, s in seconds.items() if g}
      best = best_length(drafting, standing, remaining)
      return Stretch(best, _TRY)
    if best == 0:
      could_pay = best_length(seconds, [1.0] * longest, remaining)
      return Stretch(0, self.wait - self.waited if could_pay else max(remaining))
    # Little was seen: look again soon. And no stretch drafts far beyond the texts' end.
    few = 1 + int(sum(self.seen.reached[:1]))
    return Stretch(best, max(1, min(_STRETCH, few, max(remaining) // (best + 1))))

  def after(self, draft_length: int, rounds: int, by_accepted: Sequence[int]) -> "Chooser":
    """What is known behind `rounds` rounds of one length, counted by accepted drafts."""
    if draft_length == 0:
      return dataclasses.replace(self, waited=self.waited + rounds)
    if self.waited >= self.wait:  # a try, which is judged by itself
      return Chooser(Seen().after(by_accepted), 0, min(2 * self.wait, _LONGEST_WAIT))
    return Chooser(self.seen.after(by_accepted), 0, max(self.wait // 2, _FIRST_WAIT))
