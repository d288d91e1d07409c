"""The parts, what matters most first, for a GPU and for a rehearsal on any machine."""

import dataclasses
import shutil
from pathlib import Path

from experiments.gpu_check.conformance import NAMES
from experiments.gpu_check.orchestrate import Part
from experiments.tables.decoding import METHODS
from experiments.tables.training import SCHEDULES
from models.config import PRESETS, ModelConfig

PROMPTS = 4
TRAINABLE = ("gpt-bytes-58m", "gpt-bytes-400m", "qwen3-4b", "llama-3-8b", "gpt-65b", "gpt-175b")
DISK_BYTES = 24  # of a parameter: in f32 itself and two moments, all twice
SSD_BYTES_PER_SECOND = 2e9  # what a GPU machine's disk is taken to read or write at least
ITERATIONS = 3


@dataclasses.dataclass(frozen=True)
class Scale:
  """What a run's sizes are: those that fill a GPU, or those that fit any machine."""

  conformance: tuple[str, ...]
  bandwidth: tuple[str, ...]
  decoder: tuple[str, ...]  # flags of train, for the model that is decoded with
  prompt_bytes: int
  decoding: tuple[str, ...]
  training: tuple[str, ...]


FULL = Scale(
  conformance=(),
  bandwidth=(),
  decoder=(
    *("--model=bytes-25m", "--parameter_dtype=bfloat16", "--schedule=in_memory_ascending"),
    *("--micro_batches=1", "--micro_batch_size=16", "--sequence_length=1024"),
    *("--position_span=24576", "--iterations=300", "--learning_rate=1e-3"),
  ),
  prompt_bytes=24_000,
  decoding=("--draft_length=6", "--kv_budget=0.07", "--max_new_tokens=256", "--repeats=3"),
  training=("--micro_batches=8", "--micro_batch_size=4", "--sequence_length=1024"),
)
QUICK = Scale(
  conformance=("--matching=lengths",),
  bandwidth=(
    *("--context=1024", "--rows=1", "--batch=1", "--kv_heads=2", "--head_size=64"),
    *("--runs_a_call=2", "--rounds=2", "--dtype=float32"),
  ),
  decoder=("--model=bytes-tiny", "--iterations=3", "--sequence_length=64"),
  prompt_bytes=600,
  decoding=("--draft_length=3", "--kv_floor=64", "--max_new_tokens=16", "--repeats=1"),
  training=("--micro_batches=2", "--micro_batch_size=1", "--sequence_length=32"),
)


def model_parameters(config: ModelConfig) -> int:
  return config.layers * config.block_parameters + config.resident_parameters


def largest_model(folder: Path, seconds: float) -> str:
  """The largest preset whose states fit the folder's disk, and whose two runs fit the time.

  A vertical iteration reads and writes the states once; the horizontal one is taken to double that.
  """
  there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
  free = shutil.disk_usage(there).free
  fits = [TRAINABLE[0]]
  for name in TRAINABLE:
    count = model_parameters(PRESETS[name])
    took = ITERATIONS * 3 * 2 * 12 * count / SSD_BYTES_PER_SECOND
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
      160,
      tuple(_conformance(folder, scale, name) for name in NAMES),
    ),
    Part(
      "bandwidth",
      "The kernels against copy bandwidth and other libraries.",
      130,
      (_module("gpu_check.bandwidth", folder / "bandwidth", *scale.bandwidth),),
    ),
    Part(
      "decoding",
      f"A small model, trained and then decoded with: {', '.join(METHODS)}.",
      130,
      _decoding(folder, scale),
    ),
    Part(
      "training",
      f"{model} from SSD, in both orders.",
      100,
      # The vertical one first: it takes less, and the other may be ended at the limit.
      tuple(_training(folder / order, order, scale, model) for order in reversed(SCHEDULES)),
    ),
  ]


def _module(name: str, workdir: Path, *flags: str) -> tuple[str, ...]:
  return ("-m", f"experiments.{name}", f"--workdir={workdir}", *flags)


def _conformance(folder: Path, scale: Scale, name: str) -> tuple[str, ...]:
  flags = (f"--implementation={name}", *scale.conformance)
  return _module("gpu_check.conformance", folder / f"conformance_{name}", *flags)


def _decoding(folder: Path, scale: Scale) -> tuple[tuple[str, ...], ...]:
  """First the model, which lies in memory, then the methods; `--batch_size` takes all prompts."""
  decoder = folder / "decoder"
  shared = [f"--checkpoint={decoder / 'checkpoint'}", f"--batch_size={PROMPTS}", *scale.decoding]
  shared += [f"--prompt_file={path}" for path in prompt_files(folder)]
  methods = []
  for method in METHODS:
    flags = [*shared, f"--method={method}"]
    if method != "autoregressive":
      flags.append(f"--compare_with={folder / 'decode_autoregressive'}")
    methods.append(_module("generate", folder / f"decode_{method}", *flags))
  return (_module("train", decoder, *scale.decoder), *methods)


def _training(workdir: Path, schedule: str, scale: Scale, model: str) -> tuple[str, ...]:
  """With less host memory than the states take, so that they stream."""
  budget = model_parameters(PRESETS[model]) * 8
  flags = (f"--model={model}", f"--schedule={schedule}", f"--iterations={ITERATIONS}")
  limits = (f"--host_memory_budget={budget}", "--evaluation_batches=0", "--warmup=1")
  return _module("train", workdir, *flags, *limits, *scale.training)
