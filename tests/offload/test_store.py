"""The arrays on disk: what is written comes back, and nothing else is touched."""

import concurrent.futures
import errno
import json
import os
import threading

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from offload import block_files, manifest
from offload.block_files import BLOCK
from offload.buffers import aligned
from offload.store import Store

BOTH = pytest.mark.parametrize("direct_io", [False, True])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  """So that small arrays have several pieces, the last one short."""
  monkeypatch.setattr(block_files, "_PIECE_BYTES", {True: 4 * BLOCK, False: 4 * BLOCK})


def _noise(size, dtype, *, skew=0):
  """Random elements, `skew` elements behind the start of a block."""
  array = aligned((size + skew,), dtype)[skew:]
  array[:] = np.random.default_rng(size).standard_normal(size)
  return array


def _opened(folder):
  """What a reader that knows nothing of ours finds."""
  kvstore = {"driver": "file", "path": f"{folder}/"}
  return ts.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()


@pytest.mark.parametrize("skew", [0, 3])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@BOTH
def test_round_trip(tmp_path, dtype, direct_io, skew):
  store = Store(tmp_path / "s", {}, direct_io=direct_io)
  sizes = {"one": 1, "units/0/mu.now": 5, "units/1/mu.now": 40_960, "units/1/nu.now": 33_333}
  written = {name: _noise(size, dtype, skew=skew) for name, size in sizes.items()}
  read = {name: aligned((size + 1,), dtype)[1:] for name, size in sizes.items()}
  for name, size in sizes.items():
    store.create(name, size, dtype)
  for _ in range(2):  # into new files, then over what they hold
    for array in written.values():
      array[:] = -array
    assert store.write(written) == store.read(read) == store.bytes
    for name in written:
      np.testing.assert_array_equal(written[name], read[name])
      np.testing.assert_array_equal(written[name], _opened(tmp_path / "s" / name).read().result())


@BOTH
def test_a_new_array_is_zero_and_has_its_space(tmp_path, direct_io):
  store = Store(tmp_path / "s", {}, direct_io=direct_io)
  store.create("a", 100_000, np.float32)
  found = np.ones(100_000, np.float32)
  store.read({"a": found})
  assert not found.any() and not _opened(tmp_path / "s/a").read().result().any()
  assert (tmp_path / "s/a/c/0").stat().st_blocks * 512 >= 400_000


def test_direct_io_leaves_the_memory_of_the_caller_alone_outside_the_array(tmp_path):
  """The last block of a file holds more than the array."""
  store = Store(tmp_path / "s", {}, direct_io=True)
  store.create("a", 1_500, np.float32)
  store.write({"a": np.ones(1_500, np.float32)})
  memory = aligned((2_048,), np.float32)
  store.read({"a": memory[:1_500]})
  assert memory[:1_500].all() and not memory[1_500:].any()


def test_a_write_is_synced_before_it_returns(tmp_path, monkeypatch):
  """Every file of the step, after its last piece."""
  store, log = Store(tmp_path / "s", {}, direct_io=True), []
  sources = {name: _noise(40_000, np.float32) for name in ("a", "b")}
  for name in sources:
    store.create(name, 40_000, np.float32)
  pwritev, fdatasync = os.pwritev, os.fdatasync
  inode = lambda file: os.fstat(file).st_ino
  monkeypatch.setattr(
    os, "pwritev", lambda f, *rest: (pwritev(f, *rest), log.append(("write", inode(f))))[0]
  )
  monkeypatch.setattr(os, "fdatasync", lambda f: (fdatasync(f), log.append(("sync", inode(f)))))
  store.write(sources)
  for name in sources:
    own = [what for what, i in log if i == (tmp_path / "s" / name / "c/0").stat().st_ino]
    assert own == ["write"] * 10 + ["sync"]


@BOTH
def test_calls_that_move_less_than_asked_are_continued(tmp_path, monkeypatch, direct_io):
  store = Store(tmp_path / "s", {}, direct_io=direct_io)
  store.create("a", 10_240, np.float32)
  source, target = _noise(10_240, np.float32), aligned((10_240,), np.float32)
  for name in ("preadv", "pwritev"):
    call = getattr(os, name)
    one_block = lambda file, views, at, call=call: call(file, [views[0][:BLOCK]], at)
    monkeypatch.setattr(os, name, one_block)
  store.write({"a": source})
  store.read({"a": target})
  np.testing.assert_array_equal(source, target)


def test_an_interrupt_closes_no_file_that_is_being_read(tmp_path, monkeypatch):
  store, noise = Store(tmp_path / "s", {}), _noise(4 * BLOCK, np.float32)  # four pieces
  store.create("a", noise.size, np.float32)
  store.write({"a": noise})
  preadv, wait, going, late = os.preadv, concurrent.futures.wait, threading.Event(), []

  def slow(*args):
    going.wait(10)
    late.append(preadv(*args))
    return late[-1]

  def interrupted(jobs):
    monkeypatch.setattr(concurrent.futures, "wait", wait)
    threading.Timer(0.05, going.set).start()
    raise KeyboardInterrupt

  def read(*args):  # the caller's own piece is not held up
    return (preadv if threading.current_thread() is threading.main_thread() else slow)(*args)

  monkeypatch.setattr(os, "preadv", read)
  monkeypatch.setattr(concurrent.futures, "wait", interrupted)
  with pytest.raises(KeyboardInterrupt):
    store.read({"a": np.empty_like(noise)})
  assert len(late) == 3, "the pieces of the other threads were over"
  store.release()


def test_sizes_must_match(tmp_path):
  store = Store(tmp_path / "s", {})
  store.create("a", 4, np.float32)
  with pytest.raises(ValueError, match="a has 16 bytes in the store, not 20"):
    store.write({"a": np.zeros(5, np.float32)})
  with pytest.raises(ValueError, match="a has 16 bytes in the store, not 12"):
    store.read({"a": np.zeros(3, np.float32)})


def test_a_file_that_was_cut_is_noticed(tmp_path):
  store = Store(tmp_path / "s", {}, direct_io=True)
  store.create("a", 10_240, np.float32)
  os.truncate(tmp_path / "s/a/c/0", 2 * BLOCK)
  with pytest.raises(EOFError, match="ends at byte 8192"):
    store.read({"a": np.zeros(10_240, np.float32)})


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  store = Store(tmp_path / "s", {})
  monkeypatch.setattr(os, "posix_fallocate", full)
  with pytest.raises(OSError, match="No space left"):
    store.create("units/0/mu.now", 4, np.float32)
  store.remove_all()
  assert not (tmp_path / "s").exists()


def test_no_direct_io_on_this_file_system(tmp_path, monkeypatch):
  monkeypatch.setattr("offload.store.offers_direct_io", lambda path: False)
  with pytest.raises(ValueError, match="does not offer it: leave it out"):
    Store(tmp_path / "s", {}, direct_io=True)
  assert not (tmp_path / "s").exists()


def test_an_array_is_a_file_of_its_elements(tmp_path):
  """The format is zarr3 without compression: any reader finds the raw elements, then padding."""
  store = Store(tmp_path / "s", {})
  store.create("a", 6, np.float32)
  store.write({"a": np.arange(6, dtype=np.float32)})
  metadata = json.loads((tmp_path / "s/a/zarr.json").read_text())
  assert metadata["data_type"] == "float32" and metadata["shape"] == [6]
  held = (tmp_path / "s/a/c/0").read_bytes()
  assert held == np.arange(6, dtype="<f4").tobytes() + bytes(BLOCK - 24)
  assert (
    metadata["attributes"]["store"] == json.loads((tmp_path / "s/store.json").read_text())["id"]
  )


def test_closing_takes_only_what_the_store_made(tmp_path):
  store = Store(tmp_path / "s", {})
  store.create("units/0/mu.now", 4, np.float32)
  store.write({"units/0/mu.now": np.zeros(4, np.float32)})
  foreign = tmp_path / "s/units/notes.txt"
  foreign.write_text("mine")
  store.remove_all()
  assert foreign.read_text() == "mine"
  assert [p for p in (tmp_path / "s").rglob("*") if p.is_file()] == [foreign]


def test_folders_that_are_taken(tmp_path):
  assert manifest.check(tmp_path / "new", {}) is None
  assert manifest.check(tmp_path, {}) is None
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="is a file"):
    manifest.check(tmp_path / "file", {})
  with pytest.raises(ValueError, match="files that are no store"):
    manifest.check(tmp_path, {})


def test_a_store_is_opened_again_with_its_arrays(tmp_path):
  first = Store(tmp_path / "s", {"model": "small"})
  first.create("a/b", 4, ml_dtypes.bfloat16)
  with pytest.raises(ValueError, match="in use by another run"):
    Store(tmp_path / "s", {"model": "small"})
  first.release()
  foreign = tmp_path / "s/a/foreign"
  foreign.mkdir()
  (foreign / "zarr.json").write_text(
    (tmp_path / "s/a/b/zarr.json").read_text().replace("store", "")
  )
  again = Store(tmp_path / "s", {"model": "small"})
  assert again.names == ["a/b"] and again.span("a/b") == 8
  again.remove_all()
  assert [path for path in (tmp_path / "s").rglob("*") if path.is_file()] == [foreign / "zarr.json"]


def test_another_configuration_is_named(tmp_path):
  Store(tmp_path / "s", {"model": "small", "seed": 1}).release()
  with pytest.raises(ValueError, match=r"holds a run with --model=small: give the same"):
    Store(tmp_path / "s", {"model": "large", "seed": 1})


@pytest.mark.parametrize("at", range(0, 150, 7))
def test_a_flip_in_the_manifest_is_noticed(tmp_path, at):
  Store(tmp_path / "s", {"model": "small"}).release()
  path = tmp_path / "s/store.json"
  text = bytearray(path.read_bytes())
  text[at % len(text)] ^= 4
  path.write_bytes(text)
  with pytest.raises(ValueError, match=r"store\.json is not as it was written"):
    Store(tmp_path / "s", {"model": "small"})
