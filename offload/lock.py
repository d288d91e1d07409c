"""A folder that one process at a time may use."""

import fcntl
import os
import pathlib

NAME = ".lock"


class Lock:
  """Held until it is released or the process ends, however that happens."""

  def __init__(self, folder: pathlib.Path, flag: str):
    """Raises ValueError, naming the flag, where another process holds the folder."""
    self._path = folder / NAME
    self._file = self._path.open("a")
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      ours = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
    except (BlockingIOError, FileNotFoundError):
      ours = False
    if not ours:  # or a file that its owner has removed meanwhile
      self._file.close()
      raise ValueError(
        f"{flag}={folder} is in use by another run: wait for it, or name another folder."
      )

  @staticmethod
  def is_held(folder: pathlib.Path) -> bool:
    """Whether a process uses the folder; leaves it as it is."""
    try:
      with (folder / NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
      return False
    except BlockingIOError:
      return True
    return False

  def release(self) -> None:
    """Removes the file while it is still held: whoever has it open finds that it is gone."""
    self._path.unlink(missing_ok=True)
    self._file.close()
