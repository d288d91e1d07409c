"""Trains a job of experiments/peers/job.py in PyTorch: in memory, or under ZeRO-Infinity.

    .venv-peers-<version>/bin/python scripts/peers/train.py {memory,zero_infinity} <job> <scratch>

`job` is a folder with job.json, weights.npz and batches.npz; swap files and result.json go to the
folder `scratch`. Runs in the peers' environment, by scripts/peers/zero_infinity. The result has the
losses, each iteration's seconds, and what the process read from and wrote to block devices in it.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gpt import GPT

Step = Callable[[int], float]  # an iteration's number -> its loss, weights updated


def model_of(job: dict, folder: Path) -> GPT:
  """The job's model with the job's weights; every parameter must be given, in its shape."""
  model = GPT(job["model"])
  with np.load(folder / "weights.npz") as weights:
    values = {name: torch.from_numpy(weights[name]) for name in weights.files}
  model.load_state_dict(values, strict=True)
  return model


def groups_of(model: GPT, job: dict) -> list[dict]:
  """Matrices decay and vectors do not, as in ours."""
  matrices = [p for p in model.parameters() if p.ndim >= 2]
  vectors = [p for p in model.parameters() if p.ndim < 2]
  return [
    {"params": matrices, "weight_decay": job["adamw"]["weight_decay"]},
    {"params": vectors, "weight_decay": 0.0},
  ]


def adamw(job: dict) -> dict:
  return {
    "lr": job["learning_rates"][0],
    "betas": job["adamw"]["betas"],
    "eps": job["adamw"]["eps"],
  }


def set_rate(groups: list[dict], job: dict, iteration: int) -> None:
  for group in groups:
    group["lr"] = job["learning_rates"][iteration]


def in_memory(job: dict, folder: Path, scratch: Path, batches: list) -> Step:
  """Plain PyTorch: everything in memory, gradients summed in place, torch's fused AdamW."""
  del scratch
  model = model_of(job, folder)
  optimizer = torch.optim.AdamW(groups_of(model, job), **adamw(job), fused=True)

  def step(iteration: int) -> float:
    losses = []
    for pair in batches[iteration]:
      loss = model(*pair)
      (loss / len(batches[iteration])).backward()
      losses.append(loss.item())
    set_rate(optimizer.param_groups, job, iteration)
    optimizer.step()
    optimizer.zero_grad()
    return sum(losses) / len(losses)

  return step


def zero_infinity(job: dict, folder: Path, scratch: Path, batches: list) -> Step:
  """DeepSpeed's ZeRO-3, parameters and optimizer states on NVMe, with its own CPU AdamW."""
  alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
  os.environ |= alone | {"MASTER_PORT": str(job["port"]), "DS_ACCELERATOR": "cpu"}
  import deepspeed  # not above: it reads these variables when it is imported
  from deepspeed.ops.adam import DeepSpeedCPUAdam

  model, config = model_of(job, folder), job["deepspeed"]
  optimizer = DeepSpeedCPUAdam(groups_of(model, job), **adamw(job), adamw_mode=True)
  for part in ("offload_param", "offload_optimizer"):
    config["zero_optimization"][part]["nvme_path"] = str(scratch)
  # Parameters go to NVMe here, in float32. Left to `initialize`, they are stored in bfloat16, and
  # nothing says so, on CPUs without float16 arithmetic (0.19.8, Init._set_dtype drops the dtype).
  deepspeed.zero.Init(module=model, config_dict_or_path=config)
  engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

  def step(iteration: int) -> float:
    losses = []
    set_rate(engine.optimizer.param_groups, job, iteration)
    for pair in batches[iteration]:
      loss = engine(*pair)
      engine.backward(loss)
      engine.step()
      losses.append(loss.item())
    return sum(losses) / len(losses)

  return step


def block_io() -> dict[str, int]:
  """Bytes that this process has read from and written to block devices so far (Linux)."""
  with open("/proc/self/io") as file:
    counts = dict(line.split(": ") for line in file.read().splitlines())
  return {"ssd_read": int(counts["read_bytes"]), "ssd_written": int(counts["write_bytes"])}


def run(step: Step, iterations: int) -> dict:
  losses, seconds, moved = [], [], []
  for iteration in range(iterations):
    before, start = block_io(), time.perf_counter()
    losses.append(step(iteration))
    seconds.append(time.perf_counter() - start)
    moved.append({link: count - before[link] for link, count in block_io().items()})
    print(f"iteration {iteration}: loss {losses[-1]:.6f}, {seconds[-1]:.2f} s", flush=True)
  return {"losses": losses, "seconds_per_iteration": seconds, "bytes_per_iteration": moved}


def recycle_freed() -> None:
  """Has glibc keep what is freed, as our own programs do: all systems get the same memory."""
  mallopt = ctypes.CDLL(None).mallopt
  for parameter, value in ((-8, 1), (-4, 0), (-1, 2**31 - 1)):
    mallopt(parameter, value)


def main(engine: str, folder: Path, scratch: Path) -> None:
  job = json.loads((folder / "job.json").read_text())
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  with np.load(folder / "batches.npz") as stored:
    arrays = [torch.from_numpy(stored[name]).long() for name in ("inputs", "targets")]
  batches = [list(zip(*of_iteration, strict=True)) for of_iteration in zip(*arrays, strict=True)]
  step = {"memory": in_memory, "zero_infinity": zero_infinity}[engine](
    job, folder, scratch, batches
  )
  found = run(step, job["iterations"])
  found["versions"] = {"torch": torch.__version__}
  if engine == "zero_infinity":
    found["versions"]["deepspeed"] = sys.modules["deepspeed"].__version__
  (scratch / "result.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  recycle_freed()
  main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
