"""The generate program: a true run and its summary, and one sentence for each mistake."""

import json
import subprocess
import sys

import jax
import pytest

from models.config import ModelConfig
from models.transformer import Transformer
from models.weights import checkpoint

CONFIG = ModelConfig("llama", 2, 32, 2, 2, 16, 48, 256, 1024)

# Checks each list of flags in one process, so that JAX is imported once.
CHECK_ALL = """
import json, sys
from absl import flags
from experiments import generate
for arguments in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  try:
    flags.FLAGS(["generate", *arguments])
    generate.check()
    print("accepted")
  except (flags.Error, ValueError, OSError) as error:
    print(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("generate")
  parameters = Transformer(CONFIG).init(jax.random.key(0))
  checkpoint.save(folder / "model", CONFIG, parameters)
  (folder / "a.txt").write_bytes(bytes(range(256)))
  (folder / "b.txt").write_bytes(b"def f(x):\n  return x\n" * 9)
  (folder / "empty.txt").write_bytes(b"")
  return folder


def run(folder, *arguments):
  command = [sys.executable, "-m", "experiments.generate", f"--checkpoint={folder / 'model'}"]
  return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_speculation_is_compared_with_an_autoregressive_run(folder):
  prompts = [f"--prompt_file={folder / name}" for name in ("a.txt", "b.txt", "a.txt")]
  common = [*prompts, "--batch_size=2", "--max_new_tokens=20", "--repeats=1"]
  plain = run(folder, *common, f"--workdir={folder / 'plain'}")
  assert plain.returncode == 0, plain.stderr
  method = ["--method=h2o", "--draft_length=3", "--kv_budget=32", "--recent=0.25", "--refresh=2"]
  compare = f"--compare_with={folder / 'plain'}"
  drafted = run(folder, *common, *method, compare, f"--workdir={folder / 'drafted'}")
  assert drafted.returncode == 0, drafted.stderr
  base = json.loads((folder / "plain" / "summary.json").read_text())
  summary = json.loads((folder / "drafted" / "summary.json").read_text())
  assert summary["identical_to_autoregressive"]
  assert summary["near_ties"] > 0 or summary["completions"] == base["completions"]
  assert [len(text) for text in summary["completions"]] == [20, 20, 20]
  assert summary["completions"][0] == summary["completions"][2]
  assert 1 <= summary["acceptance_length"] <= 4
  assert summary["rounds"] == sum(summary["rounds_by_accepted_drafts"])
  assert base["acceptance_length"] == base["predicted_speedup"] == 1
  assert summary["settings"]["recent"] == 0.25 and summary["settings"]["decay"] == 1
  assert set(summary["seconds"]) == {"compile", "prefill", "decode"}
  assert summary["tokens_per_second"] > 0


def test_a_mistake_exits_with_2_and_writes_nothing(folder):
  done = run(folder, "--method=nonsense", f"--prompt_file={folder / 'a.txt'}", "--workdir=never")
  assert done.returncode == 2
  assert done.stderr.startswith(
    "generate: --method=nonsense is neither autoregressive nor a selector;"
  )
  assert done.stderr.count("\n") == 1
  assert not (folder / "never").exists()


def test_each_mistake_has_its_sentence(folder):
  model, prompt = f"--checkpoint={folder / 'model'}", f"--prompt_file={folder / 'a.txt'}"
  cases = {
    "accepted": [model, prompt, "--method=autoregressive", "--draft_length=0"],
    "accept": [model, prompt, "--method=h2o", "--refresh=2147483647", "--sink=2147483647"],
    "Name the model's folder with --checkpoint.": [prompt],
    "holds no checkpoint: there is no model.json": [f"--checkpoint={folder}", prompt],
    "Give at least one --prompt_file.": [model],
    "empty.txt is empty; a prompt needs": [model, f"--prompt_file={folder / 'empty.txt'}"],
    "No such file": [model, f"--prompt_file={folder / 'missing.txt'}"],
    "256 tokens and --max_new_tokens=800 do not fit": [model, prompt, "--max_new_tokens=800"],
    "--draft_length=0 drafts nothing": [model, prompt, "--method=window", "--draft_length=0"],
    "or --method=autoregressive": [model, prompt, "--method=specattn", "--draft_length=0"],
    "--sink=2147483648:": [model, prompt, "--method=window", "--sink=2147483648"],
    "--recent=99999999999 is beyond": [model, prompt, "--method=h2o", "--recent=99999999999"],
    "--smoothing=100000:": [model, prompt, "--method=snapkv", "--smoothing=100000"],
    "--kv_budget=0 selects nothing": [model, prompt, "--method=window", "--kv_budget=0"],
    "--page_size=3 must be a power of two": [model, prompt, "--method=full", "--page_size=3"],
    "--page_size=1024 is beyond 512": [model, prompt, "--method=full", "--page_size=1024"],
    "--rows is no setting of the selector window": [
      *(model, prompt, "--method=window", "--rows=all"),
    ],
    "--dense_layers=2 leaves none of the model's 2 layers": [model, prompt, "--method=quest"],
    "--recent=half is no number": [model, prompt, "--method=h2o", "--recent=half"],
    "--decay=2.0 must be in [0, 1]": [model, prompt, "--method=h2o", "--decay=2"],
    "temperature must be 0 or at least": [model, prompt, "--temperature=nan"],
    "top_p must be in (0, 1]": [model, prompt, "--temperature=1", "--top_p=0"],
    "triton kernels cannot run here": [model, prompt, "--implementation=triton"],
    "there is no summary.json in it": [model, prompt, f"--compare_with={folder}"],
  }
  command = [sys.executable, "-c", CHECK_ALL, json.dumps(list(cases.values()))]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  said = done.stdout.splitlines()
  assert len(said) == len(cases), done.stderr
  for expected, sentence in zip(cases, said, strict=True):
    assert expected in sentence
