"""The flags that say what is to be continued, and the prompts that they name.

    --prompt_file=book.txt          a file is one prompt; repeatable; - is standard input
    --prompts_jsonl=prompts.jsonl   one object a line with the text in "prompt"; - is standard input

Tokens are bytes: any file can be a prompt, whether or not it is text. JSON is text, so a line whose
prompt has no bytes (half a surrogate pair) is refused.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from absl import flags

PROMPT_FILES = flags.DEFINE_multi_string(
  "prompt_file", [], "A file that is one prompt; repeatable; - reads standard input."
)
PROMPTS_JSONL = flags.DEFINE_string(
  "prompts_jsonl", None, 'A file of JSON objects, one a line, each with a "prompt"; - as above.'
)
PROMPT_BYTES = flags.DEFINE_integer(
  "prompt_bytes", 0, "Use only the first bytes of each prompt; 0 uses all.", lower_bound=0
)
_STANDARD_INPUT = "-"


class Prompt(NamedTuple):
  """What is to be continued; `name` says where it came from, as a message names it."""

  name: str
  text: bytes


def prompts() -> list[Prompt]:
  """What the flags name, files first; raises ValueError or OSError with one sentence."""
  lines = PROMPTS_JSONL.value
  sources = [*PROMPT_FILES.value, *([lines] if lines else [])]
  if not sources:
    raise ValueError("Give at least one --prompt_file, or --prompts_jsonl.")
  if sources.count(_STANDARD_INPUT) > 1:
    raise ValueError("Standard input can be read once: give - to one flag only.")
  found = [Prompt(f"--prompt_file={path}", _read(path)) for path in PROMPT_FILES.value]
  if lines:
    found += _of_lines(f"--prompts_jsonl={lines}", _read(lines))
  for prompt in found:
    if not prompt.text:
      raise ValueError(f"{prompt.name} is empty; a prompt needs at least one byte.")
  return [prompt._replace(text=prompt.text[: PROMPT_BYTES.value or None]) for prompt in found]


def _read(path: str) -> bytes:
  return sys.stdin.buffer.read() if path == _STANDARD_INPUT else Path(path).read_bytes()


def _of_lines(name: str, content: bytes) -> list[Prompt]:
  found = []
  for number, line in enumerate(content.splitlines(), start=1):
    if line.strip():
      here = f"{name}, line {number}"
      found.append(Prompt(here, _of_line(here, line)))
  if not found:
    raise ValueError(f"{name} holds no prompt: give one JSON object a line.")
  return found


def _of_line(name: str, line: bytes) -> bytes:
  try:
    return json.loads(line)["prompt"].encode()
  except (UnicodeDecodeError, UnicodeEncodeError) as error:  # of the line, or of the string in it
    raise ValueError(f"{name} is no text in UTF-8: {error.reason}.") from error
  except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(f'{name} is no JSON object with a text in "prompt".') from error
