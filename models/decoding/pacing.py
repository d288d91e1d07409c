"""Rounds of whatever draft length pays best just then: `--draft_length=auto`.

One compiled program has the rounds of every draft length, over one state. Stretch after stretch it
looks at what was accepted and chooses the next one's length (`draft_length.py`, where the letters
are too); what a round costs is measured before anything is decoded. The choice depends on tokens
already emitted and on nothing yet to be drawn, so sampling keeps its distribution; but which of a
seed's texts comes out depends on the costs that were measured, and on texts before and beside it.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.axes import Array, Bool, Int
from models.decoding.draft_length import Chooser, RoundSeconds, Stretch
from models.decoding.loop import Round, advance_rounds, no_round, one_round, resume, resumed
from models.decoding.method import Method
from models.decoding.round import LoopState, active, wanted_tokens
from models.transformer import Parameters, Transformer

_REPEATS = 3
_ROWS = 32  # verified in one measurement, or nearly: many rounds where these are short


class Pace(NamedTuple):
  """What choosing goes on from.

  Attributes:
    chooser: what it knows.
    unseen: whether there were rounds since the last draft, which the selector has not seen.
    tallies: rounds of sequences by draft length, each by accepted drafts.
  """

  chooser: Chooser
  unseen: Bool[Array, ""]
  tallies: Int[Array, "N A"]

  @staticmethod
  def fresh(method: Method) -> "Pace":
    """Before the first round."""
    tallies = jnp.zeros((len(method.draft_lengths), method.longest + 1), jnp.int32)
    return Pace(Chooser.fresh(method.longest), jnp.array(False), tallies)

  def after(
    self, method: Method, stretch: Stretch, resuming: Bool[Array, ""], by_accepted: Int[Array, " A"]
  ) -> "Pace":
    """Behind a stretch of so many rounds, counted by accepted drafts."""
    return Pace(
      self.chooser.after(method.draft_lengths, stretch, by_accepted),
      (stretch.index == 0) & ~resuming,
      self.tallies.at[stretch.index].add(by_accepted),
    )


class _Carry(NamedTuple):
  """Of the rounds of one call: `done` of them so far, `last` one's drafts padded to the longest,
  `drafted` of which count."""

  state: LoopState
  last: Round
  drafted: Int[Array, ""]
  done: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("model", "method"), donate_argnames=("state", "pace"))
def advance_choosing(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  state: LoopState,
  pace: Pace,
  seconds: RoundSeconds,
  rounds: Array,
  watched: Bool[Array, " B"],
) -> tuple[LoopState, Pace, Round, Int[Array, ""]]:
  """As `loop.advance_rounds`, each stretch of rounds of a draft length that is chosen before it.

  Returns the state and the pace, which are donated, the last round with its drafts padded to the
  longest, and how many it drafted.
  """

  def going(carry: _Carry) -> Bool[Array, ""]:
    hungry = active(method, carry.state)
    return hungry.any() & ~(watched & ~hungry).any() & (carry.done < rounds)

  def run_stretch(carry: tuple[_Carry, Pace]) -> tuple[_Carry, Pace]:
    before, pace = carry
    stretch, resuming = _choose(method, before.state, pace, seconds)
    after = _resume(model, parameters, method, before, resuming)
    for index, length in enumerate(method.draft_lengths):
      until = jnp.where(stretch.index == index, before.done + stretch.rounds, 0)
      after = _rounds_of(model, parameters, method.of_length(length), after, until, going)
    ran = stretch._replace(rounds=after.done - before.done)
    by_accepted = (after.state.acceptances - before.state.acceptances).sum(axis=0)
    return after, pace.after(method, ran, resuming, by_accepted)

  nothing = no_round(state, method.longest)
  carry = (_Carry(state, nothing, jnp.int32(0), jnp.int32(0)), pace)
  carry, pace = jax.lax.while_loop(lambda carry: going(carry[0]), run_stretch, carry)
  return carry.state, pace, carry.last, carry.drafted


def _choose(
  method: Method, state: LoopState, pace: Pace, seconds: RoundSeconds
) -> tuple[Stretch, Bool[Array, ""]]:
  """The next stretch, and whether it is one round of `loop.resumed`, from which drafts go on."""
  hungry = active(method, state)
  context = jnp.sum(state.cache.lengths, where=hungry) / jnp.maximum(hungry.sum(), 1)
  remaining = jnp.where(hungry, wanted_tokens(method, state) - state.emitted, 0)
  stretch = pace.chooser.choose(method.draft_lengths, seconds.at(context), remaining)
  resuming = pace.unseen & (stretch.index > 0)
  one = Stretch(jnp.int32(0), jnp.int32(1), jnp.array(False), jnp.float32(1))
  stretch = Stretch(*(jnp.where(resuming, a, b) for a, b in zip(one, stretch, strict=True)))
  return stretch, resuming


def _rounds_of(model, parameters, method, carry: _Carry, until, going) -> _Carry:
  """Rounds of one draft length until so many are done: a loop of no round costs next to nothing,
  where a conditional would copy the cache."""

  def step(carry: _Carry) -> _Carry:
    state, last = one_round(model, parameters, method, carry.state)
    return _Carry(state, _padded(last, carry.last), jnp.int32(method.draft_length), carry.done + 1)

  more = lambda carry: (carry.done < until) & going(carry)
  return jax.lax.while_loop(more, step, carry)


def _resume(model, parameters, method, carry: _Carry, wanted) -> _Carry:
  """`loop.resumed`, once if it is wanted."""

  def step(_, carry: _Carry) -> _Carry:
    state, last = resumed(model, parameters, method, carry.state)
    return _Carry(state, _padded(last, carry.last), jnp.int32(0), carry.done + 1)

  return jax.lax.fori_loop(0, wanted.astype(jnp.int32), step, carry)


def _padded(last: Round, like: Round) -> Round:
  padding = like.drafts.shape[1] - last.drafts.shape[1]
  return last._replace(drafts=jnp.pad(last.drafts, ((0, 0), (0, padding))))


class Pacer:
  """Advances one batch by rounds; of several draft lengths if its method has them.

  What is learnt from one text serves the next: a queue's are taken to be alike.
  """

  def __init__(
    self,
    model: Transformer,
    parameters: Parameters,
    method: Method,
    seconds: RoundSeconds | None = None,
  ):
    """`seconds` of a round, if the method has several draft lengths."""
    if bool(method.draft_lengths) != (seconds is not None):
      raise ValueError("Seconds of a round are for a method of several draft lengths, and needed.")
    self.model, self.parameters, self.method, self.seconds = model, parameters, method, seconds
    self._pace = _committed(Pace.fresh(method)) if method.draft_lengths else None

  def advance(self, state: LoopState, rounds: int, watched: np.ndarray) -> tuple[LoopState, Round]:
    """See `loop.advance_rounds`; the state is donated."""
    before = (self.model, self.parameters, self.method, state)
    until = (jnp.int32(rounds), jnp.asarray(watched))
    if self._pace is None:
      return jax.block_until_ready(advance_rounds(*before, *until))
    state, self._pace, last, drafted = jax.block_until_ready(
      advance_choosing(*before, self._pace, self.seconds, *until)
    )
    last = jax.device_get(last)  # where cutting compiles nothing
    return state, last._replace(drafts=last.drafts[:, : int(drafted)])

  @property
  def tallies(self) -> dict[int, list[int]]:
    """Rounds of sequences by draft length, each by accepted drafts; kept where the length is
    chosen."""
    if self._pace is None:
      return {}
    rows = zip(self.method.draft_lengths, np.asarray(self._pace.tallies).tolist(), strict=True)
    return {length: row[: length + 1] for length, row in rows if any(row)}


def time_rounds(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  begin: Callable[[int], LoopState],
  contexts: tuple[int, int],
) -> RoundSeconds:
  """Compiles the rounds of every draft length, and times them: what whole rounds take, with the
  selection, its gather, g draft steps and the verification of g + 1 rows; of length 0, a step of
  autoregressive decoding. The least of three times each, the lengths taking turns.

  Args:
    begin: the state of a batch with so many tokens in its cache, whatever they are.
    contexts: two numbers of tokens, ascending.
  """
  found = []
  for context in contexts:
    timed = functools.partial(_timed, model, parameters, method, context)
    state, _ = timed(begin(context), 0, 0)  # compiles
    least = [float("inf")] * len(method.draft_lengths)
    for _ in range(_REPEATS):
      for index, length in enumerate(method.draft_lengths):
        state, taken = timed(state, index, max(4, _ROWS // (length + 1)))
        least[index] = min(least[index], taken)
    del state
    found.append(least)
  return RoundSeconds(*(jnp.array(x, jnp.float32) for x in (contexts, *found)))


def _timed(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  context: int,
  state: LoopState,
  index: int,
  rounds: int,
) -> tuple[LoopState, float]:
  """Seconds of a round of one draft length, from `context` tokens on; the state is donated."""
  batch = len(state.ended)
  lengths = jnp.full(batch, context, jnp.int32)
  state = _anew(state._replace(cache=state.cache.with_lengths(lengths)))
  # The selector is to know of this very context, and not of rounds that were rolled back.
  state, _ = jax.block_until_ready(resume(model, parameters, method, state))
  state = _anew(state)  # that round may have ended a text
  free = jnp.ones(len(method.draft_lengths)).at[index].set(1e-6)  # so it is what pays best
  seconds = RoundSeconds(jnp.array([0.0, 1.0]), free, free)
  pace, unwatched = _committed(Pace.fresh(method)), jnp.zeros(batch, bool)
  jax.block_until_ready(seconds)
  clock = time.perf_counter()
  state, *_ = jax.block_until_ready(
    advance_choosing(model, parameters, method, state, pace, seconds, jnp.int32(rounds), unwatched)
  )
  taken = time.perf_counter() - clock
  done = int(np.asarray(state.acceptances).sum(axis=1).max())
  return state, taken / max(done, 1)


def _anew(state: LoopState) -> LoopState:
  """With nothing emitted yet."""
  batch = len(state.ended)
  return _committed(
    state._replace(
      emitted=jnp.zeros(batch, jnp.int32),
      ended=jnp.zeros(batch, bool),
      acceptances=jnp.zeros_like(state.acceptances),
    )
  )


def _committed(arrays: Any) -> Any:
  """On their device, as programs return arrays: so that none is compiled twice."""
  return jax.block_until_ready(jax.device_put(arrays, jax.devices()[0]))
