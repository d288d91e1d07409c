"""Where the slices of each kind lie: in a unit's flat vector, and in the buffers that hold them."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from schedules.steps import Kind, Slice, Tier


class Run(NamedTuple):
  """A stretch of a unit's vector, or of several stacked ones, and the memory that holds it."""

  start: int
  array: np.ndarray  # [..., elements]

  @property
  def stop(self) -> int:
    return self.start + self.array.shape[-1]


@dataclasses.dataclass(frozen=True)
class _Piece:
  start: int  # in the vector
  stop: int
  offset: int  # in the buffer of its home


class Cuts:
  """A host buffer holds the slices of one kind that have one home, side by side.

  `vectors` are the elements of each slice, in the vector's order: those of `Pools`.
  """

  def __init__(self, vectors: Mapping[Kind, Mapping[Slice, int]]):
    self._pieces: dict[tuple[Kind, Slice], _Piece] = {}
    self._lengths: dict[tuple[Kind, Tier | None], int] = {}
    for kind in vectors:
      start = 0
      for piece, elements in vectors[kind].items():
        offset = self._lengths.get((kind, piece.home), 0)
        self._pieces[kind, piece] = _Piece(start, start + elements, offset)
        self._lengths[kind, piece.home] = offset + elements
        start += elements

  def length(self, kind: Kind, home: Tier | None) -> int:
    """Elements of a buffer for the slices with a home there."""
    return self._lengths.get((kind, home), 0)

  def view(self, kind: Kind, piece: Slice, buffer: np.ndarray) -> np.ndarray:
    """A slice in the buffer that holds it; buffers are [..., elements]."""
    at = self._pieces[kind, piece]
    return buffer[..., at.offset : at.offset + at.stop - at.start]

  def start(self, kind: Kind, piece: Slice) -> int:
    """First element of a slice in the vector."""
    return self._pieces[kind, piece].start

  def streamed(self, kind: Kind, vector: np.ndarray) -> np.ndarray:
    """Of a whole vector, what a ring's buffer holds: the slices on SSD, which lie side by side."""
    at = [p.start for (k, piece), p in self._pieces.items() if (k, piece.home) == (kind, Tier.SSD)]
    return vector[..., min(at) : min(at) + self.length(kind, Tier.SSD)]

  def runs(self, kind: Kind, slices: Iterable[Slice], buffer: np.ndarray) -> list[Run]:
    """What slices in one buffer hold of the vector; neighbours in both make one run."""
    out: list[Run] = []
    end = -1
    for piece in slices:
      at = self._pieces[kind, piece]
      begin, stop = at.offset, at.offset + at.stop - at.start
      if out and out[-1].stop == at.start and begin == end:
        first = out.pop()
        begin -= first.array.shape[-1]
        out.append(Run(first.start, buffer[..., begin:stop]))
      else:
        out.append(Run(at.start, buffer[..., begin:stop]))
      end = stop
    return out


def together(runs_of_kinds: Iterable[list[Run]]) -> list[tuple[Run, ...]]:
  """Cuts runs that cover the same part of a vector wherever one of them is cut."""
  kinds = [sorted(runs, key=lambda run: run.start) for runs in runs_of_kinds]
  edges = sorted({edge for runs in kinds for run in runs for edge in (run.start, run.stop)})
  spans = itertools.pairwise(edges)
  return [tuple(_within(runs, start, stop) for runs in kinds) for start, stop in spans]


def _within(runs: list[Run], start: int, stop: int) -> Run:
  run = next(run for run in runs if run.start <= start and stop <= run.stop)
  return Run(start, run.array[..., start - run.start : stop - run.start])
