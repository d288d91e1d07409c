"""What a round's phases cost: each timed as a program of its own, of the fused round's shapes.

A round is one compiled program, so its phases have no seconds of their own. Each phase's program
runs it many times in a loop on the device, as rounds follow one another: called once at a time, a
program also pays for its memory, for waking the cores and for the trip to the host, together as
much again as a phase. The sum of the phases and the fused round differ by what fusing saves.

Behind a verification, which has read more than the processor's caches hold, a selection and its
gather find nothing there. So before each of their runs as much is read again; the same program
without the phase is timed too, and subtracted. The other phases leave behind what they would find.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.axes import Array, Int
from models.decoding.generate import Generator
from models.decoding.loop import advance_rounds
from models.decoding.method import Method
from models.decoding.round import (
  LoopState,
  draft_round,
  gather_anew,
  observe_round,
  select_anew,
  verify_and_emit,
)
from models.decoding.selectors.base import InLayerSelector
from models.transformer import Parameters, Transformer

REPEATS, ROUNDS = 5, 8
_CACHES = 64 * 2**20  # bytes; more than caches hold

# (model, parameters, method, state, what phases before made) -> (state, the same, what it makes)
Phase = Callable[[Transformer, Parameters, Method, LoopState, Any], tuple[LoopState, Any, Any]]


def _nothing(model, parameters, method, state, made):
  del model, parameters, method
  return state, made, None


def _select(model, parameters, method, state, made):
  del parameters
  return state, made, select_anew(model, method, state)


def _gather(model, parameters, method, state, selection):
  del model, parameters
  return state, selection, gather_anew(method, state, selection)


def _draft(model, parameters, method, state, made):
  selection, scratch = made
  drafts = draft_round(model, parameters, method, state, selection, scratch, state.keys)
  scratch = scratch and drafts.scratch  # which the steps have written to
  return (
    state._replace(cache=drafts.cache),
    (selection, scratch),
    drafts._replace(cache=None, scratch=()),
  )


def _verify(model, parameters, method, state, drafts):
  own = drafts._replace(cache=state.cache)
  state, _ = verify_and_emit(model, parameters, method, state, own, state.keys, None)
  return state, drafts, None


def _verify_and_score(model, parameters, method, state, drafts):
  own, observer = drafts._replace(cache=state.cache), method.observer
  state, observation = verify_and_emit(model, parameters, method, state, own, state.keys, observer)
  return observe_round(method, state, observation), drafts, None


def _round(model, parameters, method, state, made):
  unwatched = jnp.zeros_like(state.ended)
  state, _ = advance_rounds(model, parameters, method, state, jnp.int32(1), unwatched)
  return state, made, None


@functools.partial(
  jax.jit, static_argnames=("model", "method", "phase"), donate_argnames=("state", "made", "out")
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
  others: Int[Array, " N"] | None = None,
) -> tuple[LoopState, Any, Any]:
  """The phase `times` times from the same state, what it makes over `out`; all are donated.

  If `others` are given, zeros, each run begins when they are read.
  """

  def step(i, carry):
    old, made, _ = carry
    # Nothing of a step is the same in all of them, to the compiler: it must not be done but once.
    zero = jnp.minimum(i, 0) if others is None else jnp.minimum(i, others).max()
    varied = functools.partial(jax.tree.map, functools.partial(_varied, zero=zero))
    if old.selecting is not None:
      old = old._replace(selecting=old.selecting._replace(known=varied(old.selecting.known)))
    new, made, out = phase(model, parameters, method, old, varied(made))
    return _rewound(new, state), made, out

  return jax.lax.fori_loop(0, times, step, (state, made, out))


def _varied(leaf: jax.Array, zero: jax.Array) -> jax.Array:
  """The array itself; counts and positions with a zero added that is known only when it runs."""
  return leaf + zero if leaf.dtype == jnp.int32 else leaf


def _rewound(state: LoopState, to: LoopState) -> LoopState:
  """As long as it was, wanting more, and with a selection that is not due."""
  selecting = state.selecting
  if selecting is not None and to.selecting is not None:
    selecting = selecting._replace(rounds=to.selecting.rounds)
  cache = state.cache.with_lengths(to.cache.lengths)
  return state._replace(selecting=selecting, cache=cache, emitted=to.emitted, ended=to.ended)


def time_phases(generator: Generator, state: LoopState) -> tuple[dict[str, float], LoopState]:
  """Median seconds of a round's phases and of the fused `round`; nothing without drafts.

  `select` is the top-k, `gather` the copies, `draft` the steps, `verify` the full attention with
  acceptance, `score` what the selector's masses add to it: a difference of two programs' times. Of
  a selection that holds for several rounds, `select` and `gather` are those of a round that makes
  it anew, and `round` is one that keeps it.

  `state` is donated, and returned; what follows a text in its cache is overwritten.
  """
  method = generator.method
  if not method.draft_length:
    return {}, state
  state = _hungry(state)
  names = ("select", "gather", "draft", "verify", "score")
  seconds: dict[str, float] = dict.fromkeys(names, 0.0)
  selection = scratch = None
  if not isinstance(method.selector, InLayerSelector):
    if method.refresh:
      timed = functools.partial(_timed, generator, others=jnp.zeros(_CACHES // 4, jnp.int32))
      reading, state, *_ = timed(_nothing, state, jnp.int32(0))
      seconds["select"], state, _, selection = timed(_select, state, None)
      seconds["gather"], state, selection, scratch = timed(_gather, state, selection)
      for name in ("select", "gather"):
        seconds[name] = max(seconds[name] - reading, 0.0)
    else:  # made once, before the first round
      assert state.selecting is not None and state.selecting.held is not None
      selection = jax.tree.map(jnp.copy, state.selecting.held.selection)
      _, state, selection, scratch = _timed(generator, _gather, state, selection)
  made = selection, scratch
  seconds["draft"], state, _, drafts = _timed(generator, _draft, state, made)
  seconds["verify"], state, drafts, _ = _timed(generator, _verify, state, drafts)
  if method.observer is not None and method.observer.rows_scored(method.draft_length + 1):
    whole, state, _, _ = _timed(generator, _verify_and_score, state, drafts)
    seconds["score"] = max(whole - seconds["verify"], 0.0)
  seconds["round"], state, _, _ = _timed(generator, _round, state, None)
  return seconds, state


def _hungry(state: LoopState) -> LoopState:
  """A state whose sequences want all of their tokens; and nothing that is held is due."""
  selecting = state.selecting
  if selecting is not None:
    selecting = selecting._replace(rounds=jnp.zeros_like(selecting.rounds))
  nothing = jnp.zeros_like(state.emitted)
  return state._replace(selecting=selecting, emitted=nothing, ended=jnp.zeros_like(state.ended))


def compile_round(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState
) -> jax.stages.Compiled:
  """The program of `time_round`, for parameters and a state that may be abstract."""
  times = jax.ShapeDtypeStruct((), jnp.int32)
  return _repeat.lower(model, parameters, method, _round, state, None, None, times).compile()


def time_round(
  compiled: jax.stages.Compiled, parameters: Parameters, state: LoopState
) -> tuple[list[float], LoopState]:
  """Seconds of a fused round, measured some times; the state is donated, and returned.

  What the state's selector knew at first does not matter: the first round, not counted, tells it.
  """
  run = functools.partial(compiled, parameters)
  seconds, state, _, _ = _seconds(run, state, None, None)
  return seconds, state


def _seconds(
  run: Callable[..., Any], state: LoopState, made: Any, out: Any
) -> tuple[list[float], LoopState, Any, Any]:
  """(seconds of one, measured some times, and what the last run returned); all are donated."""
  seconds = []
  for times in (1, *[ROUNDS] * REPEATS):  # the first compiles, or warms up
    clock = time.perf_counter()
    state, made, out = jax.block_until_ready(run(state, made, out, jnp.int32(times)))
    seconds.append((time.perf_counter() - clock) / times)
  return seconds[1:], state, made, out


def _timed(
  generator: Generator,
  phase: Phase,
  state: LoopState,
  made: Any,
  others: Int[Array, " N"] | None = None,
) -> tuple[float, LoopState, Any, Any]:
  """(median seconds of one, the state, `made`, what the phase makes); both are donated."""
  model, parameters, method = generator.model, generator.parameters, generator.method
  shapes = jax.eval_shape(lambda s, m: phase(model, parameters, method, s, m)[2], state, made)
  out = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  run = functools.partial(_repeat, model, parameters, method, phase, others=others)
  seconds, state, made, out = _seconds(run, state, made, out)
  return statistics.median(seconds), state, made, out
