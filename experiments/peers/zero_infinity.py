"""DeepSpeed's configuration for ZeRO-Infinity on a machine without a GPU, fair and right.

Defaults of DeepSpeed 0.19.8 that would make the comparison wrong are set here, each with its
reason; everything else keeps its default.
"""

from typing import Any

from models.config import ModelConfig

# What could not be switched on, or did not help, on the CPU accelerator; the table repeats it.
NOT_SWITCHED_ON = (
  "read-ahead of parameters (it asserts: swap buffer already assigned, or not enough buffers)",
  "copies beside computations (its CPU accelerator has no streams)",
)

_ALIGNMENT = 1024  # elements: DeepSpeed's direct I/O wants multiples of 1,024 bytes
_PARAMETER_BUFFERS = 24  # of the largest matrix each
_OPTIMIZER_BUFFERS = 12  # of a sub-group each; fewer fail with pipelined swapping
_FLOAT32 = 4


def configuration(
  config: ModelConfig, *, micro_batch_size: int, micro_batches: int
) -> dict[str, Any]:
  """The dict that deepspeed.initialize takes, but for where its swap files go (`nvme_path`)."""
  unit = config.block_parameters  # elements, as everything below but buffers of direct I/O
  return {
    "train_micro_batch_size_per_gpu": micro_batch_size,
    "gradient_accumulation_steps": micro_batches,
    "gradient_clipping": 0.0,  # its default clips to a norm of 1
    "steps_per_print": 10**9,
    "zero_optimization": {
      "stage": 3,
      "sub_group_size": unit,
      "stage3_prefetch_bucket_size": 0,  # read-ahead asserts, see NOT_SWITCHED_ON
      "stage3_max_live_parameters": 2 * unit,
      "stage3_max_reuse_distance": unit,
      "offload_param": {
        "device": "nvme",
        "max_in_cpu": 0,  # its default of 1e9 elements keeps a small model's parameters off the SSD
        "buffer_count": _PARAMETER_BUFFERS,
        "buffer_size": _largest(config),
      },
      "offload_optimizer": {
        "device": "nvme",
        "buffer_count": _OPTIMIZER_BUFFERS,
        "pipeline_read": True,
        "pipeline_write": True,
      },
    },
    "aio": {"block_size": 2**20, "queue_depth": 8, "overlap_events": True},
  }


def buffer_bytes(config: ModelConfig) -> int:
  """Host memory of its swap buffers alone, in bytes: ours is given as much."""
  optimizer = _OPTIMIZER_BUFFERS * (config.block_parameters + _ALIGNMENT)
  return _FLOAT32 * (_PARAMETER_BUFFERS * _largest(config) + optimizer)


def device_bytes(config: ModelConfig, *, micro_batch_size: int, sequence_length: int) -> int:
  """What it holds beside the swap buffers, in bytes: all gradients, the units in use, a
  micro-batch's boundaries.

  Ours is given as much for its device, and room for what it keeps there while ZeRO-Infinity streams
  it: embedding and head, their moments and gradients.
  """
  boundary = micro_batch_size * sequence_length * config.width
  gradients = config.layers * config.block_parameters + config.resident_parameters
  resident = 5 * config.resident_parameters
  return _FLOAT32 * (gradients + 2 * config.block_parameters + config.layers * boundary + resident)


def _largest(config: ModelConfig) -> int:
  """Elements of the largest matrix, as its direct I/O rounds them up."""
  rows = max(config.mlp_width, config.vocabulary, config.context)
  return -(-rows * config.width // _ALIGNMENT) * _ALIGNMENT
