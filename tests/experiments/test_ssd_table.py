"""The table of the disk's speed: what it says, and that every way keeps what it is given."""

import numpy as np
import pytest

from experiments import machine, run_log
from experiments.tables import registry, ssd
from experiments.tables.table import NOT_MEASURED
from offload.buffers import aligned


@pytest.mark.parametrize("way", ssd.WAYS)
def test_every_way_keeps_units_apart(tmp_path, way):
  keeper = ssd.make(tmp_path)[way]
  units = [ssd.contents(8_192, seed)[0] for seed in range(3)]
  for _ in range(2):  # into new files, then over what they hold
    for unit, arrays in enumerate(units):
      keeper.write(unit, arrays)
    units = units[::-1]
  for unit, arrays in enumerate(units[::-1]):
    target = [aligned((8_192,), np.float32) for _ in arrays]
    keeper.read(unit, target)
    np.testing.assert_array_equal(target, arrays)


def test_measuring_times_every_way_in_every_round(tmp_path):
  seconds, processor, at_once = ssd.compare(tmp_path, units=2, rounds=2, elements=8_192)
  assert set(seconds) == {"write", "read"} and len(at_once) == 2
  for of_ways in (*seconds.values(), processor):
    assert list(of_ways) == list(ssd.WAYS) and all(len(each) == 2 for each in of_ways.values())


def test_ratios_are_medians_of_rounds_over_the_better_raw_way():
  seconds = {"raw": [9.0, 9.0, 9.0], "raw pieces": [1.0, 4.0, 2.0], "store": [2.0, 2.0, 2.0]}
  found = ssd.ratios(seconds)
  assert found["store"] == (1.0, 0.5) and found["raw pieces"] == (1.0, 1.0)
  assert found["raw"] == (pytest.approx(2 / 9), pytest.approx(1 / 9))


def test_the_table_says_what_was_measured(tmp_path):
  assert {cell for row in ssd.table(tmp_path).rows for cell in row[1:]} == {NOT_MEASURED}
  times = {way: [1.0, 2.0, 4.0] for way in ssd.WAYS} | {"store": [2.0, 4.0, 8.0]}
  summary = {
    "setting": {"arrays": 3, "elements": 10**8, "units": 2, "rounds": 3},  # 2.4 GB
    "seconds": {"write": times, "read": times},
    "processor_seconds": {way: [0.0, 2.4, 9.0] for way in ssd.WAYS},
    "at_once_seconds": [1.0, 2.0, 400.0],
    "machine": machine.describe(),
  }
  (tmp_path / "ssd").mkdir()
  run_log.write_json(tmp_path / "ssd" / run_log.SUMMARY_FILE, summary)
  table = ssd.table(tmp_path)
  rows = {row[0]: row[1:] for row in table.rows}
  assert rows[ssd.WAYS["store"]] == ("0.600", "0.50", "0.50", "0.600", "0.50", "0.50", "0.50")
  assert rows[ssd.WAYS["raw"]][:2] == ("1.20", "1.00")
  assert any("took 0.25 of the time" in note for note in table.notes)


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
  usage = lambda path: type("usage", (), {"free": 10**9})
  monkeypatch.setattr("shutil.disk_usage", usage)
  with pytest.raises(ValueError, match=r"has 1 GB free and measuring it takes .* give --quick"):
    registry.MEASUREMENTS["ssd"].check(tmp_path / "new", quick=False)
  assert not (tmp_path / "new").exists()
