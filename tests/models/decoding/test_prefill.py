"""Prefill in chunks and the step behind it against the full forward pass."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.prefill import prefill
from models.decoding.verify import verify, verify_row_by_row


@pytest.mark.parametrize("family", ["llama", "gpt"])
@pytest.mark.parametrize("check", [verify, verify_row_by_row])
def test_rows_behind_a_prefilled_cache_are_the_full_forward_s(
  family, check, tiny, reference, ragged, prefilled, assert_close
):
  model, parameters = tiny(family)
  prompts = ragged(4)
  cache, batch = prefilled(model, parameters, prompts)
  more = np.random.default_rng(1).integers(0, 64, (4, 3))
  rows = jnp.concatenate([batch.last[:, None], jnp.asarray(more, jnp.int32)], axis=1)
  seen = check(model, parameters, cache, rows)
  for b, prompt in enumerate(prompts):
    expected, _ = reference(model.config, parameters, np.array([*prompt, *more[b]]))
    assert_close(seen.logits[b], expected[-4:], scale=20)


def test_lengths_leave_the_last_token_to_the_loop(tiny, ragged, prefilled):
  model, parameters = tiny("gpt")
  cache, batch = prefilled(model, parameters, ragged(3))
  assert cache.lengths.tolist() == [69, 2, 128]
  assert batch.last.tolist() == [prompt[-1] for prompt in ragged(3)]


def test_a_chunk_must_divide_the_cache(tiny, prefilled):
  model, parameters = tiny("gpt")
  cache, batch = prefilled(model, parameters, [[1, 2]])
  with pytest.raises(ValueError, match="whole number of 100-row chunks"):
    prefill(model, parameters, cache, batch.tokens, batch.lengths, chunk=100)
