"""Rounds of whatever draft length pays best just then: `--draft_length=auto`.

Each draft length is a compiled program over the same state. Between two stretches of rounds the
host looks at what was accepted and chooses the next stretch's length (`draft_length.py`); what a
round costs is measured before anything is decoded. The choice depends on tokens already emitted and
on nothing yet to be drawn, so sampling keeps its distribution; but which of a seed's texts comes
out depends on the costs that were measured.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.draft_length import Chooser, RoundSeconds, Stretch
from models.decoding.loop import Round, advance_rounds, resume
from models.decoding.method import Method
from models.decoding.round import LoopState
from models.transformer import Parameters, Transformer

_REPEATS = 2
_ROWS = 8  # verified in one measurement: more than a round where rounds are short


class _Look(NamedTuple):
  """What the host wants to know of a batch."""

  lengths: np.ndarray
  emitted: np.ndarray
  ended: np.ndarray
  acceptances: np.ndarray


def _look(state: LoopState) -> _Look:
  seen = (state.cache.lengths, state.emitted, state.ended, state.acceptances)
  return _Look(*jax.device_get(seen))


class Pacer:
  """Advances one batch by rounds; of several draft lengths if its method has them.

  Attributes:
    tallies: rounds of sequences by draft length, each by accepted drafts; kept where the length is
      chosen.
  """

  def __init__(
    self,
    model: Transformer,
    parameters: Parameters,
    method: Method,
    wanted: int,
    seconds: RoundSeconds | None = None,
  ):
    """`wanted` tokens of each sequence; `seconds`, if the method has several draft lengths."""
    if bool(method.draft_lengths) != (seconds is not None):
      raise ValueError("Seconds of a round are for a method of several draft lengths, and needed.")
    self.model, self.parameters, self.method = model, parameters, method
    self.wanted, self.seconds = wanted, seconds
    self.tallies: dict[int, list[int]] = {}
    self._chooser = Chooser()
    self._unseen = False  # whether there were rounds that the selector has not seen

  def advance(self, state: LoopState, rounds: int, watched: np.ndarray) -> tuple[LoopState, Round]:
    """See `loop.advance_rounds`; the state is donated."""
    if self.seconds is None or rounds < 1:
      return self._run(state, Stretch(self.method.draft_length, rounds), watched)
    look = _look(state)
    while True:
      stretch = self._choose(look, rounds)
      if stretch.draft_length and self._unseen:
        stretch, self._unseen = Stretch(0, 1), False
        state, last = resume(self.model, self.parameters, self.method, state)
      else:
        self._unseen = stretch.draft_length == 0
        state, last = self._run(state, stretch, watched)
      before, look = look, _look(state)
      rounds -= self._note(stretch.draft_length, look.acceptances - before.acceptances)
      over = look.ended | (look.emitted >= self.wanted)
      if over.all() or (watched & over).any() or rounds < 1:
        return state, last

  def _choose(self, look: _Look, rounds: int) -> Stretch:
    assert self.seconds is not None
    remaining = np.where(look.ended, 0, self.wanted - look.emitted)
    active = remaining > 0
    if not active.any():
      return Stretch(0, 0)
    seconds = self.seconds.at(float(look.lengths[active].mean()))
    chosen = self._chooser.choose(seconds, remaining[active].tolist())
    return chosen._replace(rounds=min(chosen.rounds, rounds))

  def _run(
    self, state: LoopState, stretch: Stretch, watched: np.ndarray
  ) -> tuple[LoopState, Round]:
    method = self.method.of_length(stretch.draft_length)
    return jax.block_until_ready(
      advance_rounds(
        *(self.model, self.parameters, method, state),
        *(jnp.int32(stretch.rounds), jnp.asarray(watched)),
      )
    )

  def _note(self, draft_length: int, accepted: np.ndarray) -> int:
    """Remembers rounds [B, A] of one draft length; returns how many the batch had."""
    rounds = int(accepted.sum(axis=1).max())
    if not rounds:
      return 0
    counts = accepted.sum(axis=0)[: draft_length + 1].tolist()
    tally = self.tallies.setdefault(draft_length, [0] * len(counts))
    self.tallies[draft_length] = [a + b for a, b in zip(tally, counts, strict=True)]
    self._chooser = self._chooser.after(draft_length, rounds, counts)
    return rounds


def time_rounds(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  begin: Callable[[int], LoopState],
  contexts: tuple[int, int],
) -> RoundSeconds:
  """Compiles the rounds of every draft length, and times them: what whole rounds take, with the
  selection, its gather, g draft steps and the verification of g + 1 rows; of length 0, a step of
  autoregressive decoding. The least of two times each, the lengths taking turns.

  Args:
    begin: the state of a batch with so many tokens in its cache, whatever they are.
    contexts: two numbers of tokens, ascending.
  """
  found: dict[int, list[float]] = {g: [] for g in method.draft_lengths}
  for context in contexts:
    state = begin(context)
    for g in method.draft_lengths:  # compiles
      state, _ = _timed(model, parameters, method.of_length(g), state, 0, context)
    least = dict.fromkeys(found, float("inf"))
    for _ in range(_REPEATS):
      for g in method.draft_lengths:
        rounds = max(1, _ROWS // (g + 1))
        state, taken = _timed(model, parameters, method.of_length(g), state, rounds, context)
        least[g] = min(least[g], taken)
    del state
    for g, taken in least.items():
      found[g].append(taken)
  return RoundSeconds(contexts, {g: (low, high) for g, (low, high) in found.items()})


def _timed(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  state: LoopState,
  rounds: int,
  context: int,
) -> tuple[LoopState, float]:
  """Seconds a round, from `context` tokens on; the state is donated."""
  batch = len(state.ended)
  lengths = jnp.full(batch, context, jnp.int32)
  state = _anew(state._replace(cache=state.cache.with_lengths(lengths)))
  # The selector is to know of this very context, and not of rounds that were rolled back.
  state, _ = jax.block_until_ready(
    resume(model, parameters, method.of_length(method.longest), state)
  )
  state = _anew(state)  # that round may have ended a text
  clock = time.perf_counter()
  unwatched = jnp.zeros(batch, bool)
  state, _ = jax.block_until_ready(
    advance_rounds(model, parameters, method, state, jnp.int32(rounds), unwatched)
  )
  seconds = time.perf_counter() - clock
  done = int(np.asarray(state.acceptances).sum(axis=1).max())
  return state, seconds / max(done, 1)


def _anew(state: LoopState) -> LoopState:
  """With nothing emitted yet, on its device: as programs return it, so that none is compiled again
  for the texts."""
  batch = len(state.ended)
  state = state._replace(
    emitted=jnp.zeros(batch, jnp.int32),
    ended=jnp.zeros(batch, bool),
    acceptances=jnp.zeros_like(state.acceptances),
  )
  return jax.block_until_ready(jax.device_put(state, jax.devices()[0]))
