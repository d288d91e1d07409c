"""Commits: states that training resumes from.

A commit is one small file, `commits/<iteration>.json`, that names the generation and the checksums
of every array that belongs to the state. It is written beside its place, forced to the disk and
renamed, after all that it names is there: either the whole state is current or none of it. Until
the next commit no array that it names is written again; the first write after it goes to another
generation of the array.
"""

import dataclasses
import json
import os
import pathlib
import zlib
from typing import Any

from offload.block_files import naming, sync_folders
from offload.checksums import Corrupt

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
  commits = folder / FOLDER
  commits.mkdir(exist_ok=True)
  path = folder / commit.file
  beside = path.with_suffix(".tmp")
  with naming(beside), beside.open("wb") as file:
    file.write(_encode(commit))
    file.flush()
    os.fsync(file.fileno())
  beside.replace(path)
  sync_folders(commits, folder)


def prune(folder: pathlib.Path, keep: int) -> list[Commit]:
  """Removes all but the last `keep` commits; returns those, the oldest first."""
  for old in files(folder)[:-keep]:
    old.unlink()
  return all_of(folder)


def all_of(folder: pathlib.Path) -> list[Commit]:
  """The commits that a store holds, the oldest first.

  Raises:
    Corrupt: names a commit's file that is not as it was written.
  """
  return [read(path) for path in files(folder)]


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
  for path in [*files(folder), *commits.glob("[0-9]*.tmp")]:
    path.unlink()
  if commits.is_dir() and not any(commits.iterdir()):
    commits.rmdir()
