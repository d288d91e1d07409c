"""Faults: what disks do, at the n-th call of the operating system on files of one kind."""

import errno
import fnmatch
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

# What may happen instead of a call; each takes the real function and its arguments.


def fail(number: int) -> Callable[..., Any]:
  def happens(real: Callable[..., Any], *args: Any) -> Any:
    named = [] if isinstance(args[0], int) else [os.fspath(args[0])]  # as the system does
    raise OSError(number, os.strerror(number), *named)

  return happens


def end_of_file(real: Callable[..., Any], *args: Any) -> int:
  return 0


def flip(real: Callable[..., Any], file: int, views: list[Any], at: int) -> int:
  """One bit of what is read, or of what is written."""
  if real.__name__ == "preadv":
    count = real(file, views, at)
    np.asarray(views[0])[0] ^= 16
    return count
  changed = np.array(views[0])
  changed[0] ^= 16
  return real(file, [changed], at)


def late(real: Callable[..., Any], *args: Any) -> Any:
  time.sleep(0.5)
  return real(*args)


FAULTS = {
  "EIO": fail(errno.EIO),
  "ENOSPC": fail(errno.ENOSPC),
  "EACCES": fail(errno.EACCES),
  "EOF": end_of_file,
  "flip": flip,
  "late": late,
}


class Faults:
  """Makes faults happen, each once."""

  def __init__(self, monkeypatch: pytest.MonkeyPatch):
    self._monkeypatch, self._lock = monkeypatch, threading.Lock()
    self.happened = 0

  def plan(self, call: str, path: str, what: str, nth: int = 1) -> None:
    """At the `nth` call of `os.<call>` whose first argument is, or is open on, such a path."""
    real, seen = getattr(os, call), 0

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
      nonlocal seen
      with self._lock:
        seen += fnmatch.fnmatch(_path(args[0]), path)
        now = seen == nth and fnmatch.fnmatch(_path(args[0]), path)
        self.happened += now
      return FAULTS[what](real, *args, **kwargs) if now else real(*args, **kwargs)

    self._monkeypatch.setattr(os, call, wrapped)

  def end(self) -> None:
    self._monkeypatch.undo()


def _path(file: Any) -> str:
  return os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)


@pytest.fixture
def faults(monkeypatch):
  return Faults(monkeypatch)


@pytest.fixture(scope="session")
def committing():
  """Trains until an iteration, with a commit behind each; returns the losses."""

  def train(streamer, until):
    losses = []
    while streamer.iteration < until:
      losses += streamer.run(1, commits=True).losses
      streamer.commit()
    return losses

  return train
