"""Measures how many drafts stand: every selector at every budget, on the same prompts.

    python -m experiments.prompts --lengths=4096 --count=8 --workdir=runs/prompts
    python -m experiments.acceptance --checkpoint=experiments/checkpoints/retrieval \\
      --prompts_jsonl=runs/prompts/editing-4096.jsonl --case=specattn --case=pillar,refresh=4

A case is a selector, and flags of its own behind commas. The loop itself decodes each, from one
prefill of the prompts; nothing is timed, so budgets share a batch and a compiled program. Decoding
is lossless: all cases decode the autoregressive texts, and differ in their rounds.

`summary.json` holds a row for each case and budget: acceptance length, acceptance by draft
position, each prompt's rounds by accepted drafts; and how much the texts repeat what stands far
back, which says whether there was anything to retrieve.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import decoding_flags, program, prompt_flags
from experiments.acceptance_run import Cache, Case, copied_share, decode, ladders
from experiments.generate_report import acceptance_by_position, acceptance_length
from experiments.run_log import RunLog, check_workdir
from models.decoding.generate import slots_for
from models.decoding.method import Method
from models.decoding.selectors import SELECTORS, Budget
from models.transformer import Transformer
from models.weights import checkpoint

FLAGS = flags.FLAGS

flags.DEFINE_string("checkpoint", None, "Folder of the model's checkpoint.")
flags.DEFINE_multi_string(
  "case",
  list(SELECTORS),
  "A selector to measure, with flags of its own behind commas: pillar,refresh=4. Repeatable.",
)
flags.DEFINE_list(
  "kv_budgets",
  "0.01,0.02,0.05,0.07,0.1,0.2,0.5",
  "What drafts attend to, each as --kv_budget; for cases that give no kv_budget themselves.",
)
flags.DEFINE_integer("max_new_tokens", 96, "Tokens to decode behind each prompt.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A checked request: nothing in it can be refused any more."""

  checkpoint: str
  model: Transformer
  prompts: list[bytes]
  cases: list[Case]
  greedy: Method  # what all cases decode alike, without drafts
  slots: int
  workdir: pathlib.Path


def check() -> Plan:
  """The flags as a plan; raises ValueError or OSError with one sentence."""
  if not FLAGS.checkpoint:
    raise ValueError("Name the model's folder with --checkpoint.")
  workdir = check_workdir(program.workdir(), "acceptance")
  model = checkpoint.load_model(FLAGS.checkpoint)
  if model.config.vocabulary != 256:
    raise ValueError(f"--checkpoint={FLAGS.checkpoint} must have a vocabulary of 256, for bytes.")
  if FLAGS.temperature:
    raise ValueError("Acceptance is measured of greedy decoding: leave out --temperature.")
  prompts = [prompt.text for prompt in prompt_flags.prompts()]
  longest = max(map(len, prompts))
  cases = [case(words, longest) for words in dict.fromkeys(FLAGS.case)]
  methods = [method for case in cases for method, _ in case.parts]
  greedy = Method(end_token=methods[0].end_token)
  slots = max(
    slots_for(model.config, method, longest, FLAGS.max_new_tokens) for method in (*methods, greedy)
  )
  return Plan(FLAGS.checkpoint, model, prompts, cases, greedy, slots, workdir)


def case(words: str, length: int) -> Case:
  """`selector,flag=value,...` as what there is to decode; raises ValueError with one sentence."""
  if not FLAGS.kv_budgets:
    raise ValueError("--kv_budgets names no budget; give at least one.")
  with decoding_flags.written("case", words) as given:
    method = decoding_flags.method_of_fixed_length()
    texts = [FLAGS.kv_budget] if "kv_budget" in given else FLAGS.kv_budgets
    budgets = {text: Budget.parse(text, FLAGS.kv_floor) for text in texts}
  return Case(words, ladders(method, budgets, length))


def main(plan: Plan) -> None:
  with program.mistakes():
    _, parameters = checkpoint.load(plan.checkpoint)
  log = RunLog.start(plan.workdir, "acceptance")
  filled = Cache.fill(plan.model, parameters, plan.prompts, plan.slots)
  (reference,), _ = decode(filled, plan.greedy, 1, FLAGS.max_new_tokens)
  print("case: acceptance length at each budget", flush=True)
  rows = []
  for each in tqdm(plan.cases, desc="cases", unit="case", disable=None):
    made = [
      row
      for method, budgets in each.parts
      for row in _rows(each.name, budgets, *_decoded(filled, method, budgets), reference)
    ]
    rows += made
    log.metric(case=each.name, lengths=[row["acceptance_length"] for row in made])
    lengths = "  ".join(f"{row['kv_budget']} {row['acceptance_length']:.2f}" for row in made)
    tqdm.write(f"{each.name}: {lengths}")
  far = [copied_share(p, bytes(t)) for p, t in zip(plan.prompts, reference, strict=True)]
  log.finish(
    {
      "checkpoint": plan.checkpoint,
      "prompt_bytes": [len(prompt) for prompt in plan.prompts],
      "draft_length": FLAGS.draft_length,
      "completions": reference,
      "copied_share": float(np.mean(far)),
      "rows": rows,
    },
    f"{len(rows)} rows, {np.mean(far):.0%} of the texts repeated from far back",
  )


def _decoded(filled: Cache, method: Method, budgets: tuple[str, ...]) -> tuple[list, np.ndarray]:
  return decode(filled, method, len(budgets), FLAGS.max_new_tokens)


def _rows(
  name: str,
  budgets: tuple[str, ...],
  texts: list[list[list[int]]],
  accepted: np.ndarray,
  reference: list[list[int]],
) -> list[dict[str, Any]]:
  """One row a budget. Texts may differ from the reference's from a near-tie on."""
  rows = []
  for budget, own, of_prompts in zip(budgets, texts, accepted.tolist(), strict=True):
    total = [sum(column) for column in zip(*of_prompts, strict=True)]
    rows.append(
      {
        "case": name,
        "kv_budget": budget,
        "acceptance_length": acceptance_length(total),
        "acceptance_by_position": acceptance_by_position(total),
        "rounds_by_accepted_drafts": of_prompts,
        "other_texts": sum(a != b for a, b in zip(own, reference, strict=True)),
      }
    )
  return rows


if __name__ == "__main__":
  program.run(main, check)
