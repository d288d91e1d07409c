"""The cases that every implementation is held to."""

from typing import NamedTuple


class Case(NamedTuple):
  """T rows at `positions` of caches of `slots`."""

  name: str
  kv_heads: int
  count: int
  slots: int
  head_size: int
  positions: tuple[int, ...]
  dtype: str = "float32"


CONFORMANCE = (
  Case("ragged", 2, 3, 32, 8, (0, 5, 29)),
  Case("past the end", 2, 4, 32, 8, (30, 31, 32, 40)),
  Case("one row", 1, 1, 17, 4, (16, 3)),
  Case("bfloat16", 2, 3, 32, 8, (1, 9), "bfloat16"),
)
