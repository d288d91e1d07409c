"""The cases that every implementation is held to, and the shapes that kernels are compiled for."""

from typing import NamedTuple


class Case(NamedTuple):
  """A cache of `slots`; B = len(lengths) sequences, filled from starts to lengths; T new rows."""

  name: str
  heads: int
  kv_heads: int
  count: int  # T, new rows
  slots: int
  head_size: int
  lengths: tuple[int, ...]
  starts: tuple[int, ...]
  rows: tuple[int, ...]
  page_size: int
  dtype: str = "float32"


CONFORMANCE = (
  Case("one row, no mass", 4, 4, 1, 256, 64, (256, 100), (0, 0), (), 1),
  Case("lengths around a page", 2, 1, 1, 256, 64, (0, 1, 63, 64, 65), (0,) * 5, (0,), 64),
  Case("lengths around a page of 16", 2, 2, 1, 64, 64, (0, 1, 15, 16, 17), (0,) * 5, (0,), 16),
  Case("lengths around a page of 32", 2, 1, 2, 64, 64, (0, 1, 31, 32, 33), (0,) * 5, (0, -1), 32),
  Case("lengths around a token", 2, 1, 1, 64, 64, (0, 1, 2), (0,) * 3, (0,), 1),
  Case("a head of 128", 4, 2, 3, 64, 128, (64, 30), (0, 0), (0, -1), 16),
  Case("a head of 256, the most rows", 4, 1, 16, 64, 256, (64, 16), (0, 0), (0, -1), 32),
  Case("lengths around a chunk", 2, 2, 3, 512, 64, (127, 128, 129, 511), (0,) * 4, (0, -1), 16),
  Case("grouped heads, first and last row", 8, 2, 5, 512, 64, (512, 203), (0, 0), (0, -1), 32),
  Case("every row, a token a page", 4, 2, 3, 256, 64, (256, 77), (0, 0), (0, 1, 2), 1),
  Case("right-aligned scratch", 4, 2, 1, 256, 64, (256, 256, 256), (0, 129, 255), (), 1),
  Case("starts inside pages", 4, 4, 2, 256, 64, (200, 256), (17, 100), (1,), 16),
  Case("nothing between start and length", 2, 2, 1, 256, 64, (0, 128), (0, 128), (0,), 64),
  Case("fewer slots filled than rows", 2, 2, 4, 256, 64, (0, 2), (0, 0), (0, -1), 64),
  Case("the most rows of a group", 8, 2, 16, 64, 64, (64, 40), (0, 0), (0, -1), 16),
  Case("a tile of 128 rows", 8, 1, 16, 64, 64, (64, 40), (0, 0), (0, -1), 16),
  Case("float16", 4, 2, 2, 64, 64, (60, 20), (0, 0), (0, -1), 16, "float16"),
  Case("a head of 32, pages of 8", 4, 2, 2, 64, 32, (60, 20), (0, 0), (0, -1), 8),
  Case("pages of 2", 2, 2, 1, 64, 64, (60, 3), (0, 0), (0,), 2),
  Case("pages of 4", 2, 2, 1, 64, 64, (60, 3), (0, 0), (0,), 4),
  Case("an odd cache", 2, 1, 2, 205, 64, (205, 31), (0, 3), (0,), 5),
  Case("a long cache", 2, 1, 2, 1536, 64, (1536, 513, 1000, 30), (0, 511, 600, 10), (0, -1), 16),
  Case("bfloat16, one row alone", 1, 1, 1, 1536, 64, (1000, 513), (0, 3), (0,), 16, "bfloat16"),
  Case("a prefill chunk", 2, 2, 48, 256, 64, (256, 48), (0, 0), (-1,), 16),
  Case("bfloat16", 8, 2, 4, 512, 64, (512, 200), (0, 0), (0, -1), 64, "bfloat16"),
  Case("bfloat16, small heads' pages", 4, 2, 2, 256, 128, (250,), (0,), (0, -1), 16, "bfloat16"),
  Case("bfloat16, a wide head", 2, 1, 9, 256, 256, (256,), (5,), (0,), 32, "bfloat16"),
)

# Verification of a few rows. Llama-3-8B (arXiv 2407.21783) and Qwen3-8B (arXiv 2505.09388) share 32
# query heads and 8 key/value heads of 128; Gemma-2-9B (arXiv 2408.00118) has 16 and 8 of 256;
# gpt-oss-20b (its model card) 64 and 8 of 64.
COMPILED = (
  Case("llama-3-8b", 32, 8, 4, 32_768, 128, (32_768,) * 4, (0,) * 4, (0, -1), 64, "bfloat16"),
  Case("gpt-oss-20b", 64, 8, 4, 32_768, 64, (32_768,) * 4, (0,) * 4, (0, -1), 16, "bfloat16"),
  Case("qwen3-8b x 64", 32, 8, 7, 16_384, 128, (16_384,) * 64, (0,) * 64, (0, -1), 16, "bfloat16"),
  Case("gemma-2-9b", 16, 8, 4, 8192, 256, (8192,) * 4, (0,) * 4, (), 32, "bfloat16"),
  Case("llama-3-8b, float32", 32, 8, 4, 8192, 128, (8192,) * 4, (0,) * 4, (0, -1), 16),
  Case("gpt-oss-20b, float32, tokens", 64, 8, 2, 8192, 64, (8192,) * 4, (0,) * 4, (0, -1), 1),
)
