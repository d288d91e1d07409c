"""The copying initialisation: its first head looks back one token, and its heads write tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import initialization
from models.config import PRESETS
from models.layers import rotate
from models.transformer import Transformer

CONFIG = PRESETS["bytes-retrieval"]


@pytest.fixture(scope="module")
def parameters():
  return initialization.copying(Transformer(CONFIG), jax.random.key(3))


@pytest.mark.parametrize("back", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 20_000])
def test_the_first_heads_look_back_wherever_they_stand(parameters, start, back):
  tokens = np.random.default_rng(0).integers(0, 256, 200)
  x = np.asarray(parameters["resident"]["embed"]["tokens"]["embedding"])[tokens]
  x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + CONFIG.norm_epsilon)
  attention = parameters["units"][0]["attention"]
  columns = slice((back - 1) * CONFIG.head_size, back * CONFIG.head_size)
  positions = jnp.arange(start, start + 200)[None]
  head = lambda name: rotate(
    (x @ attention[name]["kernel"][:, columns])[None, None], positions, CONFIG.rope_theta
  )[0, 0]
  logits = np.asarray(head("query") @ head("key").T) / np.sqrt(CONFIG.head_size)
  logits[np.triu_indices(200, 1)] = -np.inf
  assert (logits.argmax(axis=1)[back:] == np.arange(200 - back)).mean() > 0.9


def test_an_untrained_head_says_the_token_that_it_attends_to(parameters):
  table = np.asarray(parameters["resident"]["embed"]["tokens"]["embedding"])
  for unit in parameters["units"]:
    attention = unit["attention"]
    written = table @ attention["value"]["kernel"] @ attention["output"]["kernel"]
    centred = table - table.mean(axis=0)
    assert ((written @ centred.T).argmax(axis=1) == np.arange(256)).mean() > 0.95
    assert not np.any(unit["mlp"]["down"]["kernel"])


def test_grouped_heads_write_their_own_group_s_values():
  grouped = dataclasses.replace(CONFIG, kv_heads=2)
  unit = initialization.copying(Transformer(grouped), jax.random.key(3))["units"][0]["attention"]
  value = np.asarray(unit["value"]["kernel"]).reshape(grouped.width, 2, grouped.head_size)
  output = np.asarray(unit["output"]["kernel"]).reshape(4, grouped.head_size, grouped.width)
  for head in range(4):
    np.testing.assert_allclose(output[head], 0.04 * value[:, head // 2].T, rtol=1e-6)


@pytest.mark.parametrize("change", [{"tied_embeddings": False}, {"family": "gpt"}])
def test_other_models_are_refused(change):
  with pytest.raises(ValueError, match="copying initialisation"):
    initialization.check(Transformer(dataclasses.replace(CONFIG, **change)))
