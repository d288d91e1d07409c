"""What `generate` says of its texts: summary.json, the closing lines, and JSON lines."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import jax

from experiments.generate_run import Request, Run, Text
from models.decoding import roofline
from models.decoding.method import Method
from models.transformer import Parameters, Transformer
from pallas_kernels import choice


def summarize(
  model: Transformer, parameters: Parameters, method: Method, request: Request, run: Run
) -> dict[str, Any]:
  """The part of summary.json that was measured and predicted."""
  tokens = sum(len(text.tokens) for text in run.texts)
  by_accepted = [sum(column) for column in zip(*(t.acceptances for t in run.texts), strict=True)]
  length = acceptance_length(by_accepted)
  context = statistics.mean(
    len(prompt.text) + len(text.tokens) / 2
    for prompt, text in zip(request.prompts, run.texts, strict=True)
  )
  itemsize = jax.tree.leaves(parameters)[0].dtype.itemsize
  rounds = _rounds_by_length(method, by_accepted, run)
  bound = roofline.of(
    *(model.config, method),
    itemsize=itemsize,
    mean_context=context,
    batch_size=request.size,
    draft_length=sum(g * n for g, n in rounds.items()) / max(sum(rounds.values()), 1),
  )
  return {
    "draft_length": "auto" if method.draft_lengths else method.draft_length,
    "rounds_by_draft_length": {str(g): n for g, n in rounds.items()},
    "seconds_by_draft_length": _measured(method, run),
    "kv_budget": str(method.selector.budget) if method.selector else None,
    "settings": _settings(method),
    "bit_exact": method.bit_exact,
    "batch_size": request.size,
    "completions": [text.tokens for text in run.texts],
    "tokens_per_second": tokens / run.seconds["decode"],
    "acceptance_length": length,
    "rounds": sum(by_accepted),
    "rounds_by_accepted_drafts": by_accepted,
    "acceptance_by_position": acceptance_by_position(by_accepted),
    "seconds": run.seconds,
    "phases": run.phases,
    "rho": bound.rho,
    "predicted_speedup": bound.speedup(length),
    "bytes_per_token": bound.bytes_per_token(length),
    "work": dataclasses.asdict(bound),
    "kernels": choice.chosen(),
  }


def _rounds_by_length(method: Method, by_accepted: list[int], run: Run) -> dict[int, int]:
  """Rounds of sequences, by the tokens drafted in them."""
  if not method.draft_lengths:
    return {method.draft_length: sum(by_accepted)}
  return {g: sum(run.tallies[g]) for g in sorted(run.tallies)}


def _measured(method: Method, run: Run) -> dict[str, Any]:
  """What lengths were chosen by: seconds of a round, at two contexts; nothing if none were."""
  if run.rounds is None:
    return {}
  contexts, low, high = (array.tolist() for array in run.rounds)
  seconds = {str(g): both for g, *both in zip(method.draft_lengths, low, high, strict=True)}
  return {"contexts": list(map(round, contexts)), "round": seconds}


def acceptance_length(by_accepted: list[int]) -> float:
  """Tokens that a round yields, the one behind the drafts included; 0 without rounds."""
  yielded = sum((accepted + 1) * rounds for accepted, rounds in enumerate(by_accepted))
  return yielded / max(sum(by_accepted), 1)


def acceptance_by_position(by_accepted: list[int]) -> list[float]:
  """Of all rounds, the share in which the first, the second, ... draft stood."""
  rounds = max(sum(by_accepted), 1)
  return [sum(by_accepted[position:]) / rounds for position in range(1, len(by_accepted))]


def _settings(method: Method) -> dict[str, Any]:
  """The selector's settings, given or not."""
  if method.selector is None or not dataclasses.is_dataclass(method.selector):
    return {}
  names = [f.name for f in dataclasses.fields(method.selector) if f.name != "budget"]
  return {name: getattr(method.selector, name) for name in names}


def closing(summary: dict[str, Any]) -> str:
  """A few lines to read, of a summary."""
  tokens, seconds = sum(map(len, summary["completions"])), summary["seconds"]
  whole = tokens / (seconds["prefill"] + seconds["decode"])
  spent = ", ".join(f"{phase} {taken:.2f}" for phase, taken in seconds.items())
  lines = [
    ("tokens/s", f"{summary['tokens_per_second']:.1f}; {whole:.1f} with prefill"),
    ("acceptance length", f"{summary['acceptance_length']:.2f} tokens a round"),
    ("seconds", spent),
  ]
  if summary["draft_length"]:
    shares = " ".join(f"{share:.2f}" for share in summary["acceptance_by_position"])
    lines.insert(2, ("drafts that stood", f"{shares} by position"))
  if summary["draft_length"] == "auto":
    chosen = [f"{g} in {n}" for g, n in summary["rounds_by_draft_length"].items()]
    lines.insert(2, ("draft lengths", f"{', '.join(chosen)} rounds"))
  if summary["draft_length"]:
    lines.append(("predicted speed-up", f"{summary['predicted_speedup']:.2f}, by bytes read"))
  if phases := dict(summary["phases"]):
    fused = phases.pop("round")
    parts = ", ".join(f"{phase} {1e3 * taken:.2f}" for phase, taken in phases.items())
    lines.append(("ms of a round", f"{parts} as programs of their own; fused {1e3 * fused:.2f}"))
  return "\n".join(f"  {name + ':':20}{value}" for name, value in lines)


class JsonLines:
  """A file with one object for each text, in the prompts' order, written as soon as that allows."""

  def __init__(self, path: Path, request: Request):
    self.path, self.request = path, request
    self._waiting: dict[int, Text] = {}
    self._next = 0
    path.touch(exist_ok=False)

  def add(self, number: int, text: Text) -> None:
    self._waiting[number] = text
    while self._next in self._waiting:
      line = self._line(self._next, self._waiting.pop(self._next))
      with open(self.path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
      self._next += 1

  def _line(self, number: int, text: Text) -> dict[str, Any]:
    return {
      "number": number,
      "source": self.request.prompts[number].name,
      "completion": bytes(text.tokens).decode("utf-8", "backslashreplace"),
      "tokens": text.tokens,
      "rounds": sum(text.acceptances),
      "acceptance_length": acceptance_length(text.acceptances),
    }
