"""Samplers' distributions against a plain reading of their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.sampling import Greedy, Sampling, make_sampler

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2]))


def distribution(**settings):
  return np.asarray(Sampling(**settings).probabilities(jnp.asarray(LOGITS, jnp.float32)))


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({}, [0.05, 0.4, 0.1, 0.25, 0.2]),
    ({"top_p": 0.6}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    ({"top_p": 0.3}, [0, 1, 0, 0, 0]),
    ({"top_p": 0.7}, [0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85]),
    ({"top_k": 2}, [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    ({"top_k": 9}, [0.05, 0.4, 0.1, 0.25, 0.2]),
    ({"top_k": 3, "top_p": 0.4}, [0, 1, 0, 0, 0]),
  ],
)
def test_nucleus_and_top_k(settings, expected):
  np.testing.assert_allclose(distribution(**settings), expected, atol=1e-6)


def test_temperature_sharpens():
  p = np.exp(LOGITS / 0.5)
  np.testing.assert_allclose(distribution(temperature=0.5), p / p.sum(), atol=1e-6)


def test_settings_that_make_no_sense_are_refused():
  assert make_sampler(0.0, 1.0) == Greedy()
  for settings in ((-1.0, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, 1.0, -1)):
    with pytest.raises(ValueError, match=r"temperature|top_p|top_k"):
      make_sampler(*settings)
