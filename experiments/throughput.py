"""Times every selector beside autoregressive decoding, interleaved, at one context and batch size.

    python -m experiments.throughput --length=16384 --batch_size=1 --workdir=runs/throughput

Each method decodes the same prompts from one prefilled cache, rolled back between turns; the
methods take turns, and a speed-up is the median over rounds of two times of one round. Of several
batches of prompts, one after the other, a round's times are the sums, and a phase's is the median.
Beside a speed-up stand two predictions: the roofline's, from bytes alone, and that of the measured
phases, each timed as a program of its own. Texts are judged by the autoregressive ones.

A method is written as a selector with its settings: `specattn,draft_length=6,page_size=16`. Of
`draft_length=auto` the rounds are measured before anything is timed; its phases are left out.
"""

import collections
import functools
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import data, decoding_flags, program, prompts, reference_run, run_log
from experiments.decoding_flags import AUTOREGRESSIVE
from experiments.generate_report import acceptance_by_position, acceptance_length
from models.decoding import roofline
from models.decoding.draft_length import RoundSeconds
from models.decoding.generate import (
  Generator,
  Prompts,
  measure_rounds,
  pad,
  sequence_keys,
  slots_for,
)
from models.decoding.method import Method
from models.decoding.phases import time_phases
from models.transformer import Parameters, Transformer
from models.weights import checkpoint

FLAGS = flags.FLAGS
_positive = functools.partial(flags.DEFINE_integer, lower_bound=1)

flags.DEFINE_string(
  "checkpoint", "experiments/checkpoints/retrieval", "Folder of the model's checkpoint."
)
flags.DEFINE_enum("kind", "editing", list(prompts.KINDS), "Of the prompts.")
_positive("length", 16_384, "Tokens of a whole text: the prompt's and the new ones.")
_positive("batch_size", 1, "Prompts decoded together.")
_positive("batches", 1, "Such batches, each of prompts of its own.")
_positive("new_tokens", 192, "Tokens to decode of each prompt.")
_positive("rounds", 3, "Times that each method is timed, behind one to warm up.")
flags.DEFINE_multi_string(
  "methods", ["specattn,page_size=16", "window"], "Methods with their settings; repeatable."
)
flags.DEFINE_bool("phases", True, "Time the phases of each method too.")


class Plan(NamedTuple):
  """A checked request: `methods` by what they are written as, the autoregressive one first."""

  model: Transformer
  methods: dict[str, Method]
  prompts: list[bytes]
  slots: int


def method_of(text: str) -> Method:
  """`quest,draft_length=4,page_size=16` as a method; raises ValueError with one sentence."""
  with decoding_flags.written("methods", text):
    return decoding_flags.method()


def check() -> Plan:
  """Refuses mistakes before anything is written or compiled."""
  run_log.check_workdir(program.workdir(), program.name())
  model = checkpoint.load_model(FLAGS.checkpoint)
  methods = {AUTOREGRESSIVE: Method()} | {text: method_of(text) for text in FLAGS.methods}
  length, wanted = FLAGS.length - FLAGS.new_tokens, FLAGS.new_tokens
  if length < 1:
    raise ValueError(f"--length={FLAGS.length} leaves no prompt before --new_tokens={wanted}.")
  slots = max(slots_for(model.config, method, length, wanted) for method in methods.values())
  corpus = data.load_corpus("stdlib")
  count = FLAGS.batch_size * FLAGS.batches
  made = prompts.make(corpus, FLAGS.kind, length, count, wanted, FLAGS.seed)
  return Plan(model, methods, [prompt.prompt.encode() for prompt in made], slots)


def main(plan: Plan) -> None:
  with program.mistakes():
    _, parameters = checkpoint.load(FLAGS.checkpoint)
  log = run_log.RunLog.start(program.workdir(), program.name())
  generators = {
    text: Generator(plan.model, parameters, method) for text, method in plan.methods.items()
  }
  found = _measure(generators, _batches(plan.prompts), plan.slots, log)
  reference, base = found[AUTOREGRESSIVE]["texts"], found[AUTOREGRESSIVE]
  for text, own in found.items():
    own |= _judged(generators[AUTOREGRESSIVE], plan, own, reference)
    own |= _summarized(plan, parameters, plan.methods[text], own, base)
  names = ("kind", "length", "batch_size", "batches", "new_tokens", "checkpoint")
  summary = {"methods": found, **{name: FLAGS[name].value for name in names}}
  log.finish(summary, f"{len(found)} methods at {FLAGS.length:,} tokens")


def _batches(every: list[Any]) -> list[list[Any]]:
  """Cut into lists of --batch_size."""
  size = FLAGS.batch_size
  return [every[first : first + size] for first in range(0, len(every), size)]


def _measure(
  generators: dict[str, Generator],
  batches: list[list[bytes]],
  slots: int,
  log: run_log.RunLog,
) -> dict[str, dict[str, Any]]:
  """Of each method: seconds of every round, texts, rounds by accepted drafts, phases."""
  found: dict[str, dict[str, Any]] = {}
  known: dict[str, RoundSeconds | None] = {}
  for text, generator in generators.items():
    clock = time.perf_counter()
    known[text] = measure_rounds(generator, FLAGS.batch_size, slots=slots, wanted=FLAGS.new_tokens)
    found[text] = {
      "measuring_seconds": time.perf_counter() - clock,
      "seconds": [0.0] * FLAGS.rounds,
      "texts": [],
      "acceptances": [],
      "rounds_by_draft_length": collections.Counter(),
      "phases": [],
    }
  for index, batch in enumerate(batches):
    print(f"batch {index + 1} of {len(batches)}", flush=True)
    _measure_batch(generators, pad(batch), slots, known, index, found, log)
  for own in found.values():
    own["phases"] = _medians(own["phases"])
    pairs = zip(found[AUTOREGRESSIVE]["seconds"], own["seconds"], strict=True)
    own["speedups"] = [base / seconds for base, seconds in pairs]
  return found


def _medians(every: list[dict[str, float]]) -> dict[str, float]:
  """By name; nothing of nothing."""
  return {name: statistics.median(each[name] for each in every) for name in (every or [{}])[0]}


def _measure_batch(
  generators: dict[str, Generator],
  batch: Prompts,
  slots: int,
  known: dict[str, RoundSeconds | None],
  index: int,
  found: dict[str, dict[str, Any]],
  log: run_log.RunLog,
) -> None:
  """Adds a batch to what was found; its first round warms up, its last one's phases are timed."""
  wanted, keys = FLAGS.new_tokens, sequence_keys(jax.random.key(FLAGS.seed), len(batch.lengths))
  cache = jax.block_until_ready(generators[AUTOREGRESSIVE].prefill(batch, slots))
  for turn in range(1 + FLAGS.rounds):
    for text, generator in generators.items():
      own = found[text]
      clock = time.perf_counter()
      state = generator.start(batch, cache.with_lengths(batch.lengths - 1), keys, wanted)
      state, tallies = jax.block_until_ready(generator.finish(state, wanted, known[text]))
      seconds = time.perf_counter() - clock
      if turn:
        own["seconds"][turn - 1] += seconds
        log.metric(method=text, batch=index, round=turn, decode_seconds=seconds)
      if turn == FLAGS.rounds:
        own["texts"] += generator.texts(state)
        own["acceptances"] += np.asarray(state.acceptances).tolist()
        own["rounds_by_draft_length"].update({g: sum(tally) for g, tally in tallies.items()})
        if FLAGS.phases and not generator.method.draft_lengths:
          phases, state = time_phases(generator, state)
          own["phases"].append(phases)
      cache = state.cache  # the prompts stay in it as they were
    print(f"round {turn} of {FLAGS.rounds}" if turn else "warmed up", flush=True)


def _judged(
  generator: Generator, plan: Plan, own: dict[str, Any], reference: list[list[int]]
) -> dict[str, Any]:
  """Whether the texts, which are left out from here on, are the autoregressive ones."""
  return reference_run.verdict(
    *(generator, plan.slots, plan.prompts, own.pop("texts"), reference, FLAGS.new_tokens)
  )


def _summarized(
  plan: Plan, parameters: Parameters, method: Method, own: dict[str, Any], base: dict[str, Any]
) -> dict[str, Any]:
  """What follows from a method's measurements, and what was to be expected."""
  by_accepted = [sum(column) for column in zip(*own["acceptances"], strict=True)]
  length, drafted = acceptance_length(by_accepted), own["rounds_by_draft_length"]
  mean = sum(g * n for g, n in drafted.items()) / sum(drafted.values()) if drafted else None
  bound = roofline.of(
    *(plan.model.config, method),
    itemsize=jax.tree.leaves(parameters)[0].dtype.itemsize,
    mean_context=FLAGS.length - FLAGS.new_tokens / 2,
    batch_size=FLAGS.batch_size,
    draft_length=mean,
  )
  # A batch is done when its slowest sequence is; the first token is an autoregressive step's.
  rounds = sum(max(map(sum, batch)) for batch in _batches(own["acceptances"]))
  steps = FLAGS.new_tokens * FLAGS.batches
  step = statistics.median(base["seconds"]) / steps
  parts = sum(own["phases"].values()) - own["phases"].get("round", 0.0)
  return {
    "tokens_per_second": steps * FLAGS.batch_size / statistics.median(own["seconds"]),
    "speedup": statistics.median(own["speedups"]),
    "acceptance_length": length,
    "acceptance_by_position": acceptance_by_position(by_accepted),
    "rho": bound.rho,
    "roofline_speedup": bound.speedup(length),
    "phases_speedup": steps * step / (FLAGS.batches * step + rounds * parts) if parts else None,
  }


if __name__ == "__main__":
  program.run(main, check)
