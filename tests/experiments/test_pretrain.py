"""The pretrain program: a run, a second stage from its checkpoint, and one sentence a mistake."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.run_log import read_metrics
from models.config import PRESETS
from models.weights import checkpoint

SMALL = ["--mixture=text", "--micro_batch_size=2", "--sequence_length=32", "--warmup=2"]

# Checks each list of flags in one process, so that JAX is imported once.
CHECK_ALL = """
import json, sys
from absl import flags
from experiments import pretrain
for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(["pretrain", *arguments])
  try:
    pretrain.check()
    print("accepted")
  except (ValueError, OSError) as error:
    print(error)
"""

MISTAKES = {
  "--mixture=poems": "must name each of text, repeats, needles, edits at most once.",
  "--sequence_length=8": "must be at least 16",
  "--position_span=100": "at most --position_span",
  "--sequence_length=65536": "the model's context of 32768",
  "--initial_checkpoint=nowhere": "nowhere holds no checkpoint",
  "--data=nowhere": "there is no such folder or file",
  "--initialization=copying --model=gpt-bytes-tiny": "copying initialisation is for rotary models",
}


def run(*arguments):
  command = [sys.executable, "-m", "experiments.pretrain", *SMALL, *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pretrain") / "first"
  done = run("--model=bytes-tiny", "--iterations=30", "--learning_rate=1e-2", f"--workdir={folder}")
  assert done.returncode == 0, done.stderr
  return folder


def test_a_stage_goes_on_where_the_one_before_ended(first, tmp_path):
  config, parameters = checkpoint.load(first / "checkpoint")
  assert config == PRESETS["bytes-tiny"]
  bits = [line["bits"] for line in read_metrics(first)]
  assert len(bits) == 30 and np.mean(bits[-10:]) < np.mean(bits[:10]) - 0.5
  start = f"--initial_checkpoint={first / 'checkpoint'}"
  done = run(start, "--iterations=3", "--learning_rate=0", f"--workdir={tmp_path / 'second'}")
  assert done.returncode == 0, done.stderr
  _, unchanged = checkpoint.load(tmp_path / "second/checkpoint")
  jax.tree.map(np.testing.assert_array_equal, parameters, unchanged)


def test_a_mistake_is_one_sentence(first, tmp_path):
  asked = [[f"--workdir={tmp_path / 'work'}", *flag.split()] for flag in MISTAKES]
  asked.append([f"--workdir={first}"])
  sentences = [*MISTAKES.values(), "holds a checkpoint already"]
  command = [sys.executable, "-c", CHECK_ALL, json.dumps(asked)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  answers = done.stdout.splitlines()
  assert len(answers) == len(sentences), done.stderr
  for sentence, answer in zip(sentences, answers, strict=True):
    assert sentence in answer
  assert not (tmp_path / "work").exists()
