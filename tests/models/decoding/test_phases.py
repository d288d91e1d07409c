"""Timing rounds: what they leave, not how long they take."""

import jax
import jax.numpy as jnp

from models.decoding.generate import Generator, pad, sequence_keys, slots_for
from models.decoding.method import Method
from models.decoding.phases import compile_round, time_round
from models.decoding.round import select_anew
from models.decoding.selectors import Budget, make_selector


def test_rounds_tell_a_selector_that_has_seen_nothing(tiny):
  model, parameters = tiny("llama")
  method = Method(make_selector("specattn", Budget.parse("6")), 2)
  generator = Generator(model, parameters, method)
  cache = generator.empty_cache(2, slots_for(model.config, method, 20, 8))
  state = generator.start(pad([[1], [2]]), cache, sequence_keys(jax.random.key(0), 2), 8)
  assert state.selecting is not None
  blank = jax.tree.map(jnp.zeros_like, state.selecting.known)
  lengths = jnp.array([20, 20], jnp.int32)
  state = state._replace(
    selecting=state.selecting._replace(known=blank),
    cache=state.cache.with_lengths(lengths),
    emitted=jnp.zeros(2, jnp.int32),
  )
  selected = select_anew(model, method, state)
  assert selected is not None and not selected.counts.any()
  compiled = compile_round(model, parameters, method, state)
  _, state = time_round(compiled, parameters, state)
  selected = select_anew(model, method, state)
  assert selected is not None and (selected.counts == 6).all()
  assert state.cache.lengths.tolist() == [20, 20] and not state.emitted.any()
