"""Decodes the same prompts under ours and under Hugging Face transformers, side by side.

    scripts/peers/transformers        # makes the environments, then runs this and prints its table
    python -m experiments.peers.assisted --workdir=results/assisted --length=4096 --rounds=1

The checkpoint's weights become a `LlamaForCausalLM`, whose logits are held against ours first. Each
run is a process of its own; the systems take turns, round by round, so that a machine's moods
cancel. Decoding is timed alone, from a cache of all but each prompt's last token. All decode
greedily; every text is judged by our autoregressive logits.
"""

import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import data, program, prompts, reference_run, run_log
from experiments.decoding_flags import DRAFT_LENGTH, KV_BUDGET
from experiments.peers import llama, systems
from experiments.tables import assisted
from models.decoding.generate import Generator, slots_for
from models.decoding.method import Method
from models.decoding.verify import verify
from models.transformer import Transformer
from models.weights import checkpoint

FLAGS = flags.FLAGS
_positive = functools.partial(flags.DEFINE_integer, lower_bound=1)

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "experiments/checkpoints/retrieval", "Folder of the model's checkpoint."
)
_KIND = flags.DEFINE_enum("kind", "editing", list(prompts.KINDS), "Of the prompts.")
_LENGTH = _positive("length", 16_384, "Bytes of a prompt.")
_PROMPTS = _positive("prompts", 2, "Prompts, decoded one after the other.")
_NEW_TOKENS = _positive("new_tokens", 256, "Tokens to decode of each.")
_LOOKUP = _positive("lookup_tokens", 10, "Tokens that the peer's prompt look-up drafts.")
_ROUNDS = _positive("rounds", 3, "Runs of each system.")
_PAGE = _positive("selected_page", 16, "Cache entries that ours selects as one.")
_PYTHON = flags.DEFINE_string(
  "peers_python", None, "Python of the peer's environment (the one the script makes)."
)
_PEER_PROGRAM = Path("scripts/peers/decode.py")
_LOGIT_TOKENS = 512  # of the first prompt, over which logits are compared


class Job(NamedTuple):
  """A checked request."""

  model: Transformer
  prompts: list[prompts.Prompt]
  slots: int


def check() -> Job:
  """Refuses mistakes before anything is written."""
  run_log.check_workdir(program.workdir(), program.name())
  model = checkpoint.load_model(_CHECKPOINT.value)
  try:
    llama.check(model.config)
  except ValueError as error:
    raise ValueError(f"--checkpoint={_CHECKPOINT.value}: {error}") from error
  if not shutil.which(_python()):
    raise ValueError(f"{_python()} is not there: scripts/peers/transformers makes it.")
  slots = slots_for(model.config, Method(), _LENGTH.value, _NEW_TOKENS.value)
  corpus = data.load_corpus("stdlib")
  made = prompts.make(
    *(corpus, _KIND.value, _LENGTH.value, _PROMPTS.value, _NEW_TOKENS.value, FLAGS.seed)
  )
  return Job(model, made, slots)


def _python() -> str:
  return _PYTHON.value or systems.default_python().replace("peers", "transformers")


def main(job: Job) -> None:
  with program.mistakes():
    _, parameters = checkpoint.load(_CHECKPOINT.value)
  log = run_log.RunLog.start(program.workdir(), program.name())
  generator = Generator(job.model, parameters, Method())
  results: dict[str, list[dict[str, Any]]] = {name: [] for name in _SYSTEMS}
  with tempfile.TemporaryDirectory(prefix="assisted-", dir=log.workdir) as scratch:
    folder = Path(scratch) / "job"
    folder.mkdir()
    _write(job, generator, folder)
    for number in range(_ROUNDS.value):
      for name, system in _SYSTEMS.items():
        result = _run(system, folder, Path(scratch) / name)
        results[name].append(result)
        log.metric(system=name, round=number, result=result)
        print(f"  round {number + 1}: {assisted.progress_text(name, result)}", flush=True)
  summary = {
    **{name: FLAGS[name].value for name in ("kind", "length", "new_tokens", "lookup_tokens")},
    "draft_length": DRAFT_LENGTH.value,
    "kv_budget": KV_BUDGET.value,
    "page": _PAGE.value,
    "results": results,
    "verdicts": _verdicts(job, generator, results),
  }
  log.finish(summary, f"{_ROUNDS.value} rounds of {len(results)} systems")
  print(assisted.of_summary(run_log.read_summary(log.workdir)).markdown())


def _write(job: Job, generator: Generator, folder: Path) -> None:
  """What every system reads: the prompts, and for the peer the model and some of its logits."""
  texts = [prompt.prompt.encode() for prompt in job.prompts]
  lines = [json.dumps({"prompt": prompt.prompt}) + "\n" for prompt in job.prompts]
  (folder / "prompts.jsonl").write_text("".join(lines))
  described = {
    "model": llama.configuration(job.model.config),
    "new_tokens": _NEW_TOKENS.value,
    "lookup_tokens": _LOOKUP.value,
  }
  (folder / "job.json").write_text(json.dumps(described))
  weights = llama.weights(job.model.config, generator.parameters)
  np.savez(folder / "weights.npz", allow_pickle=False, **weights)
  arrays = {f"{i:04}": np.frombuffer(text, np.uint8) for i, text in enumerate(texts)}
  np.savez(folder / "prompts.npz", allow_pickle=False, **arrays)
  tokens = np.frombuffer(texts[0][:_LOGIT_TOKENS], np.uint8).astype(np.int32)
  cache = generator.empty_cache(1, 2 * _LOGIT_TOKENS)
  seen = verify(job.model, generator.parameters, cache, jnp.asarray(tokens[None]))
  np.savez(folder / "logits.npz", tokens=tokens, logits=np.asarray(seen.logits[0]))


class System(NamedTuple):
  """A command, of the job's folder and its own, and how its result is read."""

  command: Callable[[Path, Path], list[str]]
  read: Callable[[Path], dict[str, Any]]


def _ours(*settings: str) -> System:
  def command(folder: Path, own: Path) -> list[str]:
    return [
      *(sys.executable, "-m", "experiments.generate", f"--checkpoint={_CHECKPOINT.value}"),
      *(f"--prompts_jsonl={folder / 'prompts.jsonl'}", f"--max_new_tokens={_NEW_TOKENS.value}"),
      *("--repeats=1", "--notime_phases", f"--workdir={own / 'run'}"),
      *(setting.format(**_settings()) for setting in settings),
    ]

  return System(command, _read_ours)


def _settings() -> dict[str, Any]:
  return {"gamma": DRAFT_LENGTH.value, "budget": KV_BUDGET.value, "page": _PAGE.value}


def _read_ours(own: Path) -> dict[str, Any]:
  summary = run_log.read_summary(own / "run")
  return {
    "texts": summary["completions"],
    "tokens_per_second": summary["tokens_per_second"],
    "tokens_per_pass": summary["acceptance_length"],
    "prefill_seconds": summary["seconds"]["prefill"],
  }


def _peer(mode: str) -> System:
  return System(
    lambda folder, own: [_python(), str(_PEER_PROGRAM), mode, str(folder), str(own)],
    lambda own: json.loads((own / "result.json").read_text()),
  )


_SYSTEMS = {
  "autoregressive": _ours("--method=autoregressive"),
  "specattn": _ours(
    *("--method=specattn", "--draft_length={gamma}", "--kv_budget={budget}", "--page_size={page}")
  ),
  "dynamic": _peer("dynamic"),
  "static": _peer("static"),
  "lookup": _peer("lookup"),
}


def _run(system: System, folder: Path, own: Path) -> dict[str, Any]:
  """One run's result; {"failed": a line} where it did not end well."""
  own.mkdir()
  failed, _ = systems.failure(system.command(folder, own), own / "output.txt")
  result = {"failed": failed} if failed else system.read(own)
  shutil.rmtree(own)
  return result


def _verdicts(job: Job, generator: Generator, results: dict[str, list]) -> dict[str, Any]:
  """Of each system's first text of each prompt, by our autoregressive logits."""
  own = [run["texts"] for run in results["autoregressive"] if "failed" not in run]
  texts = {
    name: next((run["texts"] for run in runs if "failed" not in run), None)
    for name, runs in results.items()
  }
  asked = [prompt.prompt.encode() for prompt in job.prompts]
  return {
    name: reference_run.verdict(generator, job.slots, asked, text, own[0], _NEW_TOKENS.value)
    for name, text in texts.items()
    if text is not None and own
  }


if __name__ == "__main__":
  program.run(main, check)
