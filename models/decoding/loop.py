"""The decoding loop: rounds of select, draft, verify, accept, all inside one compiled program.

Autoregressive decoding is this loop with a draft length of 0: each round verifies one row. Both
run the same code over the same cache, so their difference in speed is the method's alone.

    x0: the last token of the text; its keys and values are not yet in the cache
    round: draft x1..xg, verify rows x0..xg, a drafts stand, the cache grows by a + 1,
           a + 1 tokens are emitted, the last of which is the next x0
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Bool, Int, Tokens
from models.decoding.draft import no_drafts
from models.decoding.method import Method
from models.decoding.round import (
  LoopState,
  Selecting,
  active,
  count_round,
  draft_round,
  hold,
  hold_first,
  keep_selection,
  observe_round,
  selected_for_round,
  verify_and_emit,
)
from models.decoding.sampling import SequenceKeys, fold
from models.decoding.verify import look_back
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer


class Round(NamedTuple):
  """What one round drafted, how many of its drafts stood, and how much was emitted before it."""

  drafts: Int[Array, "B G"]
  accepted: Int[Array, " B"]
  before: Int[Array, " B"]


def no_round(state: LoopState, draft_length: int) -> Round:
  """What the last round drafted where there was none yet."""
  none = jnp.zeros_like(state.emitted)
  return Round(jnp.zeros((len(none), draft_length), jnp.int32), none, state.emitted)


def one_round(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState
) -> tuple[LoopState, Round]:
  """One round of every sequence; those that have all they want stay as they are."""
  # Lengths grow with every round: no draw is used twice.
  begin, keys = state.cache.lengths, fold(state.keys, state.cache.lengths)
  old, drafts, selection = state, no_drafts(state.cache), None
  if method.draft_length:
    selection, scratch = selected_for_round(model, method, state)
    drafts = draft_round(model, parameters, method, state, selection, scratch, keys)
  observer = method.observer if method.draft_length else None
  state, observation = verify_and_emit(model, parameters, method, state, drafts, keys, observer)
  state = observe_round(method, state, observation)
  if method.refresh != 1 and selection is not None:
    state = keep_selection(method, state, selection, drafts, begin)
  state = count_round(method, old, state, observation.accepted)
  return state, Round(drafts.tokens, observation.accepted, old.emitted)


def resumed(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState
) -> tuple[LoopState, Round]:
  """An autoregressive round that the selector observes: from it, drafts go on.

  To be called between rounds of draft length 0, which no selector sees, and others. A selector that
  selects once, for the whole text, keeps its selection; others begin anew, from this row.
  """
  keys, drafts = fold(state.keys, state.cache.lengths), no_drafts(state.cache)
  old, selecting = state, state.selecting
  assert method.selector is not None and selecting is not None
  state, observation = verify_and_emit(
    model, parameters, method, state, drafts, keys, method.observer
  )
  if method.refresh == 0:
    assert selecting.held is not None
    selecting = hold(method, state, selecting, selecting.held.selection)
  else:
    selecting = Selecting(method.selector.init(observation), None, jnp.zeros_like(selecting.rounds))
    selecting = hold_first(model, method, state, selecting)
  state = count_round(method, old, state._replace(selecting=selecting), observation.accepted)
  return state, Round(drafts.tokens, observation.accepted, old.emitted)


resume = jax.jit(resumed, static_argnames=("model", "method"), donate_argnames="state")


def _first_selecting(model, parameters, method, state, ends, observation) -> Selecting:
  """What the selector knows from the prompt's last rows."""
  selector = method.selector
  if method.prompt_rows > 1:
    seen = observation.lengths + 1
    mass = look_back(model, parameters, observation.cache, ends, seen, selector)
    observation = observation._replace(mass=mass)
  selecting = Selecting(selector.init(observation), None, jnp.zeros(len(ends), jnp.int32))
  return hold_first(model, method, state, selecting)


@functools.partial(jax.jit, static_argnames=("model", "method", "wanted"), donate_argnames="cache")
def start(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  cache: KVCache,
  ends: Tokens,
  keys: SequenceKeys,
  *,
  wanted: int,
) -> LoopState:
  """The state before the first round.

  A selector has seen nothing yet, so a speculative method opens with one autoregressive step: the
  row of the prompt's last token, which SpecAttn too starts from.

  Args:
    cache: all but each prompt's last token, as `prefill` leaves it; donated.
    ends: each prompt's last `method.prompt_rows` tokens, against the right.
    keys: one random key per sequence.
    wanted: tokens to decode of each sequence.
  """
  batch = ends.shape[0]
  state = LoopState(
    cache=cache,
    token=ends[:, -1],
    output=jnp.zeros((batch, wanted + method.longest + 1), jnp.int32),
    emitted=jnp.zeros(batch, jnp.int32),
    ended=jnp.zeros(batch, bool),
    keys=keys,
    selecting=None,
    acceptances=jnp.zeros((batch, method.longest + 1), jnp.int32),
  )
  if method.selector is None:
    return state
  observer = method.selector if method.prompt_rows == 1 else None
  folded = fold(keys, cache.lengths)
  state, observation = verify_and_emit(
    model, parameters, method, state, no_drafts(cache), folded, observer
  )
  selecting = _first_selecting(model, parameters, method, state, ends, observation)
  return state._replace(selecting=selecting)


@functools.partial(jax.jit, static_argnames=("model", "method"), donate_argnames="state")
def advance(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState, until: Array
) -> LoopState:
  """Rounds until every sequence has emitted `until` tokens, all it wants, or its end token.

  One compiled program whatever `until` is: large for a whole run without a trip to the host, a few
  tokens at a time to stream. `state` is donated; the cache is updated in place.
  """
  hungry = lambda state: (active(method, state) & (state.emitted < until)).any()
  step = lambda state: one_round(model, parameters, method, state)[0]
  return jax.lax.while_loop(hungry, step, state)


@functools.partial(jax.jit, static_argnames=("model", "method"), donate_argnames="state")
def advance_rounds(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  state: LoopState,
  rounds: Array,
  watched: Bool[Array, " B"],
) -> tuple[LoopState, Round]:
  """`rounds` rounds, or fewer where a watched sequence ends, or all have.

  Returns the state, which is donated, and what the last round drafted.
  """

  def going(carry):
    state, _, done = carry
    hungry = active(method, state)
    return hungry.any() & ~(watched & ~hungry).any() & (done < rounds)

  def step(carry):
    state, _, done = carry
    return *one_round(model, parameters, method, state), done + 1

  nothing = no_round(state, method.draft_length)
  state, last, _ = jax.lax.while_loop(going, step, (state, nothing, jnp.int32(0)))
  return state, last
