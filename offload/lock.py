"""A folder that one process at a time may use."""

import fcntl
import pathlib

NAME = ".lock"


class Lock:
  """Held until it is released or the process ends, however that happens."""

  def __init__(self, folder: pathlib.Path, flag: str):
    """Raises ValueError, naming the flag, where another process holds the folder."""
    self._file = (folder / NAME).open("a")
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._file.close()
      raise ValueError(
        f"{flag}={folder} is in use by another run: wait for it, or name another folder."
      ) from None

  def release(self) -> None:
    self._file.close()
