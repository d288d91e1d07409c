"""What a peer trains: shape, weights, batches and settings, as files that need none of ours.

A job is a folder: job.json (model, optimizer, learning rates, DeepSpeed's configuration),
weights.npz (float32 arrays by the names that PyTorch's modules have in scripts/peers/gpt.py) and
batches.npz (inputs, targets: i32[iterations, micro-batches, sequences, tokens]).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import data
from models.config import ModelConfig
from models.transformer import Parameters, Transformer
from offload import optimizers

_OUTSIDE = {  # of the blocks: our path -> PyTorch's name
  "embed/tokens/embedding": "tokens.weight",
  "embed/positions/embedding": "positions.weight",
  "head/norm/norm/scale": "norm.weight",
  "head/norm/norm/bias": "norm.bias",
  "head/logits/kernel": "logits.weight",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TRANSPOSED = "kernel"  # ours are [in, out], torch.nn.Linear's [out, in]


@dataclasses.dataclass(frozen=True)
class Job:
  """What all systems train alike; `learning_rate` is a peak, behind it a cosine as in train."""

  model: str
  config: ModelConfig
  micro_batches: int
  micro_batch_size: int
  sequence_length: int
  iterations: int
  seed: int
  data: str
  learning_rate: float = 1e-4
  weight_decay: float = 0.1

  @property
  def parameters(self) -> int:
    return self.config.layers * self.config.block_parameters + self.config.resident_parameters


def torch_weights(parameters: Parameters) -> dict[str, np.ndarray]:
  """The whole tree of a `gpt` model by PyTorch's names, float32."""
  out = {}
  for path, leaf in _named(parameters["resident"]):
    out[_OUTSIDE[path]] = _turned(path, leaf)
  for u, unit in enumerate(parameters["units"]):
    for path, leaf in _named(unit):
      out[f"blocks.{u}.{_block_name(path)}"] = _turned(path, leaf)
  return out


def _named(tree: Parameters) -> list[tuple[str, Any]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return [("/".join(key.key for key in path), leaf) for path, leaf in leaves]


def _block_name(path: str) -> str:
  """attention/query/kernel -> attention.query.weight; mlp_norm/norm/scale -> mlp_norm.weight."""
  *modules, leaf = path.split("/")
  if modules[-1] == "norm":
    modules.pop()
  return ".".join([*modules, _LEAVES[leaf]])


def _turned(path: str, leaf: Any) -> np.ndarray:
  value = np.asarray(leaf, np.float32)
  return np.ascontiguousarray(value.T) if path.endswith(_TRANSPOSED) else value


def write(job: Job, corpus: data.Corpus, deepspeed: dict[str, Any], folder: Path) -> None:
  """Writes the job's files; the weights and batches are those that experiments.train makes."""
  folder.mkdir(parents=True)
  weights: Any = torch_weights(_initial(job))
  np.savez(folder / "weights.npz", **weights)
  inputs, targets = _batches(job, corpus)
  np.savez(folder / "batches.npz", inputs=inputs, targets=targets)
  rate: Any = optimizers.warmup_cosine(job.learning_rate, 0, job.iterations)
  described = {
    "model": dataclasses.asdict(job.config),
    "iterations": job.iterations,
    "learning_rates": [float(rate(i)) for i in range(job.iterations)],
    "adamw": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": job.weight_decay},
    "deepspeed": deepspeed,
    "port": 29_517,
  }
  (folder / "job.json").write_text(json.dumps(described, indent=2) + "\n")


def _initial(job: Job) -> Parameters:
  """As offload.streamer makes them: the same keys, through the same compiled functions."""
  model, key = Transformer(job.config), jax.random.key(job.seed)
  unit, resident = jax.jit(model.init_unit), jax.jit(model.init_resident)
  units = tuple(unit(jax.random.fold_in(key, u)) for u in range(model.units))
  return {"resident": resident(jax.random.fold_in(key, model.units)), "units": units}


def _batches(job: Job, corpus: data.Corpus) -> tuple[np.ndarray, np.ndarray]:
  shape = {"size": job.micro_batch_size, "sequence_length": job.sequence_length}
  pairs = [
    [
      data.batch(corpus.train, seed=job.seed, iteration=i, micro_batch=m, **shape)
      for m in range(job.micro_batches)
    ]
    for i in range(job.iterations)
  ]
  inputs, targets = np.moveaxis(np.asarray(pairs), 2, 0)
  return inputs, targets
