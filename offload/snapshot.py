"""Commits: states that training resumes from.

A commit is one small file, `commits/<iteration>.json`, that names the generation and the checksums
of every array that belongs to the state. It is written beside its place, forced to the disk and
renamed, after all that it names is there: either the whole state is current or none of it. Until
the next commit no array that it names is written again; the first write after it goes to another
generation of the array.
"""

import dataclasses
import json
import pathlib
import zlib
from typing import Any

from offload.checksums import Corrupt
from offload.durable import BESIDE, make_folders, sync_folders, write_whole

FOLDER = "commits"


@dataclasses.dataclass(frozen=True)
class Record:
  """One array of a commit: which of its generations, and what it holds."""

  generation: int
  elements: int
  dtype: str
  checksums: list[int]  # of its blocks
  metadata: int  # checksum of the array's own metadata file


@dataclasses.dataclass(frozen=True)
class Commit:
  """The state after `iteration` iterations; nothing is pending in it.

  Attributes:
    arrays: by name: slices of parameters and optimizer states, and the resident parameters'.
    slices: of each kind's vectors, as [part, home, elements]: how they were cut.
    scalars: what belongs to a whole step (counts, loss scale), as the optimizer gives them.
    environment: what else decides the bits of a run that goes on: versions, device, cores.
  """

  iteration: int
  arrays: dict[str, Record]
  slices: dict[str, list[tuple[str, str, int]]]
  scalars: dict[str, Any]
  environment: dict[str, Any]

  @property
  def file(self) -> str:
    """Its file's path in the store."""
    return f"{FOLDER}/{self.iteration:09}.json"


def write(folder: pathlib.Path, commit: Commit) -> None:
  """Makes a commit current."""
  make_folders(folder / FOLDER)
  write_whole(folder / commit.file, _encode(commit))


def prune(folder: pathlib.Path, keep: int) -> list[Commit]:
  """Removes all but the last `keep` commits, for good: what they name may be overwritten. Returns
  those, the oldest first."""
  old = files(folder)[:-keep]
  for path in old:
    path.unlink()
  if old:
    sync_folders(folder / FOLDER, folder / FOLDER)
  return all_of(folder)


def all_of(folder: pathlib.Path) -> list[Commit]:
  """The commits that a store holds, the oldest first.

  Raises:
    Corrupt: names a commit's file that is not as it was written.
  """
  return [read(path) for path in files(folder)]


def sorted_out(folder: pathlib.Path) -> tuple[list[Commit], dict[pathlib.Path, Exception]]:
  """The commits that can be read, the oldest first, and the others' files, with the reason."""
  whole, damaged = [], {}
  for path in files(folder):
    try:
      whole.append(read(path))
    except (Corrupt, OSError) as error:
      damaged[path] = error
  return whole, damaged


def read(path: pathlib.Path) -> Commit:
  """Raises `Corrupt` where the file is not as it was written."""
  first, _, body = path.read_bytes().partition(b"\n")
  try:
    if int(first, 16) != zlib.crc32(body):
      raise ValueError
    fields = json.loads(body)
    arrays = {name: Record(**record) for name, record in fields["arrays"].items()}
    slices = {kind: [tuple(s) for s in cut] for kind, cut in fields["slices"].items()}
    commit = Commit(**{**fields, "arrays": arrays, "slices": slices})
    if path.name != pathlib.Path(commit.file).name:
      raise ValueError
  except (ValueError, TypeError, KeyError):
    raise Corrupt(f"{path.parent.name}/{path.name} is not as it was written.") from None
  return commit


def _encode(commit: Commit) -> bytes:
  body = json.dumps(dataclasses.asdict(commit), separators=(",", ":")).encode()
  return f"{zlib.crc32(body):08x}\n".encode() + body


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Of a store's commits, the oldest first."""
  return sorted((folder / FOLDER).glob(f"{'[0-9]' * 9}.json"))


def remove(folder: pathlib.Path) -> None:
  """Removes all commits, and their folder if nothing else is in it."""
  commits = folder / FOLDER
  for path in [*files(folder), *commits.glob(f"[0-9]*{BESIDE}")]:
    path.unlink()
  if commits.is_dir() and not any(commits.iterdir()):
    commits.rmdir()
