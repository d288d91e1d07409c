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


def _draft(model, parameters, method, state, selection):
  drafts = draft_round(model, parameters, method, state, selection, state.keys)
  return state._replace(cache=drafts.cache), drafts._replace(cache=None)


def _verify(model, parameters, method, state, drafts):
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


def time_phases(generator: Generator, state: LoopState) -> dict[str, float]:
  """Median seconds of `select`, `draft` (gathers, then steps) and `verify` (accepts and observes),
  and of the fused `round`; nothing without a selector.

  `state` is donated. Its texts are overwritten: only its lengths matter.
  """
  method = generator.method
  if method.selector is None:
    return {}
  state = state._replace(emitted=jnp.zeros_like(state.emitted), ended=jnp.zeros_like(state.ended))
  phases: dict[str, Phase] = {"select": _select, "draft": _draft, "verify": _verify}
  if isinstance(method.selector, InLayerSelector):
    del phases["select"]
  seconds, made = {}, None
  for name, phase in phases.items():
    seconds[name], state, made = _timed(generator, phase, state, made)
  seconds["round"], _, _ = _timed(generator, _round, state, None)
  return seconds


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
