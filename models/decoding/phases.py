"""What a round's phases cost: each timed as a program of its own, of the fused round's shapes.

A round is one compiled program, so its phases have no seconds of their own. The sum of these and
the fused round differ by what fusing saves, and by what crossing to the host costs.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.draft import Drafts, Scratch
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
from models.decoding.selectors.base import InLayerSelector, Selection
from models.transformer import Parameters, Transformer

REPEATS = 3


@functools.partial(jax.jit, static_argnames=("model", "method"))
def _select(model: Transformer, method: Method, state: LoopState) -> Selection | None:
  return select_anew(model, method, state)


@functools.partial(jax.jit, static_argnames="method")
def _gather(method: Method, state: LoopState, selection: Selection | None) -> Scratch | None:
  return gather_anew(method, state, selection)


@functools.partial(
  jax.jit, static_argnames=("model", "method"), donate_argnames=("state", "scratch")
)
def _draft(
  model: Transformer,
  parameters: Parameters,
  method: Method,
  state: LoopState,
  selection: Selection | None,
  scratch: Scratch | None,
) -> tuple[LoopState, Drafts]:
  """The drafts without their cache, which is the state's."""
  drafts = draft_round(model, parameters, method, state, selection, scratch, state.keys)
  return state._replace(cache=drafts.cache), drafts._replace(cache=None)


@functools.partial(jax.jit, static_argnames=("model", "method"), donate_argnames="state")
def _verify(
  model: Transformer, parameters: Parameters, method: Method, state: LoopState, drafts: Drafts
) -> LoopState:
  drafts = drafts._replace(cache=state.cache, scratch=())
  state, observation = verify_and_emit(
    model, parameters, method, state, drafts, state.keys, method.observer
  )
  return observe_round(method, state, observation)


def time_phases(generator: Generator, state: LoopState) -> dict[str, float]:
  """Median seconds of `select`, `gather`, `draft` (the steps) and `verify` (accepts and observes),
  and of the fused `round`; nothing without drafts.

  Of a selection that holds for several rounds, `select` and `gather` are those of a round that
  makes it anew, and `round` is one that keeps it. `state` is donated. Its texts
  are overwritten: only its lengths matter.
  """
  model, parameters, method = generator.model, generator.parameters, generator.method
  if not method.draft_length:
    return {}
  lengths, emitted = np.asarray(state.cache.lengths), np.zeros_like(np.asarray(state.emitted))
  seconds: dict[str, list[float]] = {}

  def timed(name: str, program: Callable[..., Any], *arguments: Any) -> Any:
    clock = time.perf_counter()
    out = jax.block_until_ready(program(*arguments))
    seconds.setdefault(name, []).append(time.perf_counter() - clock)
    return out

  for _ in range(1 + REPEATS):  # the first compiles
    state = _rewound(state, lengths, emitted)
    selection = scratch = None
    if state.selecting is not None and state.selecting.held is not None and not method.refresh:
      selection = state.selecting.held.selection
      scratch = _gather(method, state, selection)
    elif not isinstance(method.selector, InLayerSelector):
      selection = timed("select", _select, model, method, state)
      scratch = timed("gather", _gather, method, state, selection)
    state, drafts = timed("draft", _draft, model, parameters, method, state, selection, scratch)
    state = timed("verify", _verify, model, parameters, method, state, drafts)
    state = _rewound(state, lengths, emitted)
    unwatched = jnp.zeros(len(lengths), bool)
    state, _ = timed(
      *("round", advance_rounds, model, parameters, method, state),
      *(jnp.int32(1), unwatched),
    )
  return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def _rewound(state: LoopState, lengths: np.ndarray, emitted: np.ndarray) -> LoopState:
  """As long as it was, wanting more, and with a selection that is not due."""
  selecting = state.selecting
  if selecting is not None:
    selecting = selecting._replace(rounds=jnp.zeros_like(selecting.rounds))
  return state._replace(
    selecting=selecting,
    cache=state.cache.with_lengths(jnp.asarray(lengths)),
    emitted=jnp.asarray(emitted),
    ended=jnp.zeros_like(state.ended),
  )
