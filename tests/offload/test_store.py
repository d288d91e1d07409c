"""The arrays on disk: what is written comes back, and nothing else is touched."""

import json

import ml_dtypes
import numpy as np
import pytest

from offload.buffers import aligned
from offload.store import Store, check_vacant


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("direct_io", [False, True])
def test_round_trip(tmp_path, dtype, direct_io):
  store = Store(tmp_path / "s", {}, direct_io=direct_io)
  written, read = {}, {}
  for name, size in (("units/0/mu.now", 5), ("units/1/mu.now", 40_960)):
    store.create(name, size, dtype)
    written[name], read[name] = aligned((size,), dtype), aligned((size,), dtype)
    written[name][:] = np.random.default_rng(size).standard_normal(size)
  assert store.write(written) == store.read(read) == store.bytes
  for name in written:
    np.testing.assert_array_equal(written[name], read[name])


def test_an_array_is_a_file_of_its_elements(tmp_path):
  """The format is zarr3 without compression: any reader finds the raw elements."""
  store = Store(tmp_path / "s", {"format": 1})
  store.create("a", 6, np.float32)
  store.write({"a": np.arange(6, dtype=np.float32)})
  metadata = json.loads((tmp_path / "s/a/zarr.json").read_text())
  assert metadata["data_type"] == "float32" and metadata["shape"] == [6]
  assert (tmp_path / "s/a/c/0").read_bytes() == np.arange(6, dtype="<f4").tobytes()
  assert json.loads((tmp_path / "s/store.json").read_text()) == {"format": 1}


def test_closing_takes_only_what_the_store_made(tmp_path):
  store = Store(tmp_path / "s", {})
  store.create("units/0/mu.now", 4, np.float32)
  store.write({"units/0/mu.now": np.zeros(4, np.float32)})
  foreign = tmp_path / "s/units/notes.txt"
  foreign.write_text("mine")
  store.close()
  assert foreign.read_text() == "mine"
  assert [p for p in (tmp_path / "s").rglob("*") if p.is_file()] == [foreign]


def test_folders_that_are_taken(tmp_path):
  check_vacant(tmp_path / "new")
  check_vacant(tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="is a file"):
    check_vacant(tmp_path / "file")
  with pytest.raises(ValueError, match="files that are no store"):
    check_vacant(tmp_path)
  Store(tmp_path / "s", {})
  with pytest.raises(ValueError, match="state of an earlier run"):
    Store(tmp_path / "s", {})
