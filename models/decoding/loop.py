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
from models.decoding.accept import Acceptance, accept
from models.decoding.draft import draft, gather, tail_slots
from models.decoding.forward import last_column
from models.decoding.sampling import Greedy, Sampler, SequenceKeys, fold
from models.decoding.selectors.base import Observation, Selector
from models.decoding.verify import verify, verify_row_by_row
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer


@dataclasses.dataclass(frozen=True)
class Method:
  """How to decode: everything a compiled program depends on beside the model and the shapes.

  Attributes:
    selector: what drafts attend to; None decodes autoregressively.
    draft_length: tokens drafted per round; 0 without a selector.
    end_token: ends a sequence and is its last token; None: nothing does.
    bit_exact: verify row by row, with the bits of autoregressive decoding.
  """

  selector: Selector | None = None
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

  @property
  def spare_slots(self) -> int:
    """Slots the cache needs behind the longest text that it is to hold."""
    if self.selector is None:
      return 1
    return self.draft_length + 1 + tail_slots(self.draft_length, self.selector.page_size)


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
  selection: Any
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


def _verify_and_emit(model, parameters, method, state, drafts, q, keys):
  """Verifies x0 and the drafts; returns the state after it and what the selector may observe."""
  check = verify_row_by_row if method.bit_exact else verify
  tokens = jnp.concatenate([state.token[:, None], drafts], axis=1)
  seen = check(model, parameters, state.cache, tokens, method.selector)
  yielded = accept(method.sampler, fold(keys, drafts.shape[1]), drafts, q, seen.logits)
  observation = Observation(seen.mass, state.cache.lengths, tokens.shape[1], yielded.accepted)
  return _emit(method, state._replace(cache=seen.cache), yielded), observation


def _no_drafts(model, method, batch):
  q = None if method.sampler.greedy else jnp.zeros((batch, 0, model.config.vocabulary))
  return jnp.zeros((batch, 0), jnp.int32), q


def _round(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState
) -> LoopState:
  """One round of every sequence; those that have all they want stay as they are."""
  cache = state.cache
  keys = fold(state.keys, cache.lengths)  # lengths grow with every round: no draw is used twice
  drafts, q = _no_drafts(model, method, state.token.shape[0])
  if method.selector is not None:
    selector, gamma = method.selector, method.draft_length
    selection = selector.select(state.selection, cache.lengths, model.config.layers, cache.slots)
    room = tail_slots(gamma, selector.page_size)
    scratch = gather(cache, selection, selector.page_size, room)
    drafts, q = draft(
      model, parameters, method.sampler, scratch, state.token, cache.lengths, keys, gamma
    )
  active = _active(method, state)
  state, observation = _verify_and_emit(model, parameters, method, state, drafts, q, keys)
  if method.selector is not None:
    state = state._replace(selection=method.selector.observe(state.selection, observation))
  stood = jnp.where(active, observation.accepted, state.acceptances.shape[1])
  return state._replace(
    acceptances=state.acceptances.at[jnp.arange(len(stood)), stood].add(1, mode="drop")
  )


@functools.partial(jax.jit, static_argnames=("model", "method", "wanted"), donate_argnames="cache")
def start(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  cache: KVCache,
  last_tokens: Int[Array, " B"],
  keys: SequenceKeys,
  *,
  wanted: int,
) -> LoopState:
  """The state before the first round.

  A selector has seen nothing yet, so a speculative method opens with one autoregressive step: the
  row of the prompt's last token, which SpecAttn too starts from.

  Args:
    cache: all but each prompt's last token, as `prefill` leaves it; donated.
    last_tokens: each prompt's last token.
    keys: one random key per sequence.
    wanted: tokens to decode of each sequence.
  """
  batch = last_tokens.shape[0]
  state = LoopState(
    cache=cache,
    token=last_tokens,
    output=jnp.zeros((batch, wanted + method.draft_length + 1), jnp.int32),
    emitted=jnp.zeros(batch, jnp.int32),
    ended=jnp.zeros(batch, bool),
    keys=keys,
    selection=None,
    acceptances=jnp.zeros((batch, method.draft_length + 1), jnp.int32),
  )
  if method.selector is None:
    return state
  folded = fold(keys, cache.lengths)
  drafts, q = _no_drafts(model, method, batch)
  state, observation = _verify_and_emit(model, parameters, method, state, drafts, q, folded)
  return state._replace(selection=method.selector.init(observation))


@functools.partial(jax.jit, static_argnames=("model", "method"), donate_argnames="state")
def advance(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState, until: Array
) -> LoopState:
  """Rounds until every sequence has emitted `until` tokens, all it wants, or its end token.

  One compiled program whatever `until` is: large for a whole run without a trip to the host, a few
  tokens at a time to stream. `state` is donated; the cache is updated in place.
  """
  hungry = lambda state: (_active(method, state) & (state.emitted < until)).any()
  return jax.lax.while_loop(hungry, lambda state: _round(model, parameters, method, state), state)
