"""The cases that every implementation is held to."""

from typing import NamedTuple


class Case(NamedTuple):
  """`counts` of `pages`, of which `limits` are eligible, into `capacity` places."""

  name: str
  sets: int
  pages: int
  limits: tuple[int, ...]
  counts: tuple[int, ...]
  capacity: int


CONFORMANCE = (
  Case("ragged limits and counts", 1, 40, (40, 17, 3), (8, 5, 8), 8),
  Case("a set a head", 4, 33, (33, 20), (6, 1), 7),
  Case("nothing eligible, nothing wanted", 1, 16, (0, 16), (4, 0), 4),
  Case("more places than pages", 2, 5, (5, 2), (9, 9), 9),
  Case("everything", 1, 12, (12,), (12,), 12),
)
