"""What a plan takes a unit to cost on a stated machine: seconds by its operations, and memory."""

from experiments import hardware
from models.config import ModelConfig
from offload.programs import Shape
from schedules.pools import Sizes
from schedules.simulate import Profile
from schedules.steps import Kind


def profile_of(
  machine: hardware.Hardware, config: ModelConfig, shape: Shape, sizes: Sizes
) -> Profile:
  """Computation priced by its operations: dense attention, nothing saved by causality."""
  tokens = shape.sequences * shape.tokens
  forward = tokens * (2 * elements(sizes) + 4 * shape.tokens * config.heads * config.head_size)
  head = 6 * tokens * config.width * config.vocabulary
  return machine.profile(forward, 3 * forward + head, sizes.widths[Kind.STATES])


def workspace(config: ModelConfig, shape: Shape) -> int:
  """Bytes that a unit's backward pass takes beside the pools, estimated without compiling.

  Activations of one recomputed block (arXiv 2205.05198, equation 1) or the head's logits, whichever
  are more, and the first unit's input and its gradient.
  """
  b, s, h = shape.sequences, shape.tokens, config.width
  block = s * b * h * 34 + 5 * config.heads * s * s * b
  logits = 8 * b * s * config.vocabulary
  return max(block, logits) + 4 * b * s * h


def elements(sizes: Sizes) -> int:
  """Of a unit's vector."""
  return sum(sizes.elements.values())
