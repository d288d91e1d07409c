"""The main job in small: train from SSD under two schedules, train on, decode long prompts, report.

What decodes is the kept model that was trained to copy: a few minutes of training teach a model to
look at nearby text only.

Each stage is one of the public programs, run as anyone would type it; its flag file is in
experiments/flags/quickstart. Run by scripts/quickstart, which makes the environment first.
"""

import dataclasses
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments import data, program, run_log
from experiments.report import page
from experiments.tables import decoding, training

_QUICK = flags.DEFINE_bool("quick", False, "Short settings: shows that it works, not what it can.")
_DATA = flags.DEFINE_string("data", "stdlib", "Text to train on: stdlib, a folder, or a file.")

FLAG_FILES = Path("experiments/flags/quickstart")
CHECKPOINT = Path("experiments/checkpoints/retrieval")
FOLDER = "results/quickstart"
PROMPTS, PROMPT_LENGTH = 2, 8192


@dataclasses.dataclass(frozen=True)
class Stage:
  """One program's run.

  Attributes:
    name: of its run folder.
    program: as in `python -m experiments.<program>`.
    flag_file: in FLAG_FILES, without its ending; <flag_file>.quick.flags shortens it.
    says: what it does.
    seconds: how long it takes on 2 cores, and how long with --quick.
    flags: what its flag file leaves open.
  """

  name: str
  program: str
  flag_file: str
  says: str
  seconds: tuple[int, int]
  flags: tuple[str, ...] = ()

  def command(self, folder: Path, *, quick: bool, seed: int) -> list[str]:
    """The arguments of python that run it."""
    files = [f"{self.flag_file}.flags", *[f"{self.flag_file}.quick.flags"] * quick]
    return [
      "-m",
      f"experiments.{self.program}",
      *(f"--flagfile={FLAG_FILES / file}" for file in files),
      *self.flags,
      f"--seed={seed}",
      f"--workdir={folder / self.name}",
    ]


def stages(folder: Path, corpus: str) -> list[Stage]:
  """The programs to run, in order."""
  text = f"--data={corpus}"
  out = [
    Stage(
      schedule,
      "train",
      "compare",
      f"Trains some iterations in {schedule} order, parameters and optimizer states on SSD.",
      (25, 15),
      (text, f"--schedule={schedule}"),
    )
    for schedule in training.SCHEDULES
  ]
  out.append(
    Stage("training", "train", "training", "Trains on in vertical order.", (200, 30), (text,))
  )
  decode = [f"--checkpoint={CHECKPOINT}"]
  decode += [f"--prompt_file={path}" for path in prompt_files(folder)]
  for method in decoding.METHODS:
    says = f"Continues {PROMPTS} held-out prompts of {PROMPT_LENGTH:,} bytes by {method} decoding."
    reference = [f"--compare_with={folder / 'decode_autoregressive'}"]
    own = [f"--method={method}", *(reference if method != "autoregressive" else [])]
    out.append(Stage(f"decode_{method}", "generate", "decoding", says, (40, 25), (*decode, *own)))
  return out


def summarise(folder: Path) -> dict[str, Any]:
  """The fields of the quickstart's summary, from its finished run folders."""
  fields = ("losses", "seconds_per_iteration", "tokens_per_second", "bytes", "predicted_bytes")
  runs = {name: run_log.read_summary(folder / name) for name in training.SCHEDULES}
  trained = run_log.read_summary(folder / "training")
  compared = {name: {field: runs[name][field] for field in fields} for name in runs}
  ratio = training.vertical_over_horizontal(folder)
  return {
    "train": compared | {"vertical_over_horizontal": ratio},
    "heldout_bits_per_byte": trained["heldout_bits_per_byte"],
    "bigram_bits_per_byte": trained["bigram_bits_per_byte"],
    "decode": decoding.compare(decoding.read(folder)),
  }


def prompt_files(folder: Path) -> list[Path]:
  return [folder / "prompts" / f"prompt{i}.txt" for i in range(PROMPTS)]


def check() -> data.Corpus:
  """Refuses what cannot work before anything is written or trained."""
  folder = run_log.check_workdir(program.workdir(), program.name())
  for stage in stages(folder, _DATA.value):
    run_log.check_workdir(folder / stage.name, stage.program)
  corpus = data.load_corpus(_DATA.value)
  if corpus.vocabulary > 256:
    raise ValueError(f"--data={_DATA.value} holds tokens above 255; the model here reads bytes.")
  corpus.heldout_prompts(PROMPTS, PROMPT_LENGTH, program.FLAGS.seed)
  return corpus


def main(corpus: data.Corpus) -> None:
  log = run_log.RunLog.start(program.workdir(), program.name())
  folder, todo = log.workdir, stages(log.workdir, _DATA.value)
  for stage in todo:  # an earlier quickstart's runs; `check` saw that they are nothing else
    shutil.rmtree(folder / stage.name, ignore_errors=True)
  _write_prompts(folder, corpus)
  minutes = sum(stage.seconds[_QUICK.value] for stage in todo) / 60
  print(f"{len(todo)} stages, about {minutes:.0f} minutes on 2 cores; all files go to {folder}/.")
  for number, stage in enumerate(todo, start=1):
    log.metric(stage=stage.name, took=_run(stage, folder, f"{number}/{len(todo)}"))
  for table in (training.table, decoding.table):
    print(f"\n{table(folder).markdown()}")
  report = page.write(folder)
  log.finish(summarise(folder), f"{report} shows it all")


def _write_prompts(folder: Path, corpus: data.Corpus) -> None:
  (folder / "prompts").mkdir(exist_ok=True)
  prompts = corpus.heldout_prompts(PROMPTS, PROMPT_LENGTH, program.FLAGS.seed)
  for path, prompt in zip(prompt_files(folder), prompts, strict=True):
    path.write_bytes(bytes(prompt.tolist()))


def _run(stage: Stage, folder: Path, number: str) -> float:
  """Announces and runs a stage; returns its seconds. A failure ends the quickstart."""
  command = stage.command(folder, quick=_QUICK.value, seed=program.FLAGS.seed)
  print(f"\n[{number}] {stage.says} About {stage.seconds[_QUICK.value]} s.")
  print(f"      python {shlex.join(command)}", flush=True)
  start = time.monotonic()
  code = subprocess.run([sys.executable, *command]).returncode
  if code:
    raise program.Mistake(f"stage {number} ended with exit code {code}; see what it said above.")
  return time.monotonic() - start


if __name__ == "__main__":
  program.FLAGS.set_default("workdir", FOLDER)
  program.run(main, check)
