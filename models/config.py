"""A model's shape, and the shapes that have a name."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The shape of a decoder-only transformer.

  `family` fixes what the papers' models differ in: `gpt` has LayerNorm, learned positions, GELU and
  biases; `llama` has RMSNorm, rotary positions, SwiGLU, no biases, and may group its query heads.
  """

  family: Literal["gpt", "llama"]
  layers: int
  width: int
  heads: int
  kv_heads: int
  head_size: int
  mlp_width: int
  vocabulary: int
  context: int  # the most tokens of a sequence, and the rows of a table of learned positions
  rope_theta: float = 10_000.0
  norm_epsilon: float = 1e-5
  qk_norm: bool = False  # RMSNorm over each query's and key's head (Qwen3)
  tied_embeddings: bool = False
  dropout: float = 0.0  # on both residual branches of a block

  def __post_init__(self):
    if self.family not in ("gpt", "llama"):
      raise ValueError(f"family must be gpt or llama, not {self.family!r}.")
    if self.heads % self.kv_heads:
      raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads.")
    if self.family == "llama" and self.head_size % 2:
      raise ValueError(f"rotary positions need an even head size, not {self.head_size}.")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout must be in [0, 1), not {self.dropout}.")

  @property
  def group(self) -> int:
    """Query heads that share one key/value head."""
    return self.heads // self.kv_heads

  @property
  def block_parameters(self) -> int:
    """Elements of one block, biases and norms included."""
    attention = self.width * self.head_size * (2 * self.heads + 2 * self.kv_heads)
    if self.family == "gpt":
      biases = self.head_size * (self.heads + 2 * self.kv_heads) + self.width
      return attention + biases + self.mlp_width * (2 * self.width + 1) + self.width * 5
    return (
      attention
      + 3 * self.width * self.mlp_width
      + 2 * self.width
      + 2 * self.head_size * self.qk_norm
    )

  @property
  def resident_parameters(self) -> int:
    """Elements of the embedding, the last norm and the head."""
    tables = self.vocabulary * self.width * (1 if self.tied_embeddings else 2)
    if self.family == "gpt":
      return tables + self.context * self.width + 2 * self.width
    return tables + self.width

  def kv_bytes(self, itemsize: int) -> int:
    """Bytes of the KV cache that one token takes over all layers."""
    return 2 * self.layers * self.kv_heads * self.head_size * itemsize


def _gpt(layers: int, width: int, heads: int, vocabulary: int, context: int) -> ModelConfig:
  return ModelConfig(
    "gpt", layers, width, heads, heads, width // heads, 4 * width, vocabulary, context
  )


def _bytes(family: Literal["gpt", "llama"], layers: int, width: int, heads: int) -> ModelConfig:
  """Byte-level models: a vocabulary of 256, heads not grouped, contexts for long decoding."""
  mlp = 4 * width if family == "gpt" else 8 * width // 3 // 32 * 32
  return ModelConfig(family, layers, width, heads, heads, width // heads, mlp, 256, 32_768)


_QWEN3 = {"rope_theta": 1e6, "norm_epsilon": 1e-6, "qk_norm": True}

PRESETS = {
  "bytes-tiny": _bytes("llama", layers=3, width=32, heads=2),
  "bytes-retrieval": ModelConfig(  # 1.05M parameters, most of its decoding time in attention
    "llama", 4, 128, 4, 4, 64, 320, 256, 32_768, rope_theta=1e6, tied_embeddings=True
  ),
  "bytes-3m": _bytes("llama", layers=4, width=256, heads=8),
  "bytes-10m": _bytes("llama", layers=6, width=384, heads=8),
  "bytes-25m": _bytes("llama", layers=8, width=512, heads=8),  # heads of 64, as GPU kernels want
  "bytes-13m": _bytes("llama", layers=16, width=256, heads=8),  # many small units, for timing
  "gpt-bytes-tiny": _bytes("gpt", layers=3, width=32, heads=2),
  "gpt-bytes-3m": _bytes("gpt", layers=4, width=256, heads=8),
  # Byte-level, for timing against other systems; names tell all parameters (58.1M and 396.8M).
  "gpt-bytes-58m": _gpt(layers=18, width=512, heads=8, vocabulary=256, context=2048),
  "gpt-bytes-400m": _gpt(layers=20, width=1280, heads=20, vocabulary=256, context=2048),
  # GPT-65B and GPT-175B of arXiv 2512.17570: 12 * layers * width^2 gives the names.
  "gpt-65b": _gpt(layers=80, width=8192, heads=64, vocabulary=50_257, context=2048),
  "gpt-175b": _gpt(layers=96, width=12_288, heads=96, vocabulary=50_257, context=2048),
  "llama-3-8b": ModelConfig("llama", 32, 4096, 32, 8, 128, 14_336, 128_256, 8192, rope_theta=5e5),
  "qwen3-1.7b": ModelConfig(
    "llama", 28, 2048, 16, 8, 128, 6144, 151_936, 40_960, tied_embeddings=True, **_QWEN3
  ),
  "qwen3-4b": ModelConfig(
    "llama", 36, 2560, 32, 8, 128, 9728, 151_936, 40_960, tied_embeddings=True, **_QWEN3
  ),
  "qwen3-8b": ModelConfig("llama", 36, 4096, 32, 8, 128, 12_288, 151_936, 40_960, **_QWEN3),
}
