"""Small models of both families, a plain reference of them, and a way to decode with few words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import kv_cache
from models.config import ModelConfig
from models.decoding.generate import pad, sequence_keys
from models.decoding.loop import advance, start
from models.decoding.prefill import prefill
from models.transformer import Transformer

CONFIGS = {
  "llama": ModelConfig("llama", 2, 32, 4, 2, 8, 48, 64, 256, qk_norm=True),
  "gpt": ModelConfig("gpt", 2, 32, 2, 2, 16, 64, 64, 256),
}


@pytest.fixture(scope="session")
def tiny():
  """tiny(family): a model and parameters large enough that its logits are far from equal."""
  made = {}

  def make(family):
    if family not in made:
      model = Transformer(CONFIGS[family])
      parameters = jax.tree.map(lambda x: 1.5 * x, model.init(jax.random.key(7)))
      noise = lambda i, x: x + 0.1 * jax.random.normal(jax.random.key(i), x.shape)
      leaves, tree = jax.tree.flatten(parameters)  # biases and scales are not 0 and 1 either
      made[family] = model, tree.unflatten([noise(i, x) for i, x in enumerate(leaves)])
    return made[family]

  return make


@pytest.fixture
def ragged():
  """ragged(n): n prompts of different lengths, some shorter and some longer than a chunk."""

  def make(count):
    rng = np.random.default_rng(count)
    lengths = [70, 3, 129, 33, 64, 65, 1, 90][:count]
    return [rng.integers(0, 64, length).tolist() for length in lengths]

  return make


@pytest.fixture
def prefilled():
  """prefilled(model, parameters, prompts): the cache as prefill leaves it, NaN in stale slots."""

  def make(model, parameters, prompts, slots=256, poison=True):
    batch = pad(prompts)
    cache = kv_cache.make(model.config, len(prompts), slots)
    cache = prefill(model, parameters, cache, batch.tokens, batch.lengths, chunk=64)
    if poison:
      stale = jnp.arange(slots)[None, None, :, None] >= cache.lengths[:, None, None, None]
      dirty = lambda arrays: tuple(jnp.where(stale, jnp.nan, x) for x in arrays)
      cache = cache._replace(keys=dirty(cache.keys), values=dirty(cache.values))
    return cache, batch

  return make


@pytest.fixture
def decode(prefilled):
  """decode(model, parameters, method, prompts, wanted): texts and rounds by accepted drafts."""

  def run(model, parameters, method, prompts, wanted, step=None, seed=0, slots=256, poison=True):
    cache, batch = prefilled(model, parameters, prompts, slots, poison)
    keys = sequence_keys(jax.random.key(seed), len(prompts))
    ends = batch.ends(method.prompt_rows)
    state = start(model, parameters, method, cache, ends, keys, wanted=wanted)
    for until in range(step or wanted, wanted + 1, step or wanted):
      state = advance(model, parameters, method, state, jnp.int32(until))
    counts = np.asarray(state.emitted)
    texts = [row[:n].tolist() for row, n in zip(np.asarray(state.output), counts, strict=True)]
    return texts, np.asarray(state.acceptances).sum(axis=0).tolist()

  return run


@pytest.fixture
def reference():
  """reference(config, parameters, tokens [T]): logits [T, V] and weights [layers, H, T, T], in
  float64 NumPy, written from the papers and not from the product."""
  return _reference


def _reference(config, parameters, tokens):
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)
  at = np.arange(len(tokens))
  x = tree["resident"]["embed"]["tokens"]["embedding"][tokens]
  if config.family == "gpt":
    x = x + tree["resident"]["embed"]["positions"]["embedding"][at]
  weights = []
  for unit in tree["units"]:
    mixed, weight = _attention(config, unit["attention"], _norm(config, unit["attention_norm"], x))
    weights.append(weight)
    x = x + mixed
    x = x + _mlp(config, unit["mlp"], _norm(config, unit["mlp_norm"], x))
  head = tree["resident"]["head"]
  return _norm(config, head["norm"], x) @ head["logits"]["kernel"], np.stack(weights)


def _norm(config, p, x):
  p = p["norm"]
  if config.family == "gpt":
    x = x - x.mean(-1, keepdims=True)
    return (
      x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * p["scale"] + p["bias"]
    )
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * p["scale"]


def _linear(p, x):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _rope(config, x):
  """Pairs (i, i + d/2) as complex numbers, turned by position * theta^(-2i/d)."""
  half = x.shape[-1] // 2
  z = x[..., :half] + 1j * x[..., half:]
  angle = np.outer(np.arange(x.shape[0]), config.rope_theta ** (-np.arange(half) * 2 / (2 * half)))
  z = z * np.exp(1j * angle)[:, None]
  return np.concatenate([z.real, z.imag], axis=-1)


def _attention(config, p, x):
  rows = len(x)
  q = _linear(p["query"], x).reshape(rows, config.heads, config.head_size)
  k = _linear(p["key"], x).reshape(rows, config.kv_heads, config.head_size)
  v = _linear(p["value"], x).reshape(rows, config.kv_heads, config.head_size)
  if config.qk_norm:
    q, k = _norm(config, p["query_norm"], q), _norm(config, p["key_norm"], k)
  if config.family == "llama":
    q, k = _rope(config, q), _rope(config, k)
  outs, weights = [], []
  for head in range(config.heads):
    shared = head // (config.heads // config.kv_heads)
    logits = q[:, head] @ k[:, shared].T / np.sqrt(config.head_size)
    logits[np.triu_indices(rows, 1)] = -np.inf
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    weights.append(weight)
    outs.append(weight @ v[:, shared])
  return _linear(p["output"], np.concatenate(outs, -1)), np.stack(weights)


def _mlp(config, p, x):
  if config.family == "gpt":
    up = _linear(p["up"], x)
    gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return _linear(p["down"], gelu)
  gate = _linear(p["gate"], x)
  return _linear(p["down"], gate / (1 + np.exp(-gate)) * _linear(p["up"], x))
