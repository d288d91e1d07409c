"""Ends a run when the user or the system asks for it, and says in one sentence what failed."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from experiments import program
from offload.checksums import Corrupt


class Stop:
  """SIGTERM or Ctrl-C asks for an end after the running iteration; a second one ends at once.

  What is committed stands either way.
  """

  def __init__(self):
    self.signal: int | None = None
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._ask)

  def __call__(self) -> bool:
    """Whether to stop."""
    return self.signal is not None

  def exit(self, sentence: str) -> None:
    """Ends the program with the signal's exit code."""
    assert self.signal is not None
    print(f"{program.name()}: {sentence}", file=sys.stderr)
    sys.exit(128 + self.signal)

  def _ask(self, number: int, _: object) -> None:
    if self.signal is not None:
      os._exit(128 + number)  # no queue is waited for
    self.signal = number
    print(
      f"\n{program.name()}: ends after the running iteration, committed; again to end at once.",
      file=sys.stderr,
      flush=True,
    )


@contextlib.contextmanager
def failures(advice: Callable[[Exception], str]) -> Iterator[None]:
  """Turns what disks do (full, broken, gone, changed) into one sentence and exit code 1.

  `advice` says what to do about it.
  """
  try:
    yield
  except (OSError, EOFError, Corrupt) as error:
    where = f" {error.filename}:" if isinstance(error, OSError) and error.filename else ""
    what = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    step = " ".join(getattr(error, "__notes__", ()))
    raise program.Failure(f"{where} {what.rstrip('.')}. {step} {advice(error)}") from error
