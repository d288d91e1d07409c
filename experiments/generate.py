"""Decodes prompts with a checkpoint, autoregressively or by drafts that attend to a selection.

    python -m experiments.generate --checkpoint=results/quickstart/training/checkpoint \\
      --prompt_file=book.txt --method=specattn --draft_length=6 --kv_budget=0.07

Tokens are bytes. `summary.json` holds the completions, tokens per second of decoding alone (warmed
up, compilation timed apart, median over repeats), acceptance length, rounds, seconds per phase, and
the speed-up that the roofline predicts at the acceptance length measured.
"""

import dataclasses
import hashlib
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import decoding_flags, program, run_log
from experiments.decoding_flags import AUTOREGRESSIVE, END_TOKEN, METHOD
from models.decoding import compare, roofline
from models.decoding.generate import Generator, Timing, measure, pad, sequence_keys, slots_for
from models.decoding.loop import Method
from models.transformer import Transformer
from models.weights import checkpoint
from pallas_kernels import choice
from pallas_kernels.attention_with_mass.api import IMPLEMENTATIONS, attention_with_mass

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of the model's checkpoint.")
PROMPT_FILES = flags.DEFINE_multi_string(
  "prompt_file", [], "A file that is one prompt; repeatable."
)
PROMPT_BYTES = flags.DEFINE_integer(
  "prompt_bytes", 0, "Use only the first bytes of each prompt file; 0 uses all.", lower_bound=0
)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Tokens to decode.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Prompts decoded together.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs, behind one to warm up.", lower_bound=1)
IMPLEMENTATION = flags.DEFINE_enum(
  "implementation", None, list(IMPLEMENTATIONS), "Of the kernels; the platform's best if not given."
)
COMPARE_WITH = flags.DEFINE_string(
  "compare_with",
  None,
  "Folder of an autoregressive run of the same prompts, to compare texts with.",
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A checked request: nothing in it can be refused any more."""

  checkpoint: str
  model: Transformer
  method: Method
  prompts: list[bytes]
  slots: int
  reference: list[list[int]] | None  # the completions to compare with


def check() -> Plan:
  """The flags as a plan; raises ValueError or OSError with one sentence."""
  if not CHECKPOINT.value:
    raise ValueError("Name the model's folder with --checkpoint.")
  run_log.check_workdir(program.workdir(), "generate")
  model = checkpoint.load_model(CHECKPOINT.value)
  if model.config.vocabulary != 256:
    raise ValueError(
      f"--checkpoint={CHECKPOINT.value} has a vocabulary of {model.config.vocabulary}, but prompts"
      " are read as bytes, which takes a model of 256 tokens."
    )
  prompts = _prompts()
  method = decoding_flags.method()
  slots = slots_for(model.config, method, max(map(len, prompts)), MAX_NEW_TOKENS.value)
  _check_kernels(model, method, slots)
  return Plan(CHECKPOINT.value, model, method, prompts, slots, _reference(prompts, method))


def _check_kernels(model: Transformer, method: Method, slots: int) -> None:
  """Refuses an --implementation that cannot verify this model's rows; compiles nothing."""
  choice.prefer(IMPLEMENTATION.value)
  shape, config = jax.ShapeDtypeStruct, model.config
  cache = shape((1, config.kv_heads, slots, config.head_size), model.dtype)
  for rows in (1, method.draft_length + 1):
    q = shape((1, config.heads, rows, config.head_size), model.dtype)
    try:
      jax.eval_shape(attention_with_mass, q, cache, cache, shape((1,), np.int32))
    except ValueError as error:
      raise ValueError(f"--implementation={IMPLEMENTATION.value}: {error}") from error


def _prompts() -> list[bytes]:
  if not PROMPT_FILES.value:
    raise ValueError("Give at least one --prompt_file.")
  prompts = [Path(path).read_bytes() for path in PROMPT_FILES.value]
  for path, prompt in zip(PROMPT_FILES.value, prompts, strict=True):
    if not prompt:
      raise ValueError(f"--prompt_file={path} is empty; a prompt needs at least one byte.")
  return [prompt[: PROMPT_BYTES.value or None] for prompt in prompts]


def _reference(prompts: list[bytes], method: Method) -> list[list[int]] | None:
  if not COMPARE_WITH.value:
    return None
  if not method.sampler.greedy:
    raise ValueError("--compare_with compares greedy texts; leave out --temperature.")
  summary = run_log.read_summary(COMPARE_WITH.value)
  asked = _asked(prompts)
  if summary.get("method") != AUTOREGRESSIVE or any(summary.get(k) != asked[k] for k in asked):
    raise ValueError(
      f"--compare_with={COMPARE_WITH.value} is not an autoregressive run of the same prompts,"
      " --max_new_tokens and --end_token."
    )
  if method.bit_exact and not summary["bit_exact"]:
    raise ValueError(
      f"--compare_with={COMPARE_WITH.value} was decoded without --bit_exact, so its bits may be"
      " others: decode it with --bit_exact too."
    )
  return summary["completions"]


def _asked(prompts: list[bytes]) -> dict[str, Any]:
  """What a text depends on beside the model and the method."""
  hashes = [{"bytes": len(p), "sha256": hashlib.sha256(p).hexdigest()} for p in prompts]
  return {
    "prompts": hashes,
    "max_new_tokens": MAX_NEW_TOKENS.value,
    "end_token": END_TOKEN.value,
  }


def main(plan: Plan) -> None:
  with program.mistakes():
    _, parameters = checkpoint.load(plan.checkpoint)
  generator = Generator(plan.model, parameters, plan.method)
  log = run_log.RunLog.start(program.workdir(), "generate")
  size = plan.method.together(min(BATCH_SIZE.value, len(plan.prompts)))
  timings, comparisons = [], []
  for first in range(0, len(plan.prompts), size):
    batch = plan.prompts[first : first + size]
    timing = _decode(generator, plan, batch, first, size)
    real = slice(len(batch))  # without what filled the batch up
    rate = sum(map(len, timing.texts[real])) / statistics.median(timing.decode)
    if not first:
      print("Kernels: " + ", ".join(map(" as ".join, choice.chosen().items())) + ".", flush=True)
    log.metric(batch=first // size, decode_seconds=timing.decode, prefill_seconds=timing.prefill)
    print(
      f"{first + len(batch)} of {len(plan.prompts)} prompts decoded: prefill"
      f" {timing.prefill:.2f} s, {rate:.1f} tokens/s",
      flush=True,
    )
    if plan.reference is not None:
      reference = plan.reference[first : first + size]
      comparisons += _compare(generator, timing, batch, reference)
    kept = {"texts": timing.texts[real], "acceptances": timing.acceptances[real]}
    timings.append(timing._replace(**kept, cache=None))
  summary = summarize(plan, parameters, timings, size) | _verdict(comparisons)
  log.finish(
    summary,
    f"{summary['tokens_per_second']:.1f} tokens/s,"
    f" {summary['acceptance_length']:.2f} tokens a round",
  )


def _decode(generator: Generator, plan: Plan, batch: list[bytes], first: int, size: int) -> Timing:
  """One batch; a short one is filled up with its last prompt, so that nothing is compiled anew."""
  filled = batch + [batch[-1]] * (size - len(batch))
  keys = sequence_keys(jax.random.key(program.FLAGS.seed), size, first)
  return measure(
    generator,
    pad(filled),
    keys,
    slots=plan.slots,
    wanted=MAX_NEW_TOKENS.value,
    repeats=REPEATS.value,
  )


def _compare(
  generator: Generator, timing: Timing, batch: list[bytes], reference: list[list[int]]
) -> list[compare.Comparison]:
  """Equal texts need no judge; others are followed by the autoregressive program.

  A text that ends too early or too late is wrong from its end on.
  """
  texts = timing.texts[: len(batch)]
  if texts == reference[: len(batch)]:
    return [compare.Comparison(0, None)] * len(batch)
  filled = batch + [batch[-1]] * (len(timing.texts) - len(batch))
  judged, _ = compare.follow(
    *(generator.model, generator.parameters, timing.cache, pad(filled).last, timing.texts),
    near_tie=0.0 if generator.method.bit_exact else compare.NEAR_TIE,
  )
  end = lambda text: compare.complete(text, MAX_NEW_TOKENS.value, END_TOKEN.value)
  return [
    verdict if verdict.wrong is not None or end(text) else compare.Comparison(0, len(text))
    for verdict, text in zip(judged[: len(batch)], texts, strict=True)
  ]


def _verdict(comparisons: list[compare.Comparison]) -> dict[str, Any]:
  if not comparisons:
    return {}
  return {
    "identical_to_autoregressive": all(c.identical for c in comparisons),
    "near_ties": sum(c.near_ties for c in comparisons),
    "first_wrong_token": [c.wrong for c in comparisons],
  }


def _settings(method: Method) -> dict[str, Any]:
  """The selector's settings, given or not."""
  if method.selector is None or not dataclasses.is_dataclass(method.selector):
    return {}
  names = [f.name for f in dataclasses.fields(method.selector) if f.name != "budget"]
  return {name: getattr(method.selector, name) for name in names}


def summarize(plan: Plan, parameters: Any, timings: list[Timing], size: int) -> dict[str, Any]:
  """What summary.json holds."""
  method = plan.method
  completions = [text for timing in timings for text in timing.texts]
  decode = sum(statistics.median(timing.decode) for timing in timings)
  acceptances = np.concatenate([timing.acceptances for timing in timings]).sum(axis=0).tolist()
  rounds = sum(acceptances)
  length = sum((a + 1) * n for a, n in enumerate(acceptances)) / max(rounds, 1)
  context = statistics.mean(
    len(prompt) + len(text) / 2 for prompt, text in zip(plan.prompts, completions, strict=True)
  )
  itemsize = jax.tree.leaves(parameters)[0].dtype.itemsize
  bound = roofline.of(
    plan.model.config, method, itemsize=itemsize, mean_context=context, batch_size=size
  )
  return {
    "method": METHOD.value,
    "draft_length": method.draft_length,
    "kv_budget": str(method.selector.budget) if method.selector else None,
    "settings": _settings(method),
    "bit_exact": method.bit_exact,
    **_asked(plan.prompts),
    "completions": completions,
    "tokens_per_second": sum(map(len, completions)) / decode,
    "acceptance_length": length,
    "rounds": rounds,
    "rounds_by_accepted_drafts": acceptances,
    "seconds": {
      "compile": sum(timing.compile for timing in timings),
      "prefill": sum(timing.prefill for timing in timings),
      "decode": decode,
    },
    "rho": bound.rho,
    "predicted_speedup": bound.speedup(length),
    "bytes_per_token": bound.bytes_per_token(length),
    "work": dataclasses.asdict(bound),
    "kernels": choice.chosen(),
  }


if __name__ == "__main__":
  program.run(main, check)
