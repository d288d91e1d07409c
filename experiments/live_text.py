"""Text on a screen as it is decoded: byte by byte, safely, and with its drafts in colour.

Bytes may end in the middle of a character, be no text at all, or be a command to the terminal. A
character is shown once it is whole; what is no UTF-8, or is not printable, as \\xNN.
"""

import codecs
import io
import sys

from absl import flags

from models.decoding.continuous import Emission

STREAM = flags.DEFINE_bool(
  "stream", None, "Show the text as it is decoded; if not given, one prompt's on a terminal."
)
SHOW_DRAFTS = flags.DEFINE_bool(
  "show_drafts", False, "Stream, with drafts that stood in green and those that did not in red."
)
COLOR = flags.DEFINE_enum(
  "color", "auto", ["auto", "always", "never"], "Colours; auto: where the output is a terminal."
)

_GREEN, _RED, _DIM, _PLAIN = "\x1b[32m", "\x1b[9;31m", "\x1b[2m", "\x1b[0m"
_SHOWN = "\n\t"  # of the control characters


def wanted(prompts: int, size: int) -> bool:
  """Whether to stream; raises ValueError with one sentence where texts would mix."""
  asked = STREAM.value or SHOW_DRAFTS.value
  if STREAM.value is None and not asked:
    return prompts == 1 and sys.stdout.isatty()
  if asked and size > 1:
    name = "--stream" if STREAM.value else "--show_drafts"
    raise ValueError(f"{name} shows one text at a time: give --batch_size=1.")
  return bool(asked)


def safe(text: bytes) -> str:
  """A whole text, as it is safe to print."""
  return _printable(text.decode("utf-8", "backslashreplace"))


def _printable(text: str) -> str:
  shown = lambda c: c if c.isprintable() or c in _SHOWN else c.encode("unicode_escape").decode()
  return "".join(map(shown, text))


class LiveText:
  """Writes one text after another to `out`, each piece as it comes."""

  def __init__(self, out: io.TextIOBase, *, colour: bool, drafts: bool):
    self.out, self.colour, self.drafts = out, colour, colour and drafts
    self._begin()

  def _begin(self) -> None:
    self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

  def prompt(self, text: bytes, most: int = 400) -> None:
    """The prompt's end, dim; at most so many bytes of it."""
    shown = ("..." if len(text) > most else "") + safe(text[-most:])
    self._write(shown, _DIM)

  def show(self, emission: Emission) -> None:
    """New tokens; with `drafts`, those of the round that stood, and those that did not."""
    end = emission.acceptances is not None
    if not self.drafts:
      self._write(self._decoded(emission.tokens))
    else:
      before, now = emission.tokens[: emission.begin], emission.tokens[emission.begin :]
      self._write(self._decoded(before))
      self._write(self._decoded(now[: emission.accepted]), _GREEN)
      if not end:
        rejected = safe(bytes(emission.drafts[emission.accepted :]))
        self._write(rejected.replace("\n", "\\n").replace("\t", "\\t"), _RED)
      self._write(self._decoded(now[emission.accepted :]))
    if end:
      self._write(_printable(self._decoder.decode(b"", final=True)) + "\n")
      self._begin()
    self.out.flush()

  def _decoded(self, tokens: list[int]) -> str:
    return _printable(self._decoder.decode(bytes(tokens)))

  def _write(self, text: str, style: str = "") -> None:
    if text and style and self.colour:
      text = f"{style}{text}{_PLAIN}"
    self.out.write(text)


def on_screen() -> LiveText:
  """On standard output, as the flags say; a character that its encoding lacks is escaped."""
  assert isinstance(sys.stdout, io.TextIOWrapper)
  sys.stdout.reconfigure(errors="backslashreplace")
  colour = COLOR.value == "always" or (COLOR.value == "auto" and sys.stdout.isatty())
  return LiveText(sys.stdout, colour=colour, drafts=SHOW_DRAFTS.value)
