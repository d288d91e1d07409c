"""The two ways in which `generate` decodes its prompts: to read the texts, or to time a method."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax

from experiments.live_text import LiveText
from experiments.prompt_flags import Prompt
from models.decoding.continuous import ContinuousBatch
from models.decoding.draft_length import RoundSeconds
from models.decoding.generate import Generator, Timing, measure, pad, sequence_keys
from models.decoding.loop import resume
from models.decoding.phases import time_phases
from models.decoding.round import LoopState


class Text(NamedTuple):
  """What was decoded behind a prompt: its tokens, and its rounds by accepted drafts."""

  tokens: list[int]
  acceptances: list[int]


class Run(NamedTuple):
  """All texts, seconds of `compile`, `prefill` and `decode`, and of a round's phases.

  Where draft lengths are chosen, `tallies` are `Pacer.tallies`, and `rounds` what rounds take.
  """

  texts: list[Text]
  seconds: dict[str, float]
  phases: dict[str, float]
  tallies: dict[int, list[int]]
  rounds: RoundSeconds | None


class Request(NamedTuple):
  """What is to be decoded: places in the batch, slots of each one's cache, tokens of each text."""

  prompts: list[Prompt]
  size: int
  slots: int
  wanted: int
  seed: int
  phases: bool


def serve(
  generator: Generator,
  request: Request,
  live: LiveText | None,
  ended: Callable[[int, Text], None],
) -> Run:
  """Once, as a queue: a text that ends makes room for the next prompt.

  Args:
    live: shows each round's tokens, of one place.
    ended: called with a prompt's number and its text as soon as that has ended.
  """
  batch = ContinuousBatch(generator, size=request.size, slots=request.slots, wanted=request.wanted)
  compile_seconds = batch.warm_up()
  tokens: list[list[int]] = [[] for _ in request.prompts]
  texts: dict[int, Text] = {}
  queue = [prompt.text for prompt in request.prompts]
  key = jax.random.key(request.seed)
  for emission in batch.decode(queue, key, *([1] if live else [])):
    number = emission.number
    if live:
      if not tokens[number]:
        live.prompt(queue[number])
      live.show(emission)
    tokens[number] += emission.tokens
    if emission.acceptances is not None:
      texts[number] = Text(tokens[number], emission.acceptances)
      ended(number, texts[number])
  assert batch.state is not None and batch.pacer is not None
  tallies = batch.pacer.tallies
  return Run(
    [texts[number] for number in range(len(queue))],
    {"compile": compile_seconds, **batch.seconds},
    _phases(generator, request, batch.state, tallies),
    tallies,
    batch.pacer.seconds,
  )


def benchmark(
  generator: Generator, request: Request, repeats: int, timed: Callable[[int, Timing], None]
) -> Run:
  """Batch by batch, each decoded `repeats` times from one prefill; `decode` is of the medians.

  `timed` is called with each batch's first number and its timing.
  """
  texts: list[Text] = []
  seconds: dict[str, float] = dict.fromkeys(("compile", "prefill", "decode"), 0.0)
  tallies: dict[int, list[int]] = {}
  state = rounds = None
  for first in range(0, len(request.prompts), request.size):
    del state  # the batch before makes room
    batch = [prompt.text for prompt in request.prompts[first : first + request.size]]
    # A short batch is filled up with its last prompt, so that nothing is compiled anew.
    filled = batch + [batch[-1]] * (request.size - len(batch))
    keys = sequence_keys(jax.random.key(request.seed), request.size, first)
    timing = measure(
      *(generator, pad(filled), keys),
      slots=request.slots,
      wanted=request.wanted,
      repeats=repeats,
    )
    texts += map(Text, timing.texts[: len(batch)], timing.acceptances[: len(batch)])
    seconds["compile"] += timing.compile
    seconds["prefill"] += timing.prefill
    seconds["decode"] += statistics.median(timing.decode)
    timed(first, timing)
    for length, tally in timing.tallies.items():
      sums = zip(tallies.get(length, [0] * len(tally)), tally, strict=True)
      tallies[length] = list(map(sum, sums))
    state, rounds = timing.state, timing.rounds
    del timing
  assert state is not None
  return Run(texts, seconds, _phases(generator, request, state, tallies), tallies, rounds)


def _phases(
  generator: Generator, request: Request, state: LoopState, tallies: dict[int, list[int]]
) -> dict[str, float]:
  """Of rounds of the draft length that was chosen most."""
  if not request.phases:
    return {}
  drafted = {length: sum(tally) for length, tally in tallies.items() if length}
  if generator.method.draft_lengths:
    most = max(drafted, key=lambda length: drafted[length], default=0)
    state, _ = resume(generator.model, generator.parameters, generator.method, state)
    method = generator.method.of_length(most)
    generator = dataclasses.replace(generator, method=method)
  return time_phases(generator, state)[0]
