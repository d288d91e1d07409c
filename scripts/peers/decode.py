"""Decodes a job of experiments/peers/assisted.py with Hugging Face transformers, greedily.

    .venv-transformers-<version>/bin/python scripts/peers/decode.py <mode> <job> <out>

The mode `dynamic` is `generate` as it comes, `static` the same over a cache of fixed size, `lookup`
its assisted generation whose drafts are looked up in the text (prompt look-up). `job` is a folder
with job.json, weights.npz, prompts.npz and logits.npz; result.json goes to the folder `out`. Runs
in the environment that scripts/peers/transformers makes.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

CHUNK = 2048  # rows of a prompt at a time


def model_of(job: dict, folder: Path) -> LlamaForCausalLM:
  """The job's model with the job's weights; every parameter must be given, in its shape."""
  model = LlamaForCausalLM(LlamaConfig(**job["model"])).eval()
  with np.load(folder / "weights.npz") as stored:
    values = {name: torch.from_numpy(stored[name]) for name in stored.files}
  model.load_state_dict(values, strict=True)
  return model


def logit_difference(model: LlamaForCausalLM, folder: Path) -> float:
  """The largest difference to the job's logits, over the largest of these."""
  with np.load(folder / "logits.npz") as stored:
    tokens, ours = torch.from_numpy(stored["tokens"]).long()[None], stored["logits"]
  theirs = model(tokens).logits[0].float().numpy()
  return float(np.abs(theirs - ours).max() / np.abs(ours).max())


class Forwards:
  """Counts the model's forward passes."""

  def __init__(self, model: LlamaForCausalLM):
    self.count = 0
    model.register_forward_pre_hook(self._called)

  def _called(self, *_) -> None:
    self.count += 1


def prefill(model: LlamaForCausalLM, mode: str, prompt: torch.Tensor, wanted: int):
  """A cache of all but the prompt's last token."""
  cache = DynamicCache(config=model.config)
  if mode == "static":
    cache = StaticCache(config=model.config, max_cache_len=prompt.shape[1] + wanted)
  for first in range(0, prompt.shape[1] - 1, CHUNK):
    rows = prompt[:, first : min(first + CHUNK, prompt.shape[1] - 1)]
    model(rows, cache=cache, logits_to_keep=1)
  return cache


def decode(model: LlamaForCausalLM, mode: str, prompt: torch.Tensor, wanted: int, drafts: int):
  """(tokens, seconds of prefill, seconds from the prompt's last token on)."""
  clock = time.perf_counter()
  cache = prefill(model, mode, prompt, wanted)
  prefilled = time.perf_counter()
  options = {"prompt_lookup_num_tokens": drafts} if mode == "lookup" else {}
  out = model.generate(prompt, cache=cache, max_new_tokens=wanted, do_sample=False, **options)
  done = time.perf_counter()
  return out[0, prompt.shape[1] :].tolist(), prefilled - clock, done - prefilled


@torch.inference_mode()
def main(mode: str, folder: Path, out: Path) -> None:
  job = json.loads((folder / "job.json").read_text())
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = model_of(job, folder)
  found = {"logit_difference": logit_difference(model, folder), "texts": []}
  forwards = Forwards(model)
  with np.load(folder / "prompts.npz") as stored:
    prompts = [torch.from_numpy(stored[name]).long()[None] for name in sorted(stored.files)]
  wanted, drafts = job["new_tokens"], job["lookup_tokens"]
  decode(model, mode, prompts[0][:, -256:], 16, drafts)  # to warm up
  passes, prefilled, seconds = 0, 0.0, 0.0
  for prompt in prompts:
    before = forwards.count
    text, *spent = decode(model, mode, prompt, wanted, drafts)
    passes += forwards.count - before - len(range(0, prompt.shape[1] - 1, CHUNK))
    found["texts"].append(text)
    prefilled, seconds = prefilled + spent[0], seconds + spent[1]
  tokens = sum(map(len, found["texts"]))
  found |= {
    "tokens_per_second": tokens / seconds,
    "tokens_per_pass": tokens / passes,
    "prefill_seconds": prefilled,
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
  }
  (out / "result.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
