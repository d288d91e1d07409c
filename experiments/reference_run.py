"""Texts held against an autoregressive run's of the same prompts: --compare_with."""

import hashlib
from typing import Any

from absl import flags

from experiments import run_log
from experiments.decoding_flags import AUTOREGRESSIVE
from models.decoding import compare
from models.decoding.generate import Generator, pad
from models.decoding.method import Method

COMPARE_WITH = flags.DEFINE_string(
  "compare_with",
  None,
  "Folder of an autoregressive run of the same prompts, to compare texts with.",
)


def asked(prompts: list[bytes], wanted: int, end_token: int | None) -> dict[str, Any]:
  """What a text depends on beside the model and the method."""
  hashes = [{"bytes": len(p), "sha256": hashlib.sha256(p).hexdigest()} for p in prompts]
  return {"prompts": hashes, "max_new_tokens": wanted, "end_token": end_token}


def completions(method: Method, wants: dict[str, Any]) -> list[list[int]] | None:
  """The reference's completions, if one is named; ValueError with one sentence if it is none."""
  if not COMPARE_WITH.value:
    return None
  if not method.sampler.greedy:
    raise ValueError("--compare_with compares greedy texts; leave out --temperature.")
  summary = run_log.read_summary(COMPARE_WITH.value)
  if summary.get("method") != AUTOREGRESSIVE or any(summary.get(k) != wants[k] for k in wants):
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


def verdict(
  generator: Generator,
  slots: int,
  prompts: list[bytes],
  texts: list[list[int]],
  reference: list[list[int]],
  wanted: int,
) -> dict[str, Any]:
  """Equal texts need no judge; another is followed by the autoregressive program, alone.

  A text that ends too early or too late is wrong from its end on.
  """
  judged = [
    compare.Comparison(0, None) if text == other else _judge(generator, slots, prompt, text, wanted)
    for prompt, text, other in zip(prompts, texts, reference, strict=True)
  ]
  return {
    "identical_to_autoregressive": all(c.identical for c in judged),
    "near_ties": sum(c.near_ties for c in judged),
    "first_wrong_token": [c.wrong for c in judged],
  }


def _judge(
  generator: Generator, slots: int, prompt: bytes, text: list[int], wanted: int
) -> compare.Comparison:
  batch, method = pad([prompt]), generator.method
  (judged,), _ = compare.follow(
    *(generator.model, generator.parameters, generator.prefill(batch, slots)),
    *(batch.last, [text]),
    near_tie=0.0 if method.bit_exact else compare.NEAR_TIE,
  )
  if judged.wrong is not None or compare.complete(text, wanted, method.end_token):
    return judged
  return compare.Comparison(0, len(text))
