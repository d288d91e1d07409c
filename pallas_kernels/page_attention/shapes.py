"""The cases that every implementation is held to, and the shapes that kernels are compiled for."""

from typing import NamedTuple


class Case(NamedTuple):
  """B = len(lengths) sequences; `selected[b]` of `places` pages are real, the rest is padding."""

  name: str
  heads: int
  kv_heads: int
  sets: int
  count: int  # T, new rows
  slots: int
  head_size: int
  lengths: tuple[int, ...]
  tail_starts: tuple[int, ...]
  tail: int
  page_size: int
  places: int
  selected: tuple[int, ...]
  dtype: str = "float32"


CONFORMANCE = (
  Case("tokens, one set", 4, 2, 1, 1, 256, 64, (200, 256), (195, 250), 8, 1, 40, (40, 33)),
  Case("tokens, a set a head", 8, 2, 2, 3, 256, 64, (200, 77), (195, 70), 9, 1, 70, (70, 3)),
  Case("pages of 16", 4, 2, 1, 2, 256, 64, (249, 100), (240, 90), 17, 16, 5, (5, 2)),
  Case("pages of 32", 4, 4, 4, 1, 512, 64, (512, 300), (480, 290), 33, 32, 6, (6, 5)),
  Case("pages of 64", 8, 2, 1, 5, 512, 64, (450, 511), (448 - 64, 500), 80, 64, 4, (4, 0)),
  Case("pages of 64, a set a head", 8, 2, 2, 1, 512, 64, (450, 70), (448, 64), 64, 64, 3, (3, 1)),
  Case(
    *("lengths around a page", 2, 1, 1, 1, 64, 64, (1, 15, 16, 17), (0, 0, 15, 16)),
    *(16, 16, 2, (0, 0, 0, 1)),
  ),
  Case("a head of 128", 4, 2, 2, 2, 128, 128, (128, 50), (96, 48), 32, 16, 3, (3, 2)),
  Case(
    *("float16, pages of 8", 4, 2, 2, 2, 64, 64, (60, 30), (56, 24), 8, 8, 3, (3, 2)),
    dtype="float16",
  ),
  Case("a head of 32", 4, 2, 1, 2, 64, 32, (60, 30), (48, 16), 16, 16, 2, (2, 1)),
  Case("a tile of 128 rows", 8, 1, 1, 16, 64, 64, (60, 40), (32, 16), 32, 16, 2, (2, 1)),
  Case("an odd cache", 2, 1, 1, 2, 205, 64, (205, 31), (200, 20), 11, 5, 3, (3, 2)),
  Case("empty selection", 4, 2, 1, 2, 256, 64, (100, 2), (90, 0), 12, 16, 4, (0, 0)),
  Case("no place for a page", 4, 2, 1, 2, 256, 64, (100, 2), (90, 0), 12, 16, 0, (0, 0)),
  Case(
    "a tail against the cache's end", 2, 2, 1, 1, 256, 64, (256, 255), (255, 192), 64, 64, 2, (2, 2)
  ),
  Case("bfloat16", 8, 2, 2, 4, 512, 64, (500, 131), (448, 128), 64, 64, 4, (4, 1), "bfloat16"),
  Case("bfloat16, small pages", 4, 2, 1, 2, 256, 128, (250,), (240,), 12, 16, 6, (5,), "bfloat16"),
  Case("bfloat16, wide heads", 4, 2, 1, 1, 256, 256, (250,), (224,), 32, 32, 3, (3,), "bfloat16"),
)

# Drafting one token with 7% of 32k tokens (vegas' benchmark ratio) under the shapes that
# `attention_with_mass.shapes` cites.
_ENDS = {"lengths": (32_768,) * 4, "tail_starts": (32_704,) * 4, "tail": 64}
COMPILED = (
  Case(
    *("llama-3-8b", 32, 8, 1, 1, 32_768, 128),
    **_ENDS, page_size=64, places=36, selected=(36,) * 4, dtype="bfloat16",
  ),
  Case(
    *("gpt-oss-20b", 64, 8, 8, 1, 32_768, 64),
    **_ENDS, page_size=16, places=144, selected=(144,) * 4, dtype="bfloat16",
  ),
  Case(
    *("llama-3-8b, float32, tokens", 32, 8, 1, 1, 32_768, 128),
    **_ENDS, page_size=1, places=2304, selected=(2304,) * 4,
  ),
)  # fmt: skip
