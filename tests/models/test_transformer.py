"""The model against a plain float64 reference, and its chunked attention against the naive form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers import causal_attention
from models.transformer import Context, Transformer


def full_forward(model, parameters, tokens):
  context = Context(jnp.arange(tokens.shape[1])[None, :])
  x = model.embed(parameters["resident"], tokens, context)
  for unit in parameters["units"]:
    x = model.block(unit, x, context)
  return model.logits(parameters["resident"], x)


@pytest.mark.parametrize("family", ["llama", "gpt"])
def test_logits_are_the_reference_s(family, tiny, reference, assert_close):
  model, parameters = tiny(family)
  tokens = np.random.default_rng(0).integers(0, 64, 50)
  expected, _ = reference(model.config, parameters, tokens)
  logits = jax.jit(lambda p, t: full_forward(model, p, t))(parameters, jnp.asarray(tokens)[None])
  assert_close(logits[0], expected, scale=20)


def test_tied_embeddings_share_the_table(tiny, assert_close):
  model, parameters = tiny("llama")
  tied = Transformer(dataclasses.replace(model.config, tied_embeddings=True))
  table = parameters["resident"]["embed"]["tokens"]["embedding"]
  untied = {"norm": parameters["resident"]["head"]["norm"], "logits": {"kernel": table.T}}
  x = jax.random.normal(jax.random.key(0), (1, 3, 32))
  resident = {"embed": parameters["resident"]["embed"], "head": {"norm": untied["norm"]}}
  assert_close(tied.logits(resident, x), model.logits({"head": untied}, x), scale=10)


def test_parameter_counts_are_the_trees(tiny):
  for family in ("llama", "gpt"):
    model, parameters = tiny(family)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(parameters["units"][0]) == model.config.block_parameters
    assert count(parameters["resident"]) == model.config.resident_parameters


@pytest.mark.parametrize("rows", [1, 8, 21])
def test_chunked_attention_is_causal_attention(rows, assert_close):
  key = jax.random.split(jax.random.key(rows), 3)
  q = jax.random.normal(key[0], (2, 4, rows, 8))
  k, v = (jax.random.normal(i, (2, 2, rows, 8)) for i in key[1:])
  logits = np.einsum("bhtd,bhsd->bhts", q, np.repeat(k, 2, axis=1)) / np.sqrt(8)
  logits = np.where(np.tri(rows, dtype=bool), logits, -np.inf)
  expected = np.asarray(jax.nn.softmax(logits, axis=-1)) @ np.repeat(v, 2, axis=1)
  out, _ = causal_attention(q, k, v, block=8)
  assert_close(out, expected)


def test_loss_leaves_out_negative_targets(tiny):
  model, parameters = tiny("gpt")
  x = jax.random.normal(jax.random.key(0), (2, 3, 32))
  targets = jnp.array([[1, -1, 5], [-1, -1, 63]])
  total, count = model.loss(parameters["resident"], x, targets, Context(targets))
  log_p = np.asarray(jax.nn.log_softmax(model.logits(parameters["resident"], x), axis=-1))
  assert count == 3
  np.testing.assert_allclose(total, -(log_p[0, 0, 1] + log_p[0, 2, 5] + log_p[1, 2, 63]), rtol=1e-5)
