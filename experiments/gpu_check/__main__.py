"""Shows on a machine with a GPU what the others cannot: one command, nine minutes.

    scripts/gpu_check                                          # makes the environment too
    python -m experiments.gpu_check --platform=cpu --quick     # rehearses every part on any machine
    python -m experiments.gpu_check --dry_run                  # says what it would run

What matters most comes first: conformance of every kernel on the device, bandwidths, rounds of
large shapes, training, decoding. Each command is a process of its own with a time-out, so that one
failure does not lose the rest. summary.json tells what became of each; tables come from the folder
by `python -m experiments.tables --all --runs=<folder>`. Exits with 1 if a part did not pass.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import data, program, run_log
from experiments.gpu_check import orchestrate, parts
from experiments.tables.registry import TABLES
from experiments.tables.table import steady_seconds
from experiments.tables.training import SCHEDULES
from models.config import PRESETS

FOLDER = "results/gpu_check"
_PLATFORM = flags.DEFINE_enum("platform", "gpu", ["gpu", "cpu"], "Where; cpu is for a rehearsal.")
_QUICK = flags.DEFINE_bool("quick", False, "Small sizes: shows that each part runs.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the parts and their commands, run nothing.")
_MINUTES = flags.DEFINE_float("minutes", 9.0, "Time for everything.", lower_bound=0.1)
_MODEL = flags.DEFINE_enum("model", None, list(PRESETS), "To train (the largest that fits).")
_PARTS = flags.DEFINE_multi_string("part", [], "Only this part; repeatable.")

_ENVIRONMENT = {
  "gpu": {
    "JAX_PLATFORMS": "cuda,cpu",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",  # float32 is float32, in references and texts
  },
  "cpu": {"JAX_PLATFORMS": "cpu"},
}
_ASK = "import jax; print('GPUs:', [d.device_kind for d in jax.devices() if d.platform == 'gpu'])"
RESERVE = 20  # seconds of the time for what is not a part: starting, tables, the summary


class Plan(NamedTuple):
  """What to run, where, and the corpus of its prompts (None where nothing is decoded)."""

  folder: Path
  todo: list[orchestrate.Part]
  scale: parts.Scale
  corpus: data.Corpus | None
  model: str


def check() -> Plan:
  """Refuses a machine without a GPU, and flags that do not fit; writes nothing."""
  folder = run_log.check_workdir(program.workdir(), program.name())
  scale = parts.QUICK if _QUICK.value else parts.FULL
  model = _MODEL.value or (
    "bytes-tiny" if _QUICK.value else parts.largest_model(folder, _MINUTES.value)
  )
  wanted = parts.parts(folder, scale, model)
  unknown = set(_PARTS.value) - {part.name for part in wanted}
  if unknown:
    names = ", ".join(part.name for part in wanted)
    raise ValueError(f"--part={unknown.pop()} is none of {names}.")
  wanted = [part for part in wanted if not _PARTS.value or part.name in _PARTS.value]
  if _PLATFORM.value == "gpu" and not _DRY_RUN.value:
    _require_gpu()
  for part in wanted:
    for workdir, name in part.runs():
      run_log.check_workdir(workdir, name)
  decodes = any(part.name == "decoding" for part in wanted) and not _DRY_RUN.value
  return Plan(folder, wanted, scale, data.load_corpus("stdlib") if decodes else None, model)


def _require_gpu() -> None:
  """JAX is asked in a process of its own, since one that has seen the GPU keeps its memory."""
  environment = {**os.environ, **_ENVIRONMENT["gpu"]}
  done = subprocess.run(
    [sys.executable, "-c", _ASK], capture_output=True, text=True, env=environment
  )
  if done.returncode or "GPUs: []" in done.stdout:
    raise ValueError(
      "JAX sees no GPU here, so there is nothing to check; --platform=cpu --quick rehearses it."
    )
  print(done.stdout.strip(), flush=True)


def main(plan: Plan) -> None:
  if _DRY_RUN.value:
    _describe(plan)
    return
  log = run_log.RunLog.start(plan.folder, program.name())
  for part in plan.todo:  # an earlier check's runs; `check` saw that they are nothing else
    for workdir, _ in part.runs():
      shutil.rmtree(workdir, ignore_errors=True)
  if plan.corpus is not None:
    _write_prompts(plan)
  results, seconds = [], _MINUTES.value * 60 - RESERVE
  print(f"At most {_MINUTES.value:g} minutes; all files go to {plan.folder}/.", flush=True)
  for result in orchestrate.run(plan.todo, plan.folder, seconds, _environment(plan.folder)):
    results.append(result)
    log.metric(**result)
    print(f"{result['part']}: {result['status']} after {result['seconds']:.0f} s", flush=True)
    for command in result["commands"]:
      if command["exit_code"] != 0:
        print(f"  python {command['command']}\n    {command['said']}", flush=True)
  for name, table in TABLES.items():
    (plan.folder / f"{name}.md").write_text(table(plan.folder).markdown())
  log.finish({"parts": results, "training": _training(plan)}, _closing(results, plan.folder))
  sys.exit(int(any(result["status"] != "passed" for result in results)))


def _environment(folder: Path) -> dict[str, str]:
  """Of every command; programs that two of them compile are compiled once."""
  cache = {
    "JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").absolute()),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  given = {name: os.environ[name] for name in cache if name in os.environ}
  return _ENVIRONMENT[_PLATFORM.value] | cache | given


def _describe(plan: Plan) -> None:
  for part in plan.todo:
    print(f"{part.name} (about {part.seconds:.0f} s): {part.says}")
    for command in part.commands:
      print(f"  python {shlex.join(command)}")


def _write_prompts(plan: Plan) -> None:
  assert plan.corpus is not None
  files = parts.prompt_files(plan.folder)
  prompts = plan.corpus.heldout_prompts(len(files), plan.scale.prompt_bytes, program.FLAGS.seed)
  for path, prompt in zip(files, prompts, strict=True):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(prompt.tolist()))


def _training(plan: Plan) -> dict[str, Any]:
  """Of each schedule: tokens/s and TFLOP/s of a median iteration, and its bound.

  Six operations a parameter and token; what is computed again is not counted.
  """
  found, count = {}, parts.model_parameters(PRESETS[plan.model])
  for schedule in SCHEDULES:
    if not (plan.folder / schedule / run_log.SUMMARY_FILE).is_file():
      continue
    summary = run_log.read_summary(plan.folder / schedule)
    took, every = steady_seconds(summary), summary["seconds_per_iteration"]
    tokens = summary["tokens_per_second"] * sum(every) / len(every)
    found[schedule] = {
      "model": plan.model,
      "tokens_per_second": tokens / took,
      "tflops": 6 * count * tokens / took / 1e12,
      "seconds_per_iteration": every,
      "bound_seconds_per_iteration": summary["bound_seconds_per_iteration"],
      "timeline": f"{schedule}/timeline.json",
    }
  return found


def _closing(results: list[dict[str, Any]], folder: Path) -> str:
  said = ", ".join(f"{result['part']} {result['status']}" for result in results)
  return f"{said}; tables in {folder}"


if __name__ == "__main__":
  program.FLAGS.set_default("workdir", FOLDER)
  program.run(main, check)
