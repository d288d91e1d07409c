"""Trains one model under ours, ZeRO-Infinity, plain PyTorch and in-memory JAX, side by side.

    scripts/peers/zero_infinity        # makes the environments, then runs this and prints its table
    python -m experiments.peers --workdir=results/peers --models=gpt-bytes-58m --rounds=1

Each run is a process of its own; the systems take turns, round by round, so that a machine's moods
cancel. Everything big (weights, swap files) goes to a folder under --scratch that is removed again.

Each case (a model with a number of micro-batches) leaves `<model>.<micro-batches>.json` in the work
folder as soon as it is measured. The table has all the cases that lie there, so that they may be
measured one command at a time, and with --systems one system at a time: a case that is measured
again with the same settings keeps the results of the systems that are not run again.
"""

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments import data, program, run_log
from experiments.peers import cases, systems, zero_infinity
from experiments.peers import job as jobs
from experiments.tables import peers
from models.config import PRESETS

_positive = functools.partial(flags.DEFINE_integer, lower_bound=1)

_MODELS = flags.DEFINE_list("models", ["gpt-bytes-58m", "gpt-bytes-400m"], "Presets to compare on.")
_MICRO_BATCHES = flags.DEFINE_list("micro_batches", ["1", "4"], "Micro-batches of an iteration.")
_MICRO_BATCH_SIZE = _positive("micro_batch_size", 2, "Sequences of a micro-batch.")
_SEQUENCE_LENGTH = _positive("sequence_length", 512, "Tokens of a sequence.")
_ITERATIONS = flags.DEFINE_integer("iterations", 4, "Of a run; the first is not timed.", 2)
_ROUNDS = _positive("rounds", 3, "Runs of each system.")
_SYSTEMS = flags.DEFINE_list("systems", list(systems.SYSTEMS), "What to run.")
_DATA = flags.DEFINE_string(
  "data", "stdlib", "Text to train on: stdlib, a folder, or a token file."
)
_BUDGET = program.DEFINE_size(
  "host_memory_budget", None, "Ours (as much as ZeRO-Infinity's swap buffers take)."
)
_DEVICE_BUDGET = program.DEFINE_size(
  "device_memory_budget", None, "Ours (what ZeRO-Infinity holds beside its swap buffers)."
)
_SCRATCH = flags.DEFINE_string("scratch", None, "Folder on the disk to compare on (the workdir).")
_PYTHON = flags.DEFINE_string(
  "peers_python", None, "Python of the peers' environment (the one the script makes)."
)


def check() -> tuple[list[jobs.Job], data.Corpus]:
  """Refuses mistakes before anything is written."""
  run_log.check_workdir(program.workdir(), program.name())
  for value, known, flag in (
    (_MODELS.value, PRESETS, "models"),
    (_SYSTEMS.value, systems.SYSTEMS, "systems"),
  ):
    for word in value:
      if word not in known:
        raise ValueError(f"--{flag}: {word!r} is none of {', '.join(known)}.")
  for model in _MODELS.value:
    config = PRESETS[model]
    if config.family != "gpt" or config.tied_embeddings:
      raise ValueError(f"--models={model}: the peers' model is the gpt family, embeddings untied.")
    if config.context < _SEQUENCE_LENGTH.value:
      raise ValueError(
        f"--sequence_length={_SEQUENCE_LENGTH.value} exceeds {model}'s {config.context}."
      )
  if not all(word.isdecimal() and int(word) for word in _MICRO_BATCHES.value):
    raise ValueError("--micro_batches must be positive numbers, as in 1,4.")
  if not {"torch", "zero_infinity"}.isdisjoint(_SYSTEMS.value) and not shutil.which(_python()):
    raise ValueError(f"{_python()} is not there: scripts/peers/zero_infinity makes it.")
  scratch = Path(_SCRATCH.value or ".")
  if not scratch.is_dir():
    raise ValueError(f"--scratch={scratch} is no folder.")
  corpus = data.load_corpus(_DATA.value)
  data.check_length(corpus.train, _SEQUENCE_LENGTH.value)
  return [_job(m, int(count)) for m in _MODELS.value for count in _MICRO_BATCHES.value], corpus


def _python() -> str:
  return _PYTHON.value or systems.default_python()


def _job(model: str, micro_batches: int) -> jobs.Job:
  return jobs.Job(
    *(model, PRESETS[model], micro_batches, _MICRO_BATCH_SIZE.value, _SEQUENCE_LENGTH.value),
    *(_ITERATIONS.value, flags.FLAGS.seed, _DATA.value),
  )


def compare(job: jobs.Job, corpus: data.Corpus, log: run_log.RunLog) -> dict[str, Any]:
  """All rounds of one job: the case's settings and, by system, a result for each round."""
  configuration = zero_infinity.configuration(
    job.config, micro_batch_size=job.micro_batch_size, micro_batches=job.micro_batches
  )
  budget = _BUDGET.value or zero_infinity.buffer_bytes(job.config)
  device_budget = _DEVICE_BUDGET.value or zero_infinity.device_bytes(
    job.config, micro_batch_size=job.micro_batch_size, sequence_length=job.sequence_length
  )
  results: dict[str, list] = {name: [] for name in _SYSTEMS.value}
  with tempfile.TemporaryDirectory(prefix="peers-", dir=_SCRATCH.value or log.workdir) as scratch:
    folder = Path(scratch) / "job"
    jobs.write(job, corpus, configuration, folder)
    for number in range(_ROUNDS.value):
      for name in _turn(_SYSTEMS.value, number):
        own = Path(scratch) / name
        own.mkdir()
        place = systems.Place(folder, own, budget, device_budget, _python())
        result = systems.run(systems.SYSTEMS[name], job, place)
        shutil.rmtree(own)
        results[name].append(result)
        log.metric(model=job.model, micro_batches=job.micro_batches, system=name, result=result)
        print(f"  round {number + 1}: {peers.progress_text(name, result)}", flush=True)
  return {
    "model": job.model,
    "parameters": job.parameters,
    "micro_batches": job.micro_batches,
    "tokens": job.micro_batches * job.micro_batch_size * job.sequence_length,
    "micro_batch_size": job.micro_batch_size,
    "sequence_length": job.sequence_length,
    "iterations": job.iterations,
    "host_memory_budget": budget,
    "device_memory_budget": device_budget,
    "deepspeed": configuration,
    "results": results,
  }


def _turn(names: list[str], number: int) -> list[str]:
  """The systems in another order each round, so that none always follows the same one."""
  start = number % len(names)
  return names[start:] + names[:start]


def main(checked: tuple[list[jobs.Job], data.Corpus]) -> None:
  todo, corpus = checked
  log = run_log.RunLog.start(program.workdir(), program.name())
  for job in todo:
    print(f"{job.model}, {job.micro_batches} micro-batches of {_MICRO_BATCH_SIZE.value} sequences")
    cases.keep(compare(job, corpus, log), log.workdir)
  found = cases.read_all(log.workdir)
  summary = {"cases": found, "not_switched_on": zero_infinity.NOT_SWITCHED_ON}
  log.finish(summary, f"{len(found)} comparisons")
  print(peers.of_summary(run_log.read_summary(log.workdir)).markdown())


if __name__ == "__main__":
  program.run(main, check)
