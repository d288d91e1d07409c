"""Programs: a mistake is one sentence and exit code 2; a saved flag file reruns the program."""

import importlib.machinery
import subprocess
import sys
import types

import pytest

from experiments import program

_PROGRAM = """
from absl import flags
from experiments import program, run_log

budget = program.DEFINE_size("budget", None, "bytes")
schedule = flags.DEFINE_enum("schedule", "vertical", ["vertical", "horizontal"], "order")
layers = flags.DEFINE_integer("layers", 3, "layers", lower_bound=1)
tags = flags.DEFINE_multi_string("tag", [], "any")

def check():
  if layers.value == 7:
    raise ValueError("--layers=7 brings\\nbad luck; choose another.")
  if layers.value == 8:
    open("missing.txt")
  run_log.check_workdir(program.workdir(), program.name())
  return [budget.value, schedule.value, layers.value, tags.value, program.FLAGS.seed]

def main(checked):
  if layers.value == 9:
    raise ValueError("a bug")
  run_log.RunLog.start(program.workdir(), program.name())
  print(checked)

program.run(main, check)
"""


@pytest.mark.parametrize("name", ["tables", "tables.kernels", "peers.whole_program", "train"])
def test_a_program_has_the_name_that_python_finds_it_by(monkeypatch, name):
  main = types.ModuleType("__main__")
  module = f"experiments.{name}" + ".__main__" * (name == "tables")
  main.__spec__ = importlib.machinery.ModuleSpec(module, None)
  monkeypatch.setitem(sys.modules, "__main__", main)
  assert program.name() == name


@pytest.fixture
def run(tmp_path):
  """Runs the little program above in an empty folder with the flags given."""
  (tmp_path / "toy.py").write_text(_PROGRAM)
  work = tmp_path / "work"
  work.mkdir()

  def go(*flags):
    command = [sys.executable, str(tmp_path / "toy.py"), *flags]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

  go.folder = work
  return go


@pytest.mark.parametrize(
  ("flag", "says"),
  [
    ("--shedule=vertical", "Unknown command line flag 'shedule'. Did you mean: schedule ?"),
    ("--schedule=diagonal", "value should be one of <vertical|horizontal>"),
    ("--layers=0", "--layers=0: 0 is not a positive integer."),
    ("--budget=much", "'much' is not a size; write it like 512MiB"),
    ("--flagfile=nowhere.flags", "nowhere.flags"),
    ("vertical", "'vertical' is not a flag"),
    ("--layers=7", "--layers=7 brings bad luck; choose another."),
    ("--layers=8", "missing.txt: No such file or directory."),
    ("--workdir=..", "holds files that are no run's"),
  ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(run, flag, says):
  result = run(flag)
  assert result.returncode == 2
  assert result.stderr.startswith("toy: ") and result.stderr.count("\n") == 1
  assert says in result.stderr
  assert not result.stdout and not list(run.folder.iterdir())


def test_a_bug_keeps_its_traceback(run):
  result = run("--layers=9")
  assert result.returncode == 1 and "Traceback" in result.stderr


def test_the_saved_flag_file_reruns_the_program_and_later_flags_win(run):
  first = run("--budget=1.5GiB", "--schedule=horizontal", "--tag=a", "--tag=b c", "--seed=5")
  assert first.stdout == "[1610612736, 'horizontal', 3, ['a', 'b c'], 5]\n"
  again = run("--flagfile=runs/toy/flags.txt", "--workdir=again")
  assert again.stdout == first.stdout
  changed = run("--flagfile=again/flags.txt", "--seed=6")
  assert changed.stdout == first.stdout.replace("5]", "6]")


def test_help_lists_the_programs_and_the_common_flags(run):
  result = run("--help")
  assert result.returncode == 0
  for flag in ("--budget", "--layers", "--workdir", "--seed"):
    assert flag in result.stdout


@pytest.mark.parametrize(
  ("text", "count"),
  [("0", 0), ("4096", 4096), ("4096B", 4096), ("512MiB", 2**29), ("1.5GB", 1_500_000_000)],
)
def test_sizes(text, count):
  assert program.size(text) == count
  assert program.size(program.size_text(count)) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "5 5", "5mb", "1e9", "3XiB"])
def test_not_sizes(text):
  with pytest.raises(ValueError, match="is not a size"):
    program.size(text)
