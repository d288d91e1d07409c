"""The state of the decoding loop, and the parts of a round, each a function of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.axes import Array, Bool, Int, Lengths, Tokens
from models.decoding import draft as drafting
from models.decoding.accept import Acceptance, accept_greedy, accept_sampled, sample_next
from models.decoding.draft import Drafts, Scratch, draft, draft_distribution
from models.decoding.forward import last_column
from models.decoding.method import Method
from models.decoding.sampling import SequenceKeys, fold
from models.decoding.selectors.base import (
  AnySelector,
  InLayerSelector,
  Observation,
  Selection,
  Selector,
)
from models.decoding.verify import verify, verify_row_by_row
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer


class Held(NamedTuple):
  """A selection that holds for more than a round, and its entries with the verified tail."""

  selection: Selection
  scratch: Scratch


class Selecting(NamedTuple):
  """What a selector knows, and what it has selected.

  Attributes:
    known: the selector's own state.
    held: what is in use, where a selection holds for more than a round.
    rounds: how many each sequence has had since `known` began.
  """

  known: Any
  held: Held | None
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


def wanted_tokens(method: Method, state: LoopState) -> int:
  """Tokens wanted of each sequence."""
  return state.output.shape[1] - method.longest - 1


def active(method: Method, state: LoopState) -> Bool[Array, " B"]:
  return ~state.ended & (state.emitted < wanted_tokens(method, state))


def _emit(method: Method, state: LoopState, yielded: Acceptance) -> LoopState:
  """Writes a verification's tokens, as many as count, and sets lengths."""
  most = wanted_tokens(method, state) - state.emitted
  counts = jnp.minimum(yielded.accepted + 1, most)
  ended = state.ended
  if method.end_token is not None:
    rows = jnp.arange(yielded.tokens.shape[1])[None, :]
    ends = (yielded.tokens == method.end_token) & (rows < counts[:, None])
    counts = jnp.where(ends.any(axis=1), ends.argmax(axis=1) + 1, counts)
    ended = ended | ends.any(axis=1)
  counts = jnp.where(active(method, state), counts, 0)
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


def select_anew(model: Transformer, method: Method, state: LoopState) -> Selection | None:
  """What a selector now selects for a round; None where each draft selects for itself."""
  selector, selecting = method.selector, state.selecting
  if isinstance(selector, InLayerSelector):
    return None
  assert isinstance(selector, Selector) and selecting is not None
  layers = model.config.layers - selector.dense_layers
  return selector.select(selecting.known, state.cache.lengths, layers, state.cache.slots)


def gather_anew(method: Method, state: LoopState, selection: Selection | None) -> Scratch | None:
  """Copies of what is selected and of the verified tail; None where each draft selects."""
  if selection is None:
    return None
  selector = method.selector
  assert selector is not None
  wanted = wanted_tokens(method, state)
  room = drafting.tail_slots(method.longest, selector.page_size, method.refresh, wanted)
  return drafting.gather(state.cache, selection, selector.dense_layers, selector.page_size, room)


def selected_for_round(
  model: Transformer, method: Method, state: LoopState
) -> tuple[Selection | None, Scratch | None]:
  """The selection and its scratch: made anew, or kept where they hold for more rounds."""
  assert state.selecting is not None
  held = state.selecting.held
  if held is None:
    selection = select_anew(model, method, state)
    return selection, gather_anew(method, state, selection)
  if method.refresh == 0:
    return held
  rounds = state.selecting.rounds  # of each sequence: they may have begun at any time
  due = (rounds > 0) & (rounds % method.refresh == 0)

  def renewed(_: Any, held: Held) -> Held:
    new, old = select_anew(model, method, state), held.selection
    assert new is not None
    selection = Selection(
      jnp.where(due[None, :, None, None], new.pages, old.pages),
      jnp.where(due[None, :], new.counts, old.counts),
      jnp.where(due, new.tail, old.tail),
    )
    scratch = gather_anew(method, state, selection)
    assert scratch is not None
    return Held(selection, scratch)

  # Not a conditional, which copies what it leaves as it is: a loop of one step or none does not.
  return jax.lax.fori_loop(0, due.any().astype(jnp.int32), renewed, held)


def draft_round(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  state: LoopState,
  selection: Selection | None,
  scratch: Scratch | None,
  keys: SequenceKeys,
) -> Drafts:
  """Drafts of one round, over the scratch of what is selected or with a selector in the layers."""
  selector, gamma = method.selector, method.draft_length
  if isinstance(selector, InLayerSelector):
    assert state.selecting is not None
    sources = drafting.sources_by_query(state.cache, selector, state.selecting.known, gamma)
  else:
    assert selector is not None and selection is not None and scratch is not None
    sources = drafting.sources_of_selection(
      state.cache, selection, scratch, selector.dense_layers, selector.page_size
    )
  return draft(model, parameters, method.sampler, state.cache, sources, state.token, keys, gamma)


def keep_selection(
  method: Method, state: LoopState, selection: Selection, drafts: Drafts, begin: Lengths
) -> LoopState:
  """Holds on to what was selected, with the rows verified from `begin` on in place of drafts."""
  selector, selecting = method.selector, state.selecting
  assert selector is not None and selecting is not None
  scratch = drafting.take_verified(
    *(drafts.scratch, selection, state.cache, begin, method.draft_length + 1),
    *(selector.dense_layers, selector.page_size),
  )
  return state._replace(selecting=selecting._replace(held=Held(selection, scratch)))


def observe_round(method: Method, state: LoopState, observation: Observation) -> LoopState:
  """The selector's state after a round that drafted."""
  if state.selecting is None or not method.draft_length:
    return state
  known = state.selecting.known
  if method.observer is not None:
    known = method.observer.observe(known, observation)
  rounds = state.selecting.rounds + 1
  return state._replace(selecting=state.selecting._replace(known=known, rounds=rounds))


def hold_first(model, method, state, selecting) -> Selecting:
  """With a first selection, where one holds for more than a round."""
  if method.refresh == 1:
    return selecting
  selection = select_anew(model, method, state._replace(selecting=selecting))
  selecting = hold(method, state, selecting, selection)
  return selecting if method.refresh else selecting._replace(known=None)


def hold(
  method: Method, state: LoopState, selecting: Selecting, selection: Selection | None
) -> Selecting:
  """With a selection that holds for more than a round, gathered."""
  scratch = gather_anew(method, state, selection)
  assert selection is not None and scratch is not None
  return selecting._replace(held=Held(selection, scratch))


def count_round(
  method: Method, old: LoopState, state: LoopState, accepted: Int[Array, " B"]
) -> LoopState:
  """`state` with a round more of the sequences that were active in `old`."""
  stood = jnp.where(active(method, old), accepted, state.acceptances.shape[1])
  counted = state.acceptances.at[jnp.arange(len(stood)), stood].add(1, mode="drop")
  return state._replace(acceptances=counted)
