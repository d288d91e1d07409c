"""What a round's phases cost: each timed as a program of its own, of the fused round's shapes.

A round is one compiled program, so its phases have no seconds of their own. Each phase's program
runs it many times in a loop on the device, as rounds follow one another: called once at a time, a
program also pays for its memory, for waking the cores and for the trip to the host, together as
much again as a phase. The sum of the phases and the fused round differ by what fusing saves.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.generate import Generator
from models.decoding.loop import (
  LoopState,
  Method,
  advance_rounds,
  draft_round,
  observe_round,
  select_for_round,
  selected_sources,
  verify_and_emit,
)
from models.decoding.selectors.base import InLayerSelector
from models.transformer import Parameters, Transformer

REPEATS, ROUNDS = 5, 8

# (model, parameters, method, state, what the phases before made) -> (state, what it makes itself)
Phase = Callable[[Transformer, Parameters, Method, LoopState, Any], tuple[LoopState, Any]]


def _select(model, parameters, method, state, made):
  del parameters, made
  return state, select_for_round(model, method, state)


def _gather(model, parameters, method, state, selection):
  del model, parameters
  sources = selected_sources(method, state, selection)
  return state, [(source.keys, source.values) for source in sources if not source.in_cache]


def _draft(model, parameters, method, state, selection):
  drafts = draft_round(model, parameters, method, state, selection, state.keys)
  return state._replace(cache=drafts.cache), drafts._replace(cache=None)


def _verify(model, parameters, method, state, drafts):
  drafts = drafts._replace(cache=state.cache)
  state, _ = verify_and_emit(model, parameters, method, state, drafts, state.keys, None)
  return state, None


def _verify_and_score(model, parameters, method, state, drafts):
  drafts = drafts._replace(cache=state.cache)
  state, observation = verify_and_emit(
    model, parameters, method, state, drafts, state.keys, method.observer
  )
  return observe_round(method, state, observation), None


def _round(model, parameters, method, state, made):
  del made
  unwatched = jnp.zeros_like(state.ended)
  state, _ = advance_rounds(model, parameters, method, state, jnp.int32(1), unwatched)
  return state, None


@functools.partial(
  jax.jit, static_argnames=("model", "method", "phase"), donate_argnames=("state", "out")
)
def _repeat(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  phase: Phase,
  state: LoopState,
  made: Any,
  out: Any,
  times: jax.Array,
) -> tuple[LoopState, Any]:
  """The phase `times` times from the same state, what it makes over `out`, which is donated."""

  def step(i, carry):
    old, _ = carry
    # Nothing of a step is the same in all of them, to the compiler: it must not be done but once.
    varied = jax.tree.map(functools.partial(_varied, zero=jnp.minimum(i, 0)), made)
    known = old.selecting and old.selecting._replace(
      known=jax.tree.map(functools.partial(_varied, zero=jnp.minimum(i, 0)), old.selecting.known)
    )
    new, out = phase(model, parameters, method, old._replace(selecting=known), varied)
    return _rewound(new, state), out

  return jax.lax.fori_loop(0, times, step, (state, out))


def _varied(leaf: jax.Array, zero: jax.Array) -> jax.Array:
  """The array itself; counts and positions with a zero added that is known only when it runs."""
  return leaf + zero if leaf.dtype == jnp.int32 else leaf


def _rewound(state: LoopState, to: LoopState) -> LoopState:
  """As long as it was, and wanting more."""
  return state._replace(
    cache=state.cache.with_lengths(to.cache.lengths), emitted=to.emitted, ended=to.ended
  )


def time_phases(generator: Generator, state: LoopState) -> tuple[dict[str, float], LoopState]:
  """Median seconds of a round's phases and of the fused `round`; nothing without a selector.

  `select` is the top-k, `gather` the copies, `draft` the steps over them, `verify` the full
  attention with acceptance, `score` what the selector's masses add to it. The steps and the score
  are differences of two programs' times.

  `state` is donated, and returned. What follows a text in its cache is overwritten.
  """
  method = generator.method
  if method.selector is None:
    return {}, state
  state = state._replace(emitted=jnp.zeros_like(state.emitted), ended=jnp.zeros_like(state.ended))
  seconds, selection = dict.fromkeys(("select", "gather", "draft", "verify", "score"), 0.0), None
  if not isinstance(method.selector, InLayerSelector):
    seconds["select"], state, selection = _timed(generator, _select, state, None)
    seconds["gather"], state, _ = _timed(generator, _gather, state, selection)
  whole, state, drafts = _timed(generator, _draft, state, selection)
  seconds["draft"] = max(whole - seconds["gather"], 0.0)
  seconds["verify"], state, _ = _timed(generator, _verify, state, drafts)
  if method.observer is not None and method.observer.rows_scored(method.draft_length + 1):
    whole, state, _ = _timed(generator, _verify_and_score, state, drafts)
    seconds["score"] = max(whole - seconds["verify"], 0.0)
  seconds["round"], state, _ = _timed(generator, _round, state, None)
  return seconds, state


def _timed(
  generator: Generator, phase: Phase, state: LoopState, made: Any
) -> tuple[float, LoopState, Any]:
  """(median seconds of one, the state, what the phase makes)."""
  fixed = generator.model, generator.parameters, generator.method
  _, shapes = jax.eval_shape(lambda state, made: phase(*fixed, state, made), state, made)
  out = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  seconds = []
  for times in (1, *[ROUNDS] * REPEATS):  # the first compiles
    clock = time.perf_counter()
    state, out = jax.block_until_ready(
      _repeat(*fixed[:3], phase, state, made, out, jnp.int32(times))
    )
    seconds.append((time.perf_counter() - clock) / times)
  return statistics.median(seconds[1:]), state, out
