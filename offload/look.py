"""A look at a store that touches nothing, not even where a run is at work in it."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from offload import manifest, snapshot
from offload.checksums import Corrupt
from offload.generations import check
from offload.lock import Lock
from offload.snapshot import Commit, Record
from offload.store import StoreView


@dataclasses.dataclass(frozen=True)
class Look:
  """What a store holds.

  Attributes:
    configuration: of the run, by flag.
    commits: that can be read, the oldest first.
    arrays: by name and generation, of every commit.
    other: arrays that no commit names: what a run is at work on, or has left.
    damaged: a sentence for each file that is not as it was written.
    in_use: whether a run holds the store.
    bytes: of all arrays.
  """

  configuration: Mapping[str, Any]
  commits: list[Commit]
  arrays: dict[str, Record]
  other: list[str]
  damaged: list[str]
  in_use: bool
  bytes: int


def look(folder: pathlib.Path) -> Look:
  """Reads all that a store's commits name and holds it against the checksums.

  Raises:
    ValueError: there is no store, or (`Corrupt`) its manifest is not as it was written.
  """
  found = manifest.read(folder)
  while True:
    files = snapshot.files(folder)
    seen = _look(folder, found)
    if not seen.damaged or snapshot.files(folder) == files:
      return seen
    # A run has made another commit meanwhile, and writes to what the one before it named.


def _look(folder: pathlib.Path, found: manifest.Manifest) -> Look:
  commits, unreadable = snapshot.sorted_out(folder)
  arrays = {f"{n}.{r.generation}": r for commit in commits for n, r in commit.arrays.items()}
  damaged = [str(error) for error in unreadable.values()]
  with contextlib.closing(StoreView(folder, found)) as view:
    for name, record in arrays.items():
      try:
        check(view, name, record)
      except (Corrupt, OSError) as error:
        damaged.append(str(error))
  other = sorted(set(view.names) - set(arrays))
  in_use = Lock.is_held(folder)
  return Look(found.configuration, commits, arrays, other, damaged, in_use, view.bytes)
