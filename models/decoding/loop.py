"""The decoding loop: rounds of select, draft, verify, accept, all inside one compiled program.

Autoregressive decoding is this loop with a draft length of 0: each round verifies one row. Both
run the same code over the same cache, so their difference in speed is the method's alone.

    x0: the last token of the text; its keys and values are not yet in the cache
    round: draft x1..xg, verify rows x0..xg, a drafts stand, the cache grows by a + 1,
           a + 1 tokens are emitted, the last of which is the next x0
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Bool, Int, Tokens
from models.decoding import draft as drafting
from models.decoding.accept import Acceptance, accept_greedy, accept_sampled, sample_next
from models.decoding.draft import Drafts, draft, draft_distribution, no_drafts
from models.decoding.forward import last_column
from models.decoding.sampling import Greedy, Sampler, SequenceKeys, fold
from models.decoding.selectors.base import (
  AnySelector,
  InLayerSelector,
  Observation,
  Selection,
  Selector,
)
from models.decoding.verify import look_back, verify, verify_row_by_row
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer


@dataclasses.dataclass(frozen=True)
class Method:
  """How to decode: everything a compiled program depends on beside the model and the shapes.

  Attributes:
    selector: what drafts attend to; None decodes autoregressively.
    draft_length: tokens drafted per round; 0 without a selector.
    end_token: ends a sequence and is its last token; None: nothing does.
    bit_exact: verify row by row, with the bits of autoregressive decoding. These depend on how many
      sequences there are, so it is one at a time (`together`).
  """

  selector: AnySelector | None = None
  draft_length: int = 0
  sampler: Sampler = Greedy()  # noqa: RUF009 - a frozen dataclass
  end_token: int | None = None
  bit_exact: bool = False

  def __post_init__(self):
    if self.selector is not None and self.draft_length < 1:
      raise ValueError(
        f"--draft_length={self.draft_length} drafts nothing: give at least 1, or decode with"
        " --method=autoregressive."
      )
    if self.selector is None and self.draft_length:
      raise ValueError("A draft needs a selector: set both or neither.")

  def spare_slots(self, wanted: int) -> int:
    """Slots the cache needs behind the longest text that it is to hold, `wanted` tokens decoded.

    A tail is copied from where it starts: at a last page's begin and, unless the selection is kept
    for the whole text, at most at the last token.
    """
    if self.selector is None:
      return 1
    kept = self.refresh == 0
    since = 0 if kept else drafting.accepted_since(self.draft_length, self.refresh, wanted)
    return since + 2 * self.draft_length + 1 + self.selector.page_size

  def together(self, sequences: int) -> int:
    """How many of these sequences are to be decoded as one batch."""
    return 1 if self.bit_exact else sequences

  @property
  def prompt_rows(self) -> int:
    """How many of a prompt's last tokens `start` wants."""
    return 1 if self.selector is None else self.selector.prompt_rows

  @property
  def refresh(self) -> int:
    """Rounds that a selection holds for; 0: all of them."""
    return self.selector.refresh if isinstance(self.selector, Selector) else 1

  @property
  def observer(self) -> AnySelector | None:
    """Whoever wants to know what verifications see."""
    return self.selector if self.refresh else None


class Selecting(NamedTuple):
  """What a selector knows, and what it has selected.

  Attributes:
    known: the selector's own state.
    held: the selection in use, where one holds for more than a round.
    rounds: how many each sequence has had.
  """

  known: Any
  held: Selection | None
  rounds: Int[Array, " B"]


class LoopState(NamedTuple):
  """All that a round reads and writes.

  `output` holds the emitted tokens of each sequence, and room for one whole round behind the last
  wanted one, so that a round always writes all its rows; `emitted` says how many count.
  `acceptances[b, a]` counts the rounds of a sequence in which a drafts stood, those of its last
  round included that were no longer wanted.
  """

  cache: KVCache
  token: Int[Array, " B"]
  output: Tokens
  emitted: Int[Array, " B"]
  ended: Bool[Array, " B"]
  keys: SequenceKeys
  selecting: Selecting | None
  acceptances: Int[Array, "B A"]


def _wanted(method: Method, state: LoopState) -> int:
  """Tokens wanted of each sequence."""
  return state.output.shape[1] - method.draft_length - 1


def _active(method: Method, state: LoopState) -> Bool[Array, " B"]:
  return ~state.ended & (state.emitted < _wanted(method, state))


def _emit(method: Method, state: LoopState, yielded: Acceptance) -> LoopState:
  """Writes a verification's tokens, as many as count, and sets lengths."""
  most = _wanted(method, state) - state.emitted
  counts = jnp.minimum(yielded.accepted + 1, most)
  ended = state.ended
  if method.end_token is not None:
    rows = jnp.arange(yielded.tokens.shape[1])[None, :]
    ends = (yielded.tokens == method.end_token) & (rows < counts[:, None])
    counts = jnp.where(ends.any(axis=1), ends.argmax(axis=1) + 1, counts)
    ended = ended | ends.any(axis=1)
  counts = jnp.where(_active(method, state), counts, 0)
  write = jax.vmap(lambda out, new, at: jax.lax.dynamic_update_slice(out, new, (at,)))
  return state._replace(
    cache=state.cache.with_lengths(state.cache.lengths + counts),
    token=jnp.where(counts > 0, last_column(yielded.tokens, counts), state.token),
    output=write(state.output, yielded.tokens, state.emitted),
    emitted=state.emitted + counts,
    ended=ended,
  )


def verify_and_emit(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  state: LoopState,
  drafts: Drafts,
  keys: SequenceKeys,
  observer: AnySelector | None,
) -> tuple[LoopState, Observation]:
  """Verifies x0 and the drafts; returns the state after it and what `observer` may observe."""
  check = verify_row_by_row if method.bit_exact else verify
  tokens = jnp.concatenate([state.token[:, None], drafts.tokens], axis=1)
  seen = check(model, parameters, drafts.cache, tokens, observer)
  keys = fold(keys, drafts.tokens.shape[1])
  yielded = _accept(model, parameters, method.sampler, drafts, seen.logits, keys)
  observation = Observation(
    seen.mass, state.cache.lengths, tokens.shape[1], yielded.accepted, seen.cache
  )
  return _emit(method, state._replace(cache=seen.cache), yielded), observation


def _accept(model, parameters, sampler, drafts, logits, keys) -> Acceptance:
  if sampler.greedy:
    return accept_greedy(drafts.tokens, logits)
  p = sampler.probabilities(logits)
  if not drafts.tokens.shape[1]:
    return sample_next(keys, p[:, 0])
  q_of = lambda hidden: draft_distribution(model, parameters["resident"], sampler, hidden)
  return accept_sampled(keys, drafts.tokens, drafts.hidden, q_of, p)


def select_for_round(model: Transformer, method: Method, state: LoopState) -> Selection | None:
  """What is selected for this round; None where each draft selects for itself."""
  selector, selecting = method.selector, state.selecting
  if isinstance(selector, InLayerSelector):
    return None
  assert isinstance(selector, Selector) and selecting is not None
  layers = model.config.layers - selector.dense_layers
  fresh = lambda: selector.select(selecting.known, state.cache.lengths, layers, state.cache.slots)
  if selecting.held is None:
    return fresh()
  if method.refresh == 0:
    return selecting.held
  due = selecting.rounds % method.refresh == 0  # of each sequence: they may have begun at any time
  held = selecting.held

  def renewed() -> Selection:
    new = fresh()
    return Selection(
      jnp.where(due[None, :, None, None], new.pages, held.pages),
      jnp.where(due[None, :], new.counts, held.counts),
      jnp.where(due, new.tail, held.tail),
    )

  return jax.lax.cond(due.any(), renewed, lambda: held)


def selected_sources(
  method: Method, state: LoopState, selection: Selection
) -> list[drafting.Source]:
  """What the layers' drafts attend to: copies of the selection and of the verified tail."""
  selector = method.selector
  assert selector is not None
  wanted = _wanted(method, state)
  room = drafting.tail_slots(method.draft_length, selector.page_size, method.refresh, wanted)
  return drafting.sources_of_selection(
    state.cache, selection, selector.dense_layers, selector.page_size, room
  )


def draft_round(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  state: LoopState,
  selection: Selection | None,
  keys: SequenceKeys,
) -> Drafts:
  """Drafts of one round: gathers what is selected, and takes the steps."""
  selector, gamma = method.selector, method.draft_length
  if isinstance(selector, InLayerSelector):
    assert state.selecting is not None
    sources = drafting.sources_by_query(state.cache, selector, state.selecting.known, gamma)
  else:
    assert selection is not None
    sources = selected_sources(method, state, selection)
  return draft(model, parameters, method.sampler, state.cache, sources, state.token, keys, gamma)


def observe_round(method: Method, state: LoopState, observation: Observation) -> LoopState:
  """The selector's state after a round."""
  if state.selecting is None:
    return state
  known = state.selecting.known
  if method.observer is not None:
    known = method.observer.observe(known, observation)
  rounds = state.selecting.rounds + 1
  return state._replace(selecting=state.selecting._replace(known=known, rounds=rounds))


class Round(NamedTuple):
  """What one round drafted, how many of its drafts stood, and how much was emitted before it."""

  drafts: Int[Array, "B G"]
  accepted: Int[Array, " B"]
  before: Int[Array, " B"]


def _round(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState
) -> tuple[LoopState, Round]:
  """One round of every sequence; those that have all they want stay as they are."""
  # Lengths grow with every round: no draw is used twice.
  keys = fold(state.keys, state.cache.lengths)
  active, drafts, before = _active(method, state), no_drafts(state.cache), state.emitted
  if state.selecting is not None:
    selection = select_for_round(model, method, state)
    drafts = draft_round(model, parameters, method, state, selection, keys)
    if state.selecting.held is not None:
      state = state._replace(selecting=state.selecting._replace(held=selection))
  state, observation = verify_and_emit(
    model, parameters, method, state, drafts, keys, method.observer
  )
  state = observe_round(method, state, observation)
  stood = jnp.where(active, observation.accepted, state.acceptances.shape[1])
  counted = state.acceptances.at[jnp.arange(len(stood)), stood].add(1, mode="drop")
  return state._replace(acceptances=counted), Round(drafts.tokens, observation.accepted, before)


def _first_selecting(model, parameters, method, state, ends, observation) -> Selecting:
  """What the selector knows from the prompt's last rows."""
  selector = method.selector
  if method.prompt_rows > 1:
    seen = observation.lengths + 1
    mass = look_back(model, parameters, observation.cache, ends, seen, selector)
    observation = observation._replace(mass=mass)
  selecting = Selecting(selector.init(observation), None, jnp.zeros(len(ends), jnp.int32))
  if method.refresh == 1:
    return selecting
  held = select_for_round(model, method, state._replace(selecting=selecting))
  return selecting._replace(held=held, known=selecting.known if method.refresh else None)


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
    output=jnp.zeros((batch, wanted + method.draft_length + 1), jnp.int32),
    emitted=jnp.zeros(batch, jnp.int32),
    ended=jnp.zeros(batch, bool),
    keys=keys,
    selecting=None,
    acceptances=jnp.zeros((batch, method.draft_length + 1), jnp.int32),
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
  hungry = lambda state: (_active(method, state) & (state.emitted < until)).any()
  step = lambda state: _round(model, parameters, method, state)[0]
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
    active = _active(method, state)
    return active.any() & ~(watched & ~active).any() & (done < rounds)

  def step(carry):
    state, _, done = carry
    return *_round(model, parameters, method, state), done + 1

  none = jnp.zeros_like(state.emitted)
  nothing = Round(jnp.zeros((len(none), method.draft_length), jnp.int32), none, state.emitted)
  state, last, _ = jax.lax.while_loop(going, step, (state, nothing, jnp.int32(0)))
  return state, last
