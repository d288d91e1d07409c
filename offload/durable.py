"""Files and folders that are whole, or not there, and that a power failure does not undo."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

BESIDE = ".tmp"  # of a file's name until it is whole; a run that is killed then leaves it


def write_whole(path: pathlib.Path, content: bytes) -> None:
  """Writes a file beside its place, forces it to the disk and renames it: no reader sees half.

  Raises:
    OSError: the disk's error, with the file's name; what was there before still is.
  """
  beside = path.with_name(path.name + BESIDE)
  with naming(beside), beside.open("wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  beside.replace(path)
  sync_folders(path.parent, path.parent)


def make_folders(folder: pathlib.Path) -> None:
  """Makes a folder and those above it."""
  missing = [path for path in (folder, *folder.parents) if not path.exists()]
  folder.mkdir(parents=True, exist_ok=True)
  if missing:
    sync_folders(folder, missing[-1].parent)


def sync_folders(first: pathlib.Path, last: pathlib.Path) -> None:
  """Makes what was entered in folders, or removed from them, durable: from one up to one of its
  parents."""
  for folder in (first, *first.parents):
    _sync(folder)
    if folder == last:
      return


def sync_tree(folder: pathlib.Path) -> None:
  """Makes all that is in a folder durable."""
  for path in (*folder.rglob("*"), folder):
    _sync(path)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
  """Errors of calls on an open file get its name, which the system leaves out."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or os.fspath(path)
    raise
  except EOFError as error:
    raise EOFError(f"{path} {error}") from None


def _sync(path: pathlib.Path) -> None:
  file = os.open(path, os.O_RDONLY)
  try:
    with naming(path):
      os.fsync(file)
  finally:
    os.close(file)
