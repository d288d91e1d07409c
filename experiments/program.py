"""What every program shares: its flags, its errors, and the flag file that reruns it.

    def check() -> Plan: ...           # reads flags, refuses mistakes; writes and compiles nothing
    def main(plan: Plan) -> None: ...  # the work

    if __name__ == "__main__":
      program.run(main, check)

A user's mistake becomes one sentence on stderr and exit code 2: absl's own parsing errors, any
ValueError or OSError that `check` raises, and a `Mistake` raised anywhere. A `Failure` (a full
disk, say) becomes one sentence and exit code 1. Everything else is a bug and keeps its traceback.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Folder of this run's files (runs/<program> if not given).")
flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0, upper_bound=2**31 - 1)
flags.disclaim_key_flags()  # what DEFINE_size defines belongs to its caller

_UNITS = {
  "": 1,
  "B": 1,
  **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
  **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B|)")


class Mistake(ValueError):  # noqa: N818 (whose error it is matters more)
  """A user's mistake; the message is the whole sentence that the user reads."""


class Failure(RuntimeError):  # noqa: N818 (it is nobody's error)
  """A run could not go on; the message is the whole sentence that the user reads."""


@contextlib.contextmanager
def mistakes() -> Iterator[None]:
  """Turns ValueError and OSError into `Mistake`: wrap what only checks the user's wishes."""
  try:
    yield
  except Mistake:
    raise
  except ValueError as error:
    raise Mistake(str(error)) from error
  except OSError as error:
    what = f"{error.filename}: " if error.filename else ""
    raise Mistake(f"{what}{error.strerror or error}.") from error


def run(
  main: Callable[..., None], check: Callable[..., Any] | None = None, *, words: bool = False
) -> None:
  """Parses the flags, runs `check`, hands what it returns to `main`; exits with 2 on a mistake.

  Without `check`, `main` takes no argument. With `words`, arguments that are not flags are handed
  to `check` as a list; otherwise they are a mistake.
  """
  try:
    rest = _parse(sys.argv)
    if rest and not words:
      raise Mistake(f"{rest[0]!r} is not a flag; settings are given as --name=value.")
    if check is None:
      main()
    else:
      with mistakes():
        checked = check(rest) if words else check()
      main(checked)
  except (Mistake, Failure) as error:
    sentence = " ".join(str(error).split())
    print(f"{name()}: {textwrap.shorten(sentence, 500, placeholder=' ...')}", file=sys.stderr)
    sys.exit(2 if isinstance(error, Mistake) else 1)
  except BrokenPipeError:  # whoever read what is printed has had enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except KeyboardInterrupt:
    print(f"\n{name()}: interrupted.", file=sys.stderr)
    sys.exit(130)


def name() -> str:
  """The running program's name, as in `python -m experiments.<name>`: "train", "tables.kernels"."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is not None:
    return spec.name.removeprefix("experiments.").removesuffix(".__main__")
  path, file = os.path.split(sys.argv[0])
  stem = os.path.splitext(file)[0]
  return os.path.basename(path) if stem == "__main__" else stem


def workdir() -> str:
  """The run's folder: --workdir, or runs/<the last part of the program's name>."""
  return FLAGS.workdir or os.path.join("runs", name().rpartition(".")[2])


def nearest(folder: pathlib.Path) -> pathlib.Path:
  """The folder, or the lowest above it that is there."""
  return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def disk_room(folder: pathlib.Path) -> int:
  """Bytes that a folder may take on its disk: what is free there, and what it has now."""
  held = 0
  for root, _, files in os.walk(folder):
    for name in files:
      with contextlib.suppress(FileNotFoundError):  # a run that is at work there has removed it
        held += os.path.getsize(os.path.join(root, name))
  return shutil.disk_usage(nearest(folder)).free + held


def flag_file(program: str) -> str:
  """The text of a flag file that reruns `program`: every flag that was set, in the order of names.

  Raises nothing; relative paths stay as they were given.
  """
  every = {flag.name: flag for flag in map(FLAGS.__getitem__, FLAGS)}
  lines = [
    every[name].serialize()
    for name in sorted(every)
    if not every[name].using_default_value and name not in ("flagfile", "undefok")
  ]
  return (
    f"# python -m experiments.{program}\n"
    "# --flagfile=<this file> runs it again with these settings; flags given after it win.\n"
    + "".join(f"{line}\n" for line in lines)
  )


def size(text: str) -> int:
  """Bytes of `512MiB`, `1.5GB`, `4096`. Raises ValueError for anything else."""
  found = _SIZE.fullmatch(text.strip())
  if not found or found[2] not in _UNITS:
    raise ValueError(f"{text!r} is not a size; write it like 512MiB, 24GiB, 1.5GB or plain bytes")
  return round(float(found[1]) * _UNITS[found[2]])


def size_text(count: int) -> str:
  """The shortest exact way to write a size: 536870912 -> "512MiB"."""
  for unit in ("TiB", "GiB", "MiB", "KiB"):
    if count and count % _UNITS[unit] == 0:
      return f"{count // _UNITS[unit]}{unit}"
  return str(count)


class _SizeParser(flags.ArgumentParser):
  syntactic_help = "a size such as 512MiB, 24GiB, 1.5GB or plain bytes"

  def parse(self, argument: str | int) -> int:
    return argument if isinstance(argument, int) else size(argument)

  def flag_type(self) -> str:
    return "size"


class _SizeSerializer(flags.ArgumentSerializer):
  def serialize(self, value: int) -> str:
    return size_text(value)


def DEFINE_size(name: str, default: int | str | None, help: str) -> flags.FlagHolder:  # noqa: N802
  """A flag whose value is a number of bytes and may be written with a suffix."""
  return flags.DEFINE(_SizeParser(), name, default, help, serializer=_SizeSerializer())


def _parse(argv: list[str]) -> list[str]:
  """Sets FLAGS and returns the words that are not flags. Raises `Mistake` with absl's sentence."""
  app.define_help_flags()
  for common in ("workdir", "seed"):  # so that --help lists them among the program's own
    FLAGS.register_key_flag_for_module(argv[0], FLAGS[common])
  try:
    return FLAGS(argv)[1:]
  except flags.Error as error:
    sentence = str(error).removeprefix("ERROR:: ").rstrip()
    raise Mistake(sentence if sentence.endswith((".", "?")) else f"{sentence}.") from error
  except SystemExit:  # --help has printed; absl would exit with 1
    sys.exit(0)
