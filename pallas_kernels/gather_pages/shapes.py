"""The cases that every implementation is held to."""

from typing import NamedTuple


class Case(NamedTuple):
  """`selected` pages of caches of `slots`, in one set or (`sets` = `kv_heads`) a set a head."""

  name: str
  kv_heads: int
  sets: int
  slots: int
  head_size: int
  page_size: int
  selected: int
  dtype: str = "float32"


CONFORMANCE = (
  Case("tokens, one set", 4, 1, 64, 8, 1, 13),
  Case("tokens, a set a head", 4, 4, 64, 8, 1, 13),
  Case("pages, one set", 2, 1, 128, 8, 16, 5),
  Case("pages, a set a head", 2, 2, 192, 8, 64, 3),
  Case("nothing", 2, 1, 64, 8, 16, 0),
  Case("bfloat16", 2, 2, 128, 8, 32, 2, "bfloat16"),
)
