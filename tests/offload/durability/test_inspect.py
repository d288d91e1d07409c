"""The inspect program says what a store holds, and names what is damaged."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from offload import snapshot

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def base(tmp_path_factory, streaming):
  folder = tmp_path_factory.mktemp("base") / "store"
  streamer = streaming(folder, "llama", "vertical", homes="slices")
  streamer.run(1)
  streamer.commit()
  streamer.release()
  return folder


def inspect(folder, workdir):
  words = ["-m", "experiments.inspect", f"--store={folder}", f"--workdir={workdir}"]
  return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


def test_a_store_as_it_was_written(base, tmp_path):
  done = inspect(base, tmp_path / "out")
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "out/summary.json").read_text())
  assert found["resumes_from"] == 1 and found["checksums"]["state"] == "all as written"
  assert len(found["arrays"]) == len(snapshot.all_of(base)[0].arrays)
  assert {"name", "dtype", "elements", "generation"} == found["arrays"][0].keys()
  assert "A run would go on after iteration 1." in done.stdout


@pytest.mark.parametrize("file", ["units/1/nu.now.ssd.*/c/0", "commits/*.json", "store.json"])
def test_damage_is_named(base, tmp_path, file):
  folder = shutil.copytree(base, tmp_path / "store")
  names = snapshot.all_of(folder)[0].arrays
  paths = [p for p in folder.glob(file) if "nu" not in file or names["units/1/nu.now.ssd"]]
  for path in paths:
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
  done = inspect(folder, tmp_path / "out")
  assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
  assert file.partition("*")[0] in done.stderr


def test_mistakes(tmp_path):
  done = inspect(tmp_path / "nothing", tmp_path / "out")
  assert done.returncode == 2 and "is no folder" in done.stderr and done.stderr.count("\n") == 1
