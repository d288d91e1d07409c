"""A job's files say what experiments.train trains; nothing here needs PyTorch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.peers import job as jobs
from experiments.peers import zero_infinity
from models.config import PRESETS, ModelConfig
from models.transformer import Transformer

TINY = ModelConfig("gpt", 2, 64, 2, 2, 32, 256, vocabulary=256, context=96)


def numpy_loss(weights, config, tokens, targets):
  """The mean loss by PyTorch's names and layouts, in float64 and without PyTorch."""
  w = {name: value.astype(np.float64) for name, value in weights.items()}
  dense = lambda x, name: x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_epsilon)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]

  def attention(x, name):
    split = lambda part: (
      dense(x, f"{name}.{part}").reshape(*x.shape[:2], config.heads, -1).swapaxes(1, 2)
    )
    q, k, v = map(split, ("query", "key", "value"))
    logits = q @ k.swapaxes(2, 3) / np.sqrt(config.head_size)
    logits = np.where(np.tri(x.shape[1], dtype=bool), logits, -np.inf)
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    out = scores / scores.sum(-1, keepdims=True) @ v
    return dense(out.swapaxes(1, 2).reshape(x.shape), f"{name}.output")

  def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  x = w["tokens.weight"][tokens] + w["positions.weight"][: tokens.shape[1]]
  for u in range(config.layers):
    name = f"blocks.{u}"
    x = x + attention(norm(x, f"{name}.attention_norm"), f"{name}.attention")
    hidden = gelu(dense(norm(x, f"{name}.mlp_norm"), f"{name}.mlp.up"))
    x = x + dense(hidden, f"{name}.mlp.down")
  logits = dense(norm(x, "norm"), "logits")
  log_z = np.log(np.exp(logits).sum(-1))
  return (log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]).mean()


def perturbed(model):
  """Parameters none of which is at a symmetric initial value: ones, zeros."""
  keys = iter(jax.random.split(jax.random.key(1), 100))
  random = lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape)
  return jax.tree.map(random, model.init(jax.random.key(0)))


def test_exported_weights_compute_the_same_loss():
  model = Transformer(TINY)
  parameters = perturbed(model)
  rng = np.random.default_rng(0)
  tokens, targets = jnp.asarray(rng.integers(0, 256, (2, 2, 24), np.int32))
  positions = jnp.tile(jnp.arange(24, dtype=jnp.int32), (2, 1))
  context = model.context(positions, None)
  x = model.embed(parameters["resident"], tokens, context)
  for unit in parameters["units"]:
    x = model.block(unit, x, context)
  total, weight = model.loss(parameters["resident"], x, targets, context)
  weights = jobs.torch_weights(parameters)
  found = numpy_loss(weights, TINY, np.asarray(tokens), np.asarray(targets))
  np.testing.assert_allclose(found, total / weight, rtol=1e-5)
  assert sum(value.size for value in weights.values()) == _job().parameters


def _job(**changes):
  return jobs.Job("tiny", TINY, 3, 2, 16, 4, seed=5, data="stdlib", **changes)


def test_files_of_a_job(tmp_path):
  job, corpus = _job(), data.load_corpus("stdlib")
  jobs.write(job, corpus, {"stage": 3}, tmp_path / "job")
  described = json.loads((tmp_path / "job/job.json").read_text())
  assert ModelConfig(**described["model"]) == TINY
  rates = described["learning_rates"]
  assert rates[0] == pytest.approx(job.learning_rate) and sorted(rates, reverse=True) == rates
  batches = np.load(tmp_path / "job/batches.npz")
  assert batches["inputs"].shape == batches["targets"].shape == (4, 3, 2, 16)
  where = {"seed": 5, "iteration": 2, "micro_batch": 1, "size": 2, "sequence_length": 16}
  for name, wanted in zip(("inputs", "targets"), data.batch(corpus.train, **where), strict=True):
    np.testing.assert_array_equal(batches[name][2, 1], wanted)
  weights = np.load(tmp_path / "job/weights.npz")
  unit = Transformer(TINY).init_unit(jax.random.fold_in(jax.random.key(5), 1))
  kernel = np.asarray(unit["mlp"]["up"]["kernel"])
  np.testing.assert_allclose(weights["blocks.1.mlp.up.weight"], kernel.T, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("preset", ["gpt-bytes-58m", "gpt-bytes-400m"])
def test_every_matrix_fits_deepspeeds_buffers(preset):
  config = PRESETS[preset]
  settings = zero_infinity.configuration(config, micro_batch_size=2, micro_batches=4)
  zero = settings["zero_optimization"]
  shapes = jax.eval_shape(Transformer(config).init, jax.random.key(0))
  largest = max(leaf.size for leaf in jax.tree.leaves(shapes))
  assert largest <= zero["offload_param"]["buffer_size"]
  assert zero["offload_param"]["max_in_cpu"] == 0 == settings["gradient_clipping"]
  assert settings["gradient_accumulation_steps"] == 4
