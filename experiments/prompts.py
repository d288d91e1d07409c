"""Writes held-out prompts of three kinds, to decode with: what follows a long text.

    python -m experiments.prompts --lengths=2048,8192 --count=4 --workdir=runs/prompts

    continuation  held-out text from anywhere: goes on as text does
    editing       a passage, other text, and the beginning of the passage again, edited (names
                  changed, pieces lost): goes on by repeating what stands far back, as editing
                  code does
    recall        a random name and, 1,500 bytes after it began, its first 8 bytes again: goes on
                  with the rest of the name, which nothing nearby predicts (--kinds=recall
                  --answer_bytes=24: the kept model knows names of 32 bytes)

Each file `<kind>-<length>.jsonl` holds one object a line: `prompt`; `answer`, what really follows
there; `kind`; `distance`, the bytes from the beginning of what is repeated back to that of its
original (null for a continuation); an edit's answer has its own original as far back but for what
the cue's edits added or lost. Texts are ASCII, so characters are bytes. All but the names is of the
part of --data that training on the same leaves out, though what that part shares with the rest (a
licence) was seen.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import numpy as np
from absl import flags

from experiments import data, program
from experiments.mixture import NAME_SYMBOLS, edit
from experiments.run_log import RunLog, check_workdir

FLAGS = flags.FLAGS
_positive = functools.partial(flags.DEFINE_integer, lower_bound=1)

flags.DEFINE_string("data", "stdlib", "Text whose held-out part the prompts are of.")
flags.DEFINE_list("lengths", "2048,4096,8192,16384,32768", "Bytes of the prompts.")
flags.DEFINE_list("kinds", "continuation,editing", "Of the prompts.")
_positive("count", 4, "Prompts of each kind and length.")
_positive("answer_bytes", 256, "Bytes of each answer.")

_CUE = 128  # bytes of the edited passage that an editing prompt shows
_BACK, _NAME_CUE = 1500, 8  # bytes from a name to its copy, and of the copy that are shown
_TRIES = 1000  # at passages, before a corpus is told to hold too little ASCII


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt with what really follows it."""

  kind: str
  prompt: str
  answer: str
  distance: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
  prompts: dict[str, list[Prompt]]  # by the name of their file
  workdir: pathlib.Path


def check() -> Plan:
  """All prompts, since making them finds every mistake; raises ValueError with one sentence."""
  workdir = check_workdir(program.workdir(), "prompts")
  corpus = data.load_corpus(FLAGS.data)
  if corpus.train.dtype != np.uint8:
    raise ValueError(f"--data={FLAGS.data} must be text; prompts are not made of token numbers.")
  try:
    lengths = [int(length) for length in FLAGS.lengths]
  except ValueError:
    lengths = []
  if not lengths or min(lengths) < 1:
    raise ValueError("--lengths must be whole numbers of at least 1, with commas.")
  for kind in FLAGS.kinds:
    if kind not in KINDS:
      raise ValueError(f"--kinds: {kind!r} is none of {', '.join(KINDS)}.")
  made = {
    f"{kind}-{length}.jsonl": make(
      corpus, kind, length, FLAGS.count, FLAGS.answer_bytes, FLAGS.seed
    )
    for kind in FLAGS.kinds
    for length in lengths
  }
  return Plan(made, workdir)


def main(plan: Plan) -> None:
  log = RunLog.start(plan.workdir, "prompts")
  for name, prompts in plan.prompts.items():
    lines = [json.dumps(dataclasses.asdict(prompt)) + "\n" for prompt in prompts]
    (plan.workdir / name).write_text("".join(lines))
  log.finish({"files": sorted(plan.prompts)}, f"{len(plan.prompts)} files in {plan.workdir}")


def make(
  corpus: data.Corpus, kind: str, length: int, count: int, answer: int, seed: int
) -> list[Prompt]:
  """`count` prompts of `length` bytes with answers of `answer` bytes: the same at every call.

  Raises ValueError if the held-out text has no such prompt.
  """
  rng = np.random.default_rng([seed, length, list(KINDS).index(kind)])
  return [KINDS[kind](rng, corpus, length, answer) for _ in range(count)]


def _continuation(
  rng: np.random.Generator, corpus: data.Corpus, length: int, answer: int
) -> Prompt:
  whole = _ascii(rng, corpus, length + answer).decode()
  return Prompt("continuation", whole[:length], whole[length:], None)


def _editing(rng: np.random.Generator, corpus: data.Corpus, length: int, answer: int) -> Prompt:
  # Edits take a sixteenth of a passage on average; half as much again leaves room.
  size = (_CUE + answer) * 3 // 2
  if length < size + _CUE:
    raise ValueError(
      f"--lengths={length} is too short for a passage of {size} bytes and its first {_CUE} again;"
      f" give at least {size + _CUE}, or a smaller --answer_bytes."
    )
  passage = again = b""
  while len(again) < _CUE + answer:
    passage = _ascii(rng, corpus, size)
    again = edit(rng, np.frombuffer(passage, np.uint8)).tobytes()
  between = _ascii(rng, corpus, length - size - _CUE)
  whole = (passage + between + again).decode()
  return Prompt("editing", whole[:length], whole[length : length + answer], size + len(between))


def _recall(rng: np.random.Generator, corpus: data.Corpus, length: int, answer: int) -> Prompt:
  size = _NAME_CUE + answer
  if size > _BACK:
    raise ValueError(f"--answer_bytes={answer} must be at most {_BACK - _NAME_CUE} of a name.")
  if length < _BACK + _NAME_CUE:
    raise ValueError(
      f"--lengths={length} is too short for a name {_BACK} bytes back; give at least"
      f" {_BACK + _NAME_CUE}."
    )
  name = rng.choice(NAME_SYMBOLS, size).tobytes()
  before = _ascii(rng, corpus, length - _BACK - _NAME_CUE)
  between = _ascii(rng, corpus, _BACK - size)
  whole = (before + name + between + name).decode()
  return Prompt("recall", whole[:length], whole[length:], _BACK)


KINDS: dict[str, Callable[[np.random.Generator, data.Corpus, int, int], Prompt]] = {
  "continuation": _continuation,
  "editing": _editing,
  "recall": _recall,
}


def _ascii(rng: np.random.Generator, corpus: data.Corpus, length: int) -> bytes:
  """A run of held-out ASCII text that begins a line where one begins within it."""
  heldout = corpus.heldout
  for _ in range(_TRIES if len(heldout) >= length else 0):
    start = int(rng.integers(0, len(heldout) - length, endpoint=True))
    run = heldout[start : start + length]
    if (run < 128).all():
      return run.tobytes()
  raise ValueError(f"--data={corpus.name} holds out no {length:,} bytes of ASCII in a row.")


if __name__ == "__main__":
  program.run(main, check)
