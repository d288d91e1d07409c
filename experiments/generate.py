"""Decodes prompts with a checkpoint, autoregressively or by drafts that attend to a selection.

    python -m experiments.generate --checkpoint=results/quickstart/training/checkpoint \\
      --prompt_file=book.txt --method=specattn --draft_length=6 --kv_budget=0.07

Tokens are bytes. One prompt's text is shown on a terminal as it is decoded (--show_drafts colours
the drafts that stood and those that did not); many prompts are a queue over --batch_size places,
and --output_jsonl keeps their texts. With --repeats, methods are timed instead: whole batches,
warmed up, the median over repeats.

`summary.json` holds the completions, tokens per second of decoding alone (compilation timed apart),
acceptance length, acceptance by draft position, rounds by draft length (`--draft_length=auto`
chooses), seconds per phase, and the speed-up that the roofline predicts at the acceptance length
measured.
"""

import codecs
import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import decoding_flags, live_text, program, prompt_flags, reference_run, run_log
from experiments.decoding_flags import END_TOKEN, METHOD
from experiments.generate_report import JsonLines, closing, summarize
from experiments.generate_run import Request, Text, benchmark, serve
from experiments.prompt_flags import Prompt
from models.decoding.generate import Generator, Timing, slots_for
from models.decoding.method import Method
from models.transformer import Transformer
from models.weights import checkpoint
from pallas_kernels import choice
from pallas_kernels.attention_with_mass.api import IMPLEMENTATIONS, attention_with_mass

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the model's checkpoint.")
CONTEXT = flags.DEFINE_integer(
  "context",
  None,
  "Most tokens of a text, where that is not the model's own; rotary positions go on beyond it.",
  lower_bound=1,
  upper_bound=2**24,
)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Tokens to decode.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Prompts decoded together.", lower_bound=1)
REPEATS = flags.DEFINE_integer(
  "repeats", 0, "Timed runs of each batch, behind one to warm up; 0: no benchmark.", lower_bound=0
)
TIME_PHASES = flags.DEFINE_bool(
  "time_phases", True, "Time a round's phases at the end, each as a program of its own."
)
OUTPUT_JSONL = flags.DEFINE_string("output_jsonl", None, "A new file for the texts, one a line.")
IMPLEMENTATION = flags.DEFINE_enum(
  "implementation", None, list(IMPLEMENTATIONS), "Of the kernels; the platform's best if not given."
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A checked request: nothing in it can be refused any more."""

  checkpoint: str
  model: Transformer
  method: Method
  request: Request
  stream: bool
  asked: dict[str, Any]
  reference: list[list[int]] | None  # the completions to compare with


def check() -> Plan:
  """The flags as a plan; raises ValueError or OSError with one sentence."""
  if not CHECKPOINT.value:
    raise ValueError("Name the model's folder with --checkpoint.")
  run_log.check_workdir(program.workdir(), "generate")
  model = _with_context(checkpoint.load_model(CHECKPOINT.value))
  if model.config.vocabulary != 256:
    raise ValueError(
      f"--checkpoint={CHECKPOINT.value} has a vocabulary of {model.config.vocabulary}, but prompts"
      " are read as bytes, which takes a model of 256 tokens."
    )
  method, prompts = decoding_flags.method(), prompt_flags.prompts()
  slots = _slots(model, method, prompts)
  _check_kernels(model, method, slots)
  _check_output()
  size = method.together(min(BATCH_SIZE.value, len(prompts)))
  stream = live_text.wanted(len(prompts), size) and not REPEATS.value
  request = Request(
    *(prompts, size, slots, MAX_NEW_TOKENS.value, program.FLAGS.seed, TIME_PHASES.value)
  )
  texts = [prompt.text for prompt in prompts]
  asked = reference_run.asked(texts, MAX_NEW_TOKENS.value, END_TOKEN.value)
  reference = reference_run.completions(method, asked)
  return Plan(CHECKPOINT.value, model, method, request, stream, asked, reference)


def _with_context(model: Transformer) -> Transformer:
  """The model with the context asked for, which is no parameter's shape where positions rotate."""
  if CONTEXT.value is None:
    return model
  if model.config.family == "gpt":
    raise ValueError(
      f"--context={CONTEXT.value}: this model learned its {model.config.context} positions and has"
      " no others; leave it out."
    )
  return dataclasses.replace(model, config=dataclasses.replace(model.config, context=CONTEXT.value))


def _slots(model: Transformer, method: Method, prompts: list[Prompt]) -> int:
  longest = max(prompts, key=lambda prompt: len(prompt.text))
  try:
    return slots_for(model.config, method, len(longest.text), MAX_NEW_TOKENS.value)
  except ValueError as error:
    raise ValueError(f"{longest.name}: {error}") from error


def _check_kernels(model: Transformer, method: Method, slots: int) -> None:
  """Refuses an --implementation that cannot verify this model's rows; compiles nothing."""
  choice.prefer(IMPLEMENTATION.value)
  shape, config = jax.ShapeDtypeStruct, model.config
  cache = shape((1, config.kv_heads, slots, config.head_size), model.dtype)
  for rows in (1, method.longest + 1):
    q = shape((1, config.heads, rows, config.head_size), model.dtype)
    try:
      jax.eval_shape(attention_with_mass, q, cache, cache, shape((1,), np.int32))
    except ValueError as error:
      raise ValueError(f"--implementation={IMPLEMENTATION.value}: {error}") from error


def _check_output() -> None:
  if not OUTPUT_JSONL.value:
    return
  path = Path(OUTPUT_JSONL.value)
  if path.exists():
    raise ValueError(f"--output_jsonl={path} exists already; name a new file.")
  if not path.parent.is_dir():
    raise ValueError(f"--output_jsonl={path} is in no folder; make {path.parent} first.")


def main(plan: Plan) -> None:
  with program.mistakes():
    _, parameters = checkpoint.load(plan.checkpoint)
  generator, request = Generator(plan.model, parameters, plan.method), plan.request
  log = run_log.RunLog.start(program.workdir(), "generate")
  _note_bytes(request.prompts)
  lines = JsonLines(Path(OUTPUT_JSONL.value), request) if OUTPUT_JSONL.value else None
  if REPEATS.value:
    run = benchmark(generator, request, REPEATS.value, lambda *batch: _timed(log, request, *batch))
    for number, text in enumerate(run.texts):
      _keep(lines, number, text)
  else:
    live = live_text.on_screen() if plan.stream else None
    run = serve(generator, request, live, lambda *text: _ended(log, plan, lines, *text))
  print("Kernels: " + ", ".join(map(" as ".join, choice.chosen().items())) + ".", flush=True)
  summary = {"method": METHOD.value, **plan.asked}
  summary |= summarize(plan.model, parameters, plan.method, request, run)
  if plan.reference is not None:
    prompts, texts = [p.text for p in request.prompts], summary["completions"]
    summary |= reference_run.verdict(
      *(generator, request.slots, prompts, texts, plan.reference, request.wanted)
    )
  print(closing(summary), flush=True)
  log.finish(
    summary,
    f"{summary['tokens_per_second']:.1f} tokens/s,"
    f" {summary['acceptance_length']:.2f} tokens a round",
  )


def _note_bytes(prompts: list[Prompt]) -> None:
  """A sentence for each prompt that is no text: it works, but may not be what was meant."""
  for prompt in prompts:
    try:
      codecs.getincrementaldecoder("utf-8")().decode(prompt.text)  # its end may be cut
    except UnicodeDecodeError as error:
      print(
        f"generate: {prompt.name} is no text in UTF-8 from byte {error.start} on; its bytes are"
        " taken as they are.",
        file=sys.stderr,
      )


def _timed(log: run_log.RunLog, request: Request, first: int, timing: Timing) -> None:
  done = min(first + request.size, len(request.prompts))
  real = timing.texts[: done - first]  # without what filled the batch up
  rate = sum(map(len, real)) / statistics.median(timing.decode)
  log.metric(
    batch=first // request.size, decode_seconds=timing.decode, prefill_seconds=timing.prefill
  )
  print(
    f"{done} of {len(request.prompts)} prompts decoded: prefill {timing.prefill:.2f} s,"
    f" {rate:.1f} tokens/s",
    flush=True,
  )


def _keep(lines: JsonLines | None, number: int, text: Text) -> None:
  if lines:
    lines.add(number, text)


def _ended(
  log: run_log.RunLog, plan: Plan, lines: JsonLines | None, number: int, text: Text
) -> None:
  rounds = sum(text.acceptances)
  log.metric(prompt=number, tokens=len(text.tokens), rounds=rounds)
  _keep(lines, number, text)
  if not plan.stream:
    name = plan.request.prompts[number].name
    print(f"{name}: {len(text.tokens)} tokens in {rounds} rounds.", flush=True)


if __name__ == "__main__":
  program.run(main, check)
