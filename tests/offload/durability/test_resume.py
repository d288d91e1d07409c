"""What a run goes on from: checked to the last byte, whatever was cut anew or left over."""

import hashlib
import itertools
import os
import shutil

import pytest

from offload import manifest, snapshot
from offload.checksums import Corrupt
from offload.generations import check
from offload.look import look
from offload.store import Store, StoreView
from offload.verdict import LossScale

MODEL, UNITS, BEFORE, END = "llama", 3, 2, 4
HOW = {"homes": "slices", "delayed_fraction": 0.25}


@pytest.fixture(scope="module")
def base(committing, tmp_path_factory, streaming):
  """A store with commits after one iteration and after two, and the losses."""
  folder = tmp_path_factory.mktemp("base") / "store"
  streamer = streaming(folder, MODEL, "vertical", keep=2, **HOW)
  losses = committing(streamer, BEFORE)
  streamer.release()
  return folder, losses


@pytest.fixture(scope="module")
def unbroken(committing, base, tmp_path_factory, streaming, trained):
  streamer = streaming(tmp_path_factory.mktemp("unbroken") / "store", MODEL, "vertical", **HOW)
  return trained(streamer, committing(streamer, END), UNITS)


@pytest.fixture
def store(base, tmp_path):
  return shutil.copytree(base[0], tmp_path / "store")


@pytest.fixture
def go_on(committing, store, unbroken, streaming, trained):
  """Trains the store's run to its end, and returns what came of it."""

  def run(**other):
    streamer = streaming(store, MODEL, "vertical", **(HOW | other))
    losses = unbroken.losses[: streamer.iteration]
    done = trained(streamer, losses + committing(streamer, END), UNITS)
    streamer.remove()
    return done

  return run


OTHERWISE = {
  "same": {},
  "host": {"homes": "host"},
  "ssd": {"homes": "ssd", "ample": True},
  "nothing delayed": {"delayed_fraction": 0.0},
  "all delayed": {"delayed_fraction": 1.0, "homes": "ssd"},
  "callback": {"transport": "callback"},
  "no overlap": {"overlap": False, "verify_reads": True},
  "budget": {"budget": 390_000},
}


@pytest.mark.parametrize("other", OTHERWISE.values(), ids=OTHERWISE)
def test_placement_may_change(go_on, unbroken, store, other):
  go_on(**other).assert_equal(unbroken)
  assert not store.exists()


def test_cutting_anew_may_be_killed_and_leaves_nothing(
  committing, store, streaming, go_on, unbroken
):
  streamer = streaming(store, MODEL, "vertical", **(HOW | {"homes": "ssd"}))
  streamer.release()  # as if killed before its first commit
  assert look(store).damaged == []
  streamer = streaming(store, MODEL, "vertical", **(HOW | {"homes": "ssd"}))
  committing(streamer, BEFORE + 1)
  assert not [n for n in streamer._store.names if ".host." in n]
  streamer.release()
  go_on().assert_equal(unbroken)


def test_a_loss_scale_goes_on_where_it_was(tmp_path, streaming, trained):
  """Float16: halved by overflows, then doubled by good steps that a commit lies between."""
  how = {"delayed_fraction": 1.0, "dtype": "float16", "loss_scale": LossScale(2.0**22, 2)}

  def run(folder, stops):
    scales, losses = [], []
    for stop in stops:
      streamer = streaming(tmp_path / folder, MODEL, "vertical", **how)
      known = streamer.run(stop - streamer.iteration, commits=True).iterations
      scales, losses = scales + [i.loss_scale for i in known], losses + [i.loss for i in known]
      streamer.commit()
      streamer.release()
    return scales, trained(streaming(tmp_path / folder, MODEL, "vertical", **how), losses, UNITS)

  scales, unbroken = run("unbroken", [9])
  assert scales[1] < scales[0] and any(b > a for a, b in itertools.pairwise(scales))
  again, done = run("broken", range(1, 10))
  assert again == scales
  done.assert_equal(unbroken)


def test_a_commit_before_the_last_serves_too(store, go_on, unbroken):
  snapshot.files(store)[-1].unlink()
  go_on().assert_equal(unbroken)


def test_commits_beyond_those_kept_go(store, streaming):
  """A run that kept more has left them, or was killed before it removed the old one."""
  streamer = streaming(store, MODEL, "vertical", keep=1, **HOW)
  assert len(snapshot.files(store)) == 1
  streamer.run(1, commits=True)
  streamer.commit()
  named = {n for n in streamer._store.names if "/units" in f"/{n}" and "gradients" not in n}
  assert len(named) <= 2 * len([n for n in look(store).arrays if n.startswith("units")])
  streamer.release()


def _some(names, pattern):
  return next(name for name in names if pattern in name)


@pytest.mark.parametrize("what", ["flip", "cut", "gone"])
@pytest.mark.parametrize("where", ["mu", "parameters", "resident/0"])
@pytest.mark.parametrize("file", ["c/0", "zarr.json"])
def test_damage_to_an_array_is_named(store, streaming, where, file, what):
  record = snapshot.all_of(store)[-1].arrays
  name = _some(record, where)
  path = store / f"{name}.{record[name].generation}" / file
  _damage(path, what)
  said = f"{path.parent.relative_to(store)}" if file == "zarr.json" else name
  assert len(found := look(store).damaged) == 1 and said in found[0]
  with pytest.raises(Corrupt, match=said.replace(".", r"\.")):
    streaming(store, MODEL, "vertical", **HOW)


def _damage(path, what, at=None):
  data = bytearray(path.read_bytes())
  if what == "gone":
    path.unlink()
    return
  if what == "cut":
    data = data[: len(data) // 3]
  else:
    data[len(data) // 3 if at is None else at] ^= 1
  path.write_bytes(data)


def test_every_byte_of_small_files_counts(store):
  """Of an array (its elements, not the padding), its metadata, a commit and the manifest."""
  record = snapshot.all_of(store)[-1].arrays
  name = _some(record, "resident")
  array = store / f"{name}.{record[name].generation}"
  commit = snapshot.files(store)[-1]
  view = StoreView(store, manifest.read(store))
  read = {
    "0": lambda: check(view, array.relative_to(store).as_posix(), record[name]),
    "zarr.json": lambda: check(view, array.relative_to(store).as_posix(), record[name]),
    "store.json": lambda: manifest.read(store),
    commit.name: lambda: snapshot.read(commit),
  }
  files = {array / "zarr.json": 1, array / "c/0": 97, commit: 97, store / "store.json": 1}
  for path, step in files.items():
    whole = path.read_bytes()
    size = record[name].elements * 4 if path.name == "0" else len(whole)
    for at in range(0, size, step):
      _damage(path, "flip", at)
      with pytest.raises(Corrupt, match=path.relative_to(store).parts[0]):
        read[path.name]()
      path.write_bytes(whole)
  view.close()


@pytest.mark.parametrize("what", ["flip", "cut"])
@pytest.mark.parametrize("file", ["store.json", "commits"])
def test_damage_to_small_files_is_named(store, streaming, file, what):
  path = store / file if file == "store.json" else snapshot.files(store)[-1]
  _damage(path, what)
  with pytest.raises(Corrupt, match=f"{path.name} is not as it was written"):
    streaming(store, MODEL, "vertical", **HOW)


def test_a_store_that_is_removed_halfway_is_removed_or_begun_anew(store, go_on, unbroken, base):
  for path in snapshot.files(store):
    path.unlink()
  name = _some(look(store).other, "mu")
  (store / name / "c/0").unlink()
  (store / "commits/000000003.tmp").write_text("half")
  done = go_on()
  done.assert_equal(unbroken)
  assert not store.exists()


def test_foreign_files_stay_as_they_are(store, tmp_path, base, go_on):
  names = list(snapshot.all_of(store)[-1].arrays)
  own = f"{names[0]}.0"
  foreign = [
    "notes",
    "units/notes",
    f"{own}/notes",
    f"{own}/c/1",
    "commits/mine.json",
    "x/zarr.json",
  ]
  for name in foreign:
    (store / name).parent.mkdir(exist_ok=True)
    (store / name).write_text(f"mine: {name}")
  shutil.copytree(store / own, store / "units/copy.0")  # not where the store made it
  foreign += [p.relative_to(store) for p in (store / "units/copy.0").rglob("*") if p.is_file()]
  (tmp_path / "outside").write_text("mine")
  hashes = lambda: {n: hashlib.sha256((store / n).read_bytes()).hexdigest() for n in foreign}
  before = hashes()
  go_on()
  assert hashes() == before and (tmp_path / "outside").read_text() == "mine"
  left = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
  assert left == set(map(str, foreign))


def test_a_look_changes_nothing_and_does_not_wait(store, streaming):
  streamer = streaming(store, MODEL, "vertical", **HOW)
  before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in store.rglob("*")}
  seen = look(store)
  assert seen.in_use and seen.damaged == [] and seen.commits[-1].iteration == BEFORE
  assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in store.rglob("*")}
  with pytest.raises(ValueError, match="in use by another run"):
    Store(store, {})
  streamer.release()
  assert not look(store).in_use and not os.path.exists(store / ".lock")
