"""The parts, what matters most first, for a GPU and for a rehearsal on any machine."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from experiments.gpu_check.conformance import NAMES
from experiments.gpu_check.orchestrate import Part
from experiments.tables.decoding import METHODS
from experiments.tables.training import SCHEDULES
from models.config import PRESETS, ModelConfig

PROMPTS = 4
TRAINABLE = (
  "gpt-bytes-58m",
  "gpt-bytes-400m",
  "qwen3-1.7b",
  "qwen3-4b",
  "llama-3-8b",
  "gpt-65b",
  "gpt-175b",
)
DISK_BYTES = 28  # of a parameter: itself, in f32 again, two moments, all twice
HOST_BYTES = 8  # of a parameter, that the training may use
STREAMED_BYTES = 14 - HOST_BYTES  # of bfloat16 parameters and f32 states, at least
SSD_BYTES_PER_SECOND = 1e9  # what a GPU machine's disk is taken to read or write at least
ITERATIONS = 3
STARTING_SECONDS = 45  # of a run: compiling, and making and writing the first states
TRAINING_SECONDS = 150  # of the nine minutes


@dataclasses.dataclass(frozen=True)
class Scale:
  """What a run's sizes are: those that fill a GPU, or those that fit any machine."""

  conformance: tuple[str, ...]
  bandwidth: tuple[str, ...]
  prompt_bytes: int
  decoding: tuple[str, ...]
  rounds: tuple[str, ...]
  training: tuple[str, ...]


FULL = Scale(
  conformance=(f"--workers={min(8, os.cpu_count() or 1)}",),
  bandwidth=(),
  prompt_bytes=24_000,
  decoding=("--page_size=16", "--kv_budget=0.07", "--max_new_tokens=256", "--repeats=3"),
  rounds=(),
  training=(
    *("--micro_batches=16", "--micro_batch_size=2", "--sequence_length=1024"),
    *("--parameter_dtype=bfloat16", "--device_memory_budget=24GB", "--learning_rate=1e-4"),
  ),
)
QUICK = Scale(
  conformance=("--matching=lengths",),
  bandwidth=(
    *("--context=1024", "--rows=1", "--batch=1", "--kv_heads=2", "--head_size=64"),
    *("--runs_a_call=2", "--rounds=2", "--dtype=float32"),
  ),
  prompt_bytes=600,
  decoding=("--draft_length=3", "--kv_floor=64", "--max_new_tokens=16", "--repeats=1"),
  rounds=(
    *("--model=bytes-tiny", "--context=600", "--batch_size=2", "--dtype=float32"),
    *("--depth=1", "--depth=2", "--methods=specattn,draft_length=3,page_size=16"),
  ),
  training=("--micro_batches=2", "--micro_batch_size=1", "--sequence_length=32"),
)
CHECKPOINT = "experiments/checkpoints/retrieval"


def model_parameters(config: ModelConfig) -> int:
  return config.layers * config.block_parameters + config.resident_parameters


def largest_model(folder: Path, minutes: float) -> str:
  """The largest preset whose states fit the folder's disk, and whose two runs fit their part of
  the check's minutes.

  An iteration is taken to read and write what the host does not hold once, in either order.
  """
  there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
  free = shutil.disk_usage(there).free
  seconds = TRAINING_SECONDS * minutes / 9
  fits = [TRAINABLE[0]]
  for name in TRAINABLE:
    count = model_parameters(PRESETS[name])
    iteration = 2 * STREAMED_BYTES * count / SSD_BYTES_PER_SECOND
    took = len(SCHEDULES) * (STARTING_SECONDS + ITERATIONS * iteration)
    if DISK_BYTES * count < free and took < seconds:
      fits.append(name)
  return max(fits, key=lambda name: model_parameters(PRESETS[name]))


def prompt_files(folder: Path) -> list[Path]:
  return [folder / "prompts" / f"prompt{i}.txt" for i in range(PROMPTS)]


def parts(folder: Path, scale: Scale, model: str) -> list[Part]:
  """What is run, in its order; the runs go to folders of `folder` that the tables know."""
  return [
    Part(
      "conformance",
      "Every kernel against its reference, on this device.",
      100,
      tuple(_conformance(folder, scale, name) for name in NAMES),
    ),
    Part(
      "bandwidth",
      "The kernels against copy bandwidth and other libraries.",
      80,
      (_module("gpu_check.bandwidth", folder / "bandwidth", *scale.bandwidth),),
    ),
    Part(
      "rounds",
      "Rounds of large models' shapes, of the batch that fills the memory.",
      130,
      (_module("round_costs", folder / "rounds", *scale.rounds),),
    ),
    Part(
      "training",
      f"{model} from SSD, in both orders.",
      TRAINING_SECONDS,
      # The vertical one first: it takes less, and the other may be ended at the limit.
      tuple(_training(folder / order, order, scale, model) for order in reversed(SCHEDULES)),
      # Trying kernels for every product would take longer than the runs.
      {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"},
    ),
    Part(
      "decoding",
      f"The kept model, decoded with: {', '.join(METHODS)}.",
      60,
      tuple(_decoding(folder, scale)),
    ),
  ]


def _module(name: str, workdir: Path, *flags: str) -> tuple[str, ...]:
  return ("-m", f"experiments.{name}", f"--workdir={workdir}", *flags)


def _conformance(folder: Path, scale: Scale, name: str) -> tuple[str, ...]:
  flags = (f"--implementation={name}", *scale.conformance)
  return _module("gpu_check.conformance", folder / f"conformance_{name}", *flags)


def _decoding(folder: Path, scale: Scale) -> Iterator[tuple[str, ...]]:
  """Each method with all prompts as one batch, held against the autoregressive texts."""
  shared = [f"--checkpoint={CHECKPOINT}", f"--batch_size={PROMPTS}", *scale.decoding]
  shared += [f"--prompt_file={path}" for path in prompt_files(folder)]
  for method in METHODS:
    flags = [*shared, f"--method={method}"]
    if method != "autoregressive":
      flags.append(f"--compare_with={folder / 'decode_autoregressive'}")
    yield _module("generate", folder / f"decode_{method}", *flags)


def _training(workdir: Path, schedule: str, scale: Scale, model: str) -> tuple[str, ...]:
  """With less host memory than the states take, so that they stream."""
  budget = model_parameters(PRESETS[model]) * HOST_BYTES
  flags = (f"--model={model}", f"--schedule={schedule}", f"--iterations={ITERATIONS}")
  limits = (
    f"--host_memory_budget={budget}",
    "--evaluation_batches=0",
    "--warmup=1",
    "--nosave_model",
  )
  return _module("train", workdir, *flags, *limits, *scale.training)
