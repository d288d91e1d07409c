"""Whatever a disk does, a run ends in one sentence, and its last commit goes on to the bit."""

import fnmatch
import shutil
import time

import pytest

from experiments import program
from experiments.stopping import failures
from offload import snapshot
from offload.store import Store

HOW = {"micro_batches": 4, "homes": "ssd", "delayed_fraction": 0.25}
MODEL, UNITS, BEFORE, END = "llama", 3, 2, 4


@pytest.fixture(scope="module")
def base(committing, tmp_path_factory, streaming):
  """A store with a commit after two iterations, and what its streamer saw."""
  folder = tmp_path_factory.mktemp("base") / "store"
  streamer = streaming(folder, MODEL, "vertical", **HOW)
  losses = committing(streamer, BEFORE)
  streamer.release()
  return folder, losses


@pytest.fixture(scope="module")
def unbroken(committing, base, tmp_path_factory, streaming, trained):
  folder = tmp_path_factory.mktemp("unbroken") / "store"
  streamer = streaming(folder, MODEL, "vertical", **HOW)
  done = trained(streamer, committing(streamer, END), UNITS)
  streamer.remove()
  assert done.losses[:BEFORE] == base[1]
  return done


STEPS = [
  ("preadv", "*/units/*/parameters.*", 2),
  ("preadv", "*/units/*/mu.*", 3),
  ("preadv", "*/units/*/gradients.*", 1),
  ("preadv", "*/boundary/*", 2),
  ("preadv", "*/boundary_gradient/*", 1),
  ("pwritev", "*/units/*/parameters.*", 3),
  ("pwritev", "*/units/*/nu.*", 1),
  ("pwritev", "*/units/*/gradients.*", 2),
  ("pwritev", "*/boundary/*", 1),
  ("fdatasync", "*/boundary_gradient/*", 1),
  ("posix_fallocate", "*/units/*", 2),  # another generation
  ("mkdir", "*/units/*/c", 1),
  ("pwritev", "*/resident/*", 3),  # of a commit
  ("fsync", "*/commits/*.tmp", 1),
  ("replace", "*/commits/*", 1),
  ("fsync", "*/commits", 1),
  ("unlink", "*/commits/*", 1),
]
ERRORS = ("EIO", "ENOSPC", "EACCES")
CASES = [(*step, ERRORS[i % 3]) for i, step in enumerate(STEPS)]
CASES += [(*step, "EOF") for step in STEPS[:4:3]]


@pytest.mark.parametrize("call, path, nth, what", CASES, ids=lambda x: str(x).replace("/", ""))
def test_a_fault_ends_the_run_and_not_the_training(
  committing, tmp_path, base, unbroken, streaming, trained, faults, call, path, nth, what
):
  folder, losses = shutil.copytree(base[0], tmp_path / "store"), list(base[1])
  streamer = streaming(folder, MODEL, "vertical", **HOW)
  faults.plan(call, path, what, nth)
  start = time.monotonic()
  with pytest.raises(program.Failure) as caught, failures(lambda error: "Advice."):
    committing(streamer, END)
  assert time.monotonic() - start < 10 and faults.happened == 1
  said = str(caught.value)
  expected = {"EIO": "Input/output error", "ENOSPC": "No space left", "EACCES": "Permission denied"}
  assert expected.get(what, "ends at byte") in said and said.endswith("Advice.")
  assert fnmatch.fnmatch(said, f"* {path}*"), "the file is named"
  faults.end()
  streamer.release()
  again = streaming(folder, MODEL, "vertical", **HOW)
  assert again.iteration >= BEFORE
  losses += unbroken.losses[BEFORE : again.iteration]  # committed, though the run was not told
  trained(again, losses + committing(again, END), UNITS).assert_equal(unbroken)
  assert len(snapshot.all_of(folder)) == 1
  again.remove()
  assert not folder.exists()


def test_a_late_disk_changes_nothing(
  committing, tmp_path, base, unbroken, streaming, trained, faults
):
  folder = shutil.copytree(base[0], tmp_path / "store")
  streamer = streaming(folder, MODEL, "vertical", **HOW)
  for call in ("preadv", "pwritev"):
    faults.plan(call, "*/units/*/mu.*", "late", 2)
  trained(streamer, base[1] + committing(streamer, END), UNITS).assert_equal(unbroken)
  assert faults.happened == 2


@pytest.mark.parametrize("path", ["*/units/1/nu.*", "*/boundary/*"])
@pytest.mark.parametrize("call", ["preadv", "pwritev"])
def test_a_flip_is_seen_as_it_is_read(tmp_path, base, streaming, faults, call, path):
  folder = shutil.copytree(base[0], tmp_path / "store")
  streamer = streaming(folder, MODEL, "vertical", verify_reads=True, **HOW)
  faults.plan(call, path, "flip")
  named = pytest.raises(program.Failure, match=r"bytes 0 to .* are not those")
  with named, failures(lambda error: ""):
    streamer.run(2)
  assert faults.happened == 1
  streamer.release()


@pytest.mark.parametrize(
  "call, path",
  [
    ("fsync", "*/store.json.tmp"),
    ("replace", "*/store.json.tmp"),
    ("posix_fallocate", "*"),
    ("mkdir", "*/c"),
  ],
)
def test_a_store_that_was_not_made_whole_is_made_again(tmp_path, faults, call, path):
  folder = tmp_path / "above/store"
  faults.plan(call, path, "ENOSPC")
  with pytest.raises(OSError, match="No space left"):
    store = Store(folder, {})
    store.create("units/0/mu.now.0", 4, "float32")
  faults.end()
  if "store.json" not in path:
    store.release()
  store = Store(folder, {})
  store.remove_all()
  assert list(tmp_path.rglob("*")) == [tmp_path / "above"]


def test_what_tensorstore_cannot_make_is_an_oserror(tmp_path):
  store = Store(tmp_path, {})
  (tmp_path / "units").write_text("in the way")
  with pytest.raises(OSError, match=r"units/0/mu/zarr\.json"):
    store.create("units/0/mu", 4, "float32")
