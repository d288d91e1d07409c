"""Says what a store or a checkpoint holds, and whether it is as it was written; changes nothing.

    python -m experiments.inspect --store=runs/first/store
    python -m experiments.inspect --checkpoint=runs/first/checkpoint

Prints the configuration, the arrays, the commits and the one from which a run would go on, and
names what is damaged: then the exit code is 1. A store may be looked at while a run is at work in
it.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments import program
from experiments.run_log import RunLog, check_workdir
from models.weights import checkpoint
from offload.checksums import Corrupt
from offload.look import Look, look

FLAGS = flags.FLAGS

flags.DEFINE_string("store", None, "A store's folder.")
flags.DEFINE_string("checkpoint", None, "A checkpoint's folder.")


class Found(NamedTuple):
  """What there is to say; `damaged` has a sentence for each file that is not as it was written."""

  summary: dict[str, Any]
  damaged: list[str]


def check() -> Callable[[], Found]:
  if bool(FLAGS.store) == bool(FLAGS.checkpoint):
    raise ValueError("Give --store or --checkpoint: the folder to look at.")
  folder = pathlib.Path(FLAGS.store or FLAGS.checkpoint)
  if not folder.is_dir():
    raise ValueError(f"{folder} is no folder.")
  workdir = check_workdir(program.workdir(), "inspect").absolute()
  if workdir.is_relative_to(folder.absolute()):
    raise ValueError(f"--workdir={workdir} lies in what is looked at: name another folder.")
  return lambda: (of_store if FLAGS.store else of_checkpoint)(folder)


def main(found_in: Callable[[], Found]) -> None:
  try:
    with program.mistakes():
      summary, damaged = found_in()
  except program.Mistake as error:
    if isinstance(error.__cause__, Corrupt):
      raise program.Failure(str(error)) from error
    raise
  for line in _lines(summary):
    print(line)
  log = RunLog.start(program.workdir(), "inspect")
  state = summary["checksums"]["state"]
  log.finish(summary, f"{len(summary['arrays'])} arrays, {state}")
  if damaged:
    raise program.Failure(f"{len(damaged)} files are damaged: {' '.join(damaged)}")


def of_store(folder: pathlib.Path) -> Found:
  """What `look` finds in a store."""
  seen = look(folder)
  arrays = [
    {
      "name": name.rpartition(".")[0],
      "generation": record.generation,
      "dtype": record.dtype,
      "elements": record.elements,
    }
    for name, record in seen.arrays.items()
  ]
  commits = [
    {"iteration": c.iteration, "file": c.file, "arrays": len(c.arrays)} for c in seen.commits
  ]
  return Found(
    {
      "configuration": dict(seen.configuration),
      "arrays": arrays,
      "arrays_of_no_commit": seen.other,
      "bytes": seen.bytes,
      "commits": commits,
      "environment": seen.commits[-1].environment if seen.commits else {},
      "resumes_from": None if seen.damaged or not commits else commits[-1]["iteration"],
      "in_use": seen.in_use,
      "checksums": _checksums(seen.damaged),
      "says": _says(seen),
    },
    seen.damaged,
  )


def of_checkpoint(folder: pathlib.Path) -> Found:
  """Shape and parameters of a checkpoint, and whether its files are as they were saved."""
  damaged = checkpoint.damage(folder)
  model = checkpoint.load_model(folder)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  arrays = [
    {"name": jax.tree_util.keystr(path, simple=True, separator="/")}
    | {"dtype": leaf.dtype.name, "elements": leaf.size}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  ]
  sentences = [f"{name} is not as it was saved." for name in damaged or []]
  checksums = {"state": "unknown: none were noted"} if damaged is None else _checksums(sentences)
  if damaged == []:
    checkpoint.load(folder)
  configuration = dataclasses.asdict(model.config)
  return Found(
    {
      "configuration": configuration,
      "arrays": arrays,
      "commits": [],
      "checksums": checksums,
      "says": "A model to generate from; training goes on from stores alone.",
    },
    sentences,
  )


def _checksums(damaged: list[str]) -> dict[str, Any]:
  state = f"{len(damaged)} files damaged" if damaged else "all as written"
  return {"state": state, "damaged": damaged}


def _says(seen: Look) -> str:
  if seen.damaged:
    text = "A run would not go on from it: something is damaged."
  elif not seen.commits:
    text = "Nothing is committed: a run would begin anew."
  else:
    text = f"A run would go on after iteration {seen.commits[-1].iteration}."
  return text + " A run is at work in it." * seen.in_use


def _lines(summary: dict[str, Any]) -> list[str]:
  flag = lambda name, value: f"  --{name}={value}"
  lines = ["Configuration:", *(flag(*item) for item in summary["configuration"].items()), "Arrays:"]
  for array in summary["arrays"]:
    generation = f", generation {array['generation']}" if "generation" in array else ""
    lines.append(f"  {array['name']}: {array['dtype']}[{array['elements']}]{generation}")
  for commit in summary["commits"]:
    lines.append(f"Commit after iteration {commit['iteration']}: {commit['file']}.")
  lines += [f"DAMAGED: {sentence}" for sentence in summary["checksums"].get("damaged", [])]
  return [*lines, f"Checksums: {summary['checksums']['state']}.", summary["says"]]


if __name__ == "__main__":
  program.run(main, check)
