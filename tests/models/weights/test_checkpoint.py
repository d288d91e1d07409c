"""Checkpoints: bits kept, and one sentence for each thing that can be wrong with a folder."""

import json

import jax
import jax.numpy as jnp
import pytest

from models.transformer import Transformer
from models.weights import checkpoint


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_checkpoint_keeps_every_bit(dtype, tiny, tmp_path):
  model, parameters = tiny("llama")
  parameters = jax.tree.map(lambda x: x.astype(dtype), parameters)
  checkpoint.save(tmp_path / "model", model.config, parameters)
  config, loaded = checkpoint.load(tmp_path / "model")
  assert config == model.config
  assert checkpoint.load_model(tmp_path / "model") == Transformer(config, jnp.dtype(dtype))
  assert jax.tree.structure(loaded) == jax.tree.structure(parameters)
  for got, wanted in zip(jax.tree.leaves(loaded), jax.tree.leaves(parameters), strict=True):
    assert got.dtype == dtype
    assert (got == wanted).all()


def test_a_checkpoint_loads_on_another_kind_of_device(tiny, tmp_path):
  model, parameters = tiny("llama")
  checkpoint.save(tmp_path / "model", model.config, parameters)
  places = tmp_path / "model" / "parameters" / "_sharding"
  assert "cpu:0" in places.read_text()
  places.write_text(places.read_text().replace("cpu:0", "cuda:0"))
  _, loaded = checkpoint.load(tmp_path / "model")
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), loaded, parameters))


def test_what_is_wrong_with_a_folder_is_said(tiny, tmp_path):
  with pytest.raises(ValueError, match=r"holds no checkpoint: there is no model\.json"):
    checkpoint.load(tmp_path)
  model, parameters = tiny("gpt")
  checkpoint.save(tmp_path / "model", model.config, parameters)
  with pytest.raises(ValueError, match="holds a checkpoint already"):
    checkpoint.save(tmp_path / "model", model.config, parameters)
  path = tmp_path / "model" / "model.json"
  shape = json.loads(path.read_text())
  shape["config"]["mlp_width"] = 65
  path.write_text(json.dumps(shape))
  with pytest.raises(ValueError, match="another model's parameters: units/0/mlp/down/kernel is"):
    checkpoint.load(tmp_path / "model")
  path.write_text('{"config": {"family": "rnn"}}')
  with pytest.raises(ValueError, match="does not describe a model"):
    checkpoint.load_model(tmp_path / "model")
