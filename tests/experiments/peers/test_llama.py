"""A checkpoint's weights under Hugging Face's names are the same function, by an own forward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.peers import llama
from models.config import PRESETS
from models.transformer import Transformer


def _rms(x, weight, epsilon):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def _rotated(x, positions, theta):
  """x [H, T, D], as modeling_llama has it: cosines twice, and halves turned."""
  size = x.shape[-1]
  frequency = 1.0 / theta ** (np.arange(0, size, 2) / size)
  angle = np.concatenate([np.outer(positions, frequency)] * 2, axis=-1)
  turned = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
  return x * np.cos(angle) + turned * np.sin(angle)


def _forward(settings, weights, tokens):
  """LlamaForCausalLM's logits, in float64."""
  w = {name: array.astype(np.float64) for name, array in weights.items()}
  heads, kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
  size, epsilon = settings["head_dim"], settings["rms_norm_eps"]
  theta = settings["rope_parameters"]["rope_theta"]
  x, count = w["model.embed_tokens.weight"][tokens], len(tokens)
  for i in range(settings["num_hidden_layers"]):
    of = lambda name, i=i: w[f"model.layers.{i}.{name}.weight"]
    h = _rms(x, of("input_layernorm"), epsilon)
    split = lambda y, n: y.reshape(count, n, size).swapaxes(0, 1)
    q = _rotated(split(h @ of("self_attn.q_proj").T, heads), np.arange(count), theta)
    k = _rotated(split(h @ of("self_attn.k_proj").T, kv_heads), np.arange(count), theta)
    v = split(h @ of("self_attn.v_proj").T, kv_heads)
    k, v = (np.repeat(y, heads // kv_heads, axis=0) for y in (k, v))
    logits = q @ k.swapaxes(1, 2) / np.sqrt(size)
    logits[:, np.triu(np.ones((count, count), bool), 1)] = -np.inf
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    out = (shares / shares.sum(-1, keepdims=True)) @ v
    x = x + out.swapaxes(0, 1).reshape(count, -1) @ of("self_attn.o_proj").T
    h = _rms(x, of("post_attention_layernorm"), epsilon)
    gate = h @ of("mlp.gate_proj").T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
  return _rms(x, w["model.norm.weight"], epsilon) @ w["lm_head.weight"].T


@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_the_same(tied):
  config = dataclasses.replace(
    PRESETS["bytes-retrieval"],
    layers=2, width=32, heads=4, kv_heads=2, head_size=12, mlp_width=48, tied_embeddings=tied,
  )  # fmt: skip
  model = Transformer(config)
  parameters = model.init(jax.random.key(0))
  # Scales of one would hide a norm that is missing its own.
  parameters = jax.tree.map(lambda x: x * 1.5 + 0.01, parameters)
  tokens = np.random.default_rng(0).integers(0, 256, 40)
  context = model.context(jnp.arange(40, dtype=jnp.int32)[None], None)
  x = model.embed(parameters["resident"], jnp.asarray(tokens)[None], context)
  for unit in parameters["units"]:
    x = model.block(unit, x, context)
  ours = np.asarray(model.logits(parameters["resident"], x)[0])
  theirs = _forward(llama.configuration(config), llama.weights(config, parameters), tokens)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("preset", ["gpt-bytes-tiny", "qwen3-4b"])
def test_other_models_are_refused(preset):
  with pytest.raises(ValueError, match="which Hugging Face's Llama is not"):
    llama.check(PRESETS[preset])
