"""The generate program: true runs and what they leave, and one sentence for each mistake."""

import io
import json
import re
import shutil
import subprocess
import sys

import jax
import pytest

from experiments.live_text import LiveText
from models.config import ModelConfig
from models.decoding.continuous import Emission
from models.decoding.draft_length import LENGTHS
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
  _write_wrong_inputs(folder)
  return folder


def _write_wrong_inputs(folder):
  shape = json.loads((folder / "model" / "model.json").read_text())
  for name, change in {
    "vocabulary": {"vocabulary": 512},
    "shape": {"width": 512},
    "learned": {"family": "gpt"},
  }.items():
    shutil.copytree(folder / "model", folder / name)
    other = shape | {"config": shape["config"] | change}
    (folder / name / "model.json").write_text(json.dumps(other))
  for name, content in {
    "latin": b'{"prompt": "fine"}\n{"prompt": "\xe9"}\n',
    "surrogate": b'{"prompt": "\\ud800"}\n',
    "number": b'{"prompt": 5}\n',
    "list": b'\n["prompt"]\n',
    "void": b'{"prompt": ""}\n',
    "none": b"\n\n",
  }.items():
    (folder / f"{name}.jsonl").write_bytes(content)


def run(folder, *arguments, stdin=""):
  command = [sys.executable, "-m", "experiments.generate", f"--checkpoint={folder / 'model'}"]
  return subprocess.run(
    [*command, *arguments], input=stdin, capture_output=True, text=True, check=False
  )


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

  assert list(summary["phases"]) == ["select", "gather", "draft", "verify", "score", "round"]
  assert "is no text in UTF-8 from byte 128 on; its bytes are taken as they are." in plain.stderr


def test_chosen_draft_lengths_are_told(folder):
  common = [f"--prompt_file={folder / 'b.txt'}", "--max_new_tokens=40"]
  plain = run(folder, *common, f"--workdir={folder / 'once'}")
  assert plain.returncode == 0, plain.stderr
  method = ["--method=specattn", "--draft_length=auto", "--kv_budget=64"]
  compare = f"--compare_with={folder / 'once'}"
  done = run(folder, *common, *method, compare, f"--workdir={folder / 'auto'}")
  assert done.returncode == 0, done.stderr
  summary = json.loads((folder / "auto" / "summary.json").read_text())
  assert summary["identical_to_autoregressive"] and summary["draft_length"] == "auto"
  assert sum(summary["rounds_by_draft_length"].values()) == summary["rounds"]
  costs = summary["seconds_by_draft_length"]
  assert list(costs["round"]) == [str(g) for g in LENGTHS]
  assert all(min(both) > 0 for both in costs["round"].values())
  assert costs["contexts"][0] < costs["contexts"][1] <= CONFIG.context
  chosen = ", ".join(f"{g} in {n}" for g, n in summary["rounds_by_draft_length"].items() if n)
  assert f"{chosen} rounds" in done.stdout


def test_prompts_from_standard_input_are_streamed_in_colour_and_kept_as_json_lines(folder):
  prompts = [{"prompt": "def f(x):", "answer": "ignored"}, {"prompt": "é"}, {"prompt": "class A"}]
  method = ["--method=specattn", "--draft_length=3", "--kv_budget=32", "--temperature=1"]
  done = run(
    *(folder, *method, "--prompts_jsonl=-", "--show_drafts", "--color=always", "--notime_phases"),
    *("--max_new_tokens=12", f"--output_jsonl={folder / 'texts.jsonl'}"),
    f"--workdir={folder / 'streamed'}",
    stdin="\n".join(map(json.dumps, prompts)),
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  summary = json.loads((folder / "streamed" / "summary.json").read_text())
  lines = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
  assert [line["tokens"] for line in lines] == summary["completions"]
  assert [len(line["tokens"]) for line in lines] == [12] * 3
  assert [line["number"] for line in lines] == [0, 1, 2]
  for line in lines:
    assert line["completion"] == bytes(line["tokens"]).decode("utf-8", "backslashreplace")
  assert sum(line["rounds"] for line in lines) == summary["rounds"]
  shares = summary["acceptance_by_position"]
  assert shares == sorted(shares, reverse=True) and len(shares) == 3
  assert summary["acceptance_length"] == pytest.approx(1 + sum(shares))
  shown = re.sub("\x1b\\[9;31m.*?\x1b\\[0m", "", done.stdout)  # without what was rejected
  plain = re.sub("\x1b\\[[0-9;]*m", "", shown)
  for prompt, line in zip(prompts, lines, strict=True):
    assert prompt["prompt"] + printable(line["completion"]) + "\n" in plain
  for said in ("tokens/s:", "acceptance length:", "drafts that stood:", "predicted speed-up:"):
    assert said in done.stdout


def printable(text):
  """As a terminal may be sent it."""
  plain = lambda c: c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
  return "".join(map(plain, text))


def test_a_text_is_shown_piece_by_piece_and_never_as_a_command():
  out = io.StringIO()
  live = LiveText(out, colour=True, drafts=True)
  # A character in three bytes over two rounds, a rejected newline, a stray byte, a command.
  live.show(Emission(0, [97, 0xE2], [0xE2, 10], 0, 1, None))
  assert out.getvalue() == "a\x1b[9;31m\\xe2\\n\x1b[0m"
  live.show(Emission(0, [0x82, 0xAC, 0xFF], [0x82, 0xAC], 2, 0, None))
  live.show(Emission(0, [0x1B, 0x5B, 0xE2], [0x1B, 0x5B], 2, 0, [0, 0, 1]))
  shown = "".join(re.split("\x1b\\[[0-9;]*m", out.getvalue()))
  assert shown == "a\\xe2\\n€\\xff\\x1b[\\xe2\n"
  assert "\x1b[32m€\x1b[0m" in out.getvalue()


def test_without_colour_there_is_nothing_but_the_text():
  out = io.StringIO()
  live = LiveText(out, colour=False, drafts=True)
  live.prompt(b"x" * 500)
  live.show(Emission(0, [97, 98], [99], 0, 1, [1, 0]))
  assert out.getvalue() == "..." + "x" * 400 + "ab\n"


def test_a_checkpoint_of_another_shape_is_one_sentence(folder):
  wrong = f"--checkpoint={folder / 'shape'}"
  done = run(folder, wrong, f"--prompt_file={folder / 'b.txt'}", f"--workdir={folder / 'never'}")
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "shape holds another model's parameters: resident/" in done.stderr
  assert not (folder / "never").exists()


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
    "has a vocabulary of 512, but prompts": [f"--checkpoint={folder / 'vocabulary'}", prompt],
    "Give at least one --prompt_file, or": [model],
    "empty.txt is empty; a prompt needs": [model, f"--prompt_file={folder / 'empty.txt'}"],
    "line 2 is no text in UTF-8: ": [model, f"--prompts_jsonl={folder / 'latin.jsonl'}"],
    "line 1 is no text in UTF-8: surr": [model, f"--prompts_jsonl={folder / 'surrogate.jsonl'}"],
    "line 1 is no JSON object with a": [model, f"--prompts_jsonl={folder / 'number.jsonl'}"],
    "line 2 is no JSON object with a": [model, f"--prompts_jsonl={folder / 'list.jsonl'}"],
    "line 1 is empty; a prompt needs": [model, f"--prompts_jsonl={folder / 'void.jsonl'}"],
    "none.jsonl holds no prompt": [model, f"--prompts_jsonl={folder / 'none.jsonl'}"],
    "Standard input can be read once": [model, "--prompt_file=-", "--prompts_jsonl=-"],
    "--prompt_file=- is empty": [model, "--prompt_file=-"],
    "--stream shows one text at a time": [model, prompt, prompt, "--stream", "--batch_size=2"],
    "a.txt exists already; name a new": [model, prompt, f"--output_jsonl={folder / 'a.txt'}"],
    "no-folder first.": [model, prompt, f"--output_jsonl={folder / 'no-folder' / 'out.jsonl'}"],
    "No such file": [model, f"--prompt_file={folder / 'missing.txt'}"],
    "a.txt: A prompt of 256 tokens and --max_new_tokens=800 do not": [
      *(model, prompt, "--max_new_tokens=800"),
    ],
    "learned its 1024 positions": [f"--checkpoint={folder / 'learned'}", prompt, "--context=2048"],
    "accepte": [model, prompt, "--max_new_tokens=800", "--context=2048"],
    "--method=nonsense is neither autoregressive nor": [model, prompt, "--method=nonsense"],
    "--kv_budget=0.0 selects nothing": [model, prompt, "--method=window", "--kv_budget=0.0"],
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
  done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
  said = done.stdout.splitlines()
  assert len(said) == len(cases), done.stderr
  for expected, sentence in zip(cases, said, strict=True):
    assert expected in sentence
