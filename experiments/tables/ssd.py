"""The disk's speed through the store, beside raw direct I/O on the same file system.

    python -m experiments.tables ssd --measure [--runs=FOLDER]    # the disk that holds FOLDER

A unit's three state arrays move together, unit after unit, each unit's write durable before the
next one's begins. Every way has its turn in each round (the order turns too), behind fsync and
POSIX_FADV_DONTNEED of its files; a ratio is the median over rounds of two times of one round. "Raw"
is the faster of two: a call an array, one after the other, or pieces as small as the store's, as
many in flight. Nothing else of the machine may use the disk meanwhile.

Why the store does not move its elements by TensorStore. Its file driver (0.1.86; system calls
traced) writes each chunk to a new file by way of the page cache, whatever `file_io_mode`, which is
about reads; then fsync, rename, fsync of the folder. A direct read goes to memory of its own, which
is new at each read, and is copied from there. Tried on 2 cores of a virtual machine with ext4 on a
virtual disk, 352 MB a round, as shares of raw writes in place and of raw reads (medians of 7 paired
rounds; the machine was not quiet, and raw itself moved by a third):

| what                                                            | durable write | cold read |
| --------------------------------------------------------------- | ------------: | --------: |
| raw, a new file each time                                       |     0.43-0.55 | 0.82-1.06 |
| TensorStore, chunks of 1 MiB                                    |          0.70 |      1.02 |
| chunks of 4 MiB                                                 |          0.67 |      0.83 |
| chunks of 16 MiB                                                |          0.30 |      0.86 |
| chunks of 64 MiB (an array each)                                |          0.40 |      0.82 |
| 8 MiB, file_io_concurrency 1                                    |          0.18 |      0.49 |
| 8 MiB, file_io_concurrency 2                                    |          0.33 |      0.73 |
| 8 MiB, file_io_concurrency 4                                    |          0.40 |      0.73 |
| 4 MiB, file_io_mode direct                                      |          0.61 |      1.36 |
| 64 MiB, file_io_mode direct                                     |          0.47 |      1.04 |
| 4 MiB, file_io_mode memmap                                      |          0.63 |      1.18 |
| 64 MiB, file_io_mode memmap                                     |          0.47 |      1.09 |
| 64 MiB, file_io_locking none                                    |          0.55 |      1.25 |
| 64 MiB, file_io_locking lockfile                                |          0.55 |      1.02 |
| 64 MiB, file_io_locking non_atomic                              |          0.53 |      1.19 |
| 64 MiB, non_atomic, file_io_sync off, then one fdatasync a file |          0.49 |      1.04 |
| 8 MiB, file_io_sync off, then one fdatasync a file              |          0.43 |      1.19 |
| 64 MiB, data_copy_concurrency 1                                 |          0.26 |      0.68 |
| 64 MiB, data_copy_concurrency 8                                 |          0.56 |      0.67 |
| 64 MiB, without can_reference_source_data_indefinitely          |          0.49 |      0.77 |
| sharding_indexed, 4 MiB in one shard                            |          0.56 |      0.81 |
| sharding_indexed, file_io_mode direct                           |          0.43 |      0.66 |
| ocdbt                                                           |          0.12 |      0.68 |
| ocdbt, file_io_sync off, then one fdatasync a file              |          0.06 |      0.76 |
| by us in place, page cache, pieces of 4 MiB, 4 in flight        |          0.94 |      1.11 |
| by us in place, direct, 16 MiB, 4 in flight: the store          |          1.19 |      1.06 |

The driver's writes end where a new file's do: the extents that each write takes and gives back are
what costs. (Small chunks reach 0.7, by overlapping one's fsync with the copy of others.) Where
other work keeps both cores busy, whatever goes by the page cache falls to a tenth of raw, since its
copies need a processor; the store's direct I/O stays where it is.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments import machine as machines
from experiments import program, run_log
from experiments.tables import disk
from experiments.tables.table import NOT_MEASURED, Table, bytes_text, number_text
from offload.buffers import aligned

WAYS = {
  "raw": "raw, in place, one call an array",
  "raw pieces": "raw, in place, pieces of 16 MiB, 4 in flight",
  "store": "our store, direct I/O",
  "store cached": "our store, page cache",
  "raw new": "raw, a new file each time",
  "tensorstore 4": "TensorStore alone, chunks of 4 MiB",
  "tensorstore 64": "TensorStore alone, chunks of 64 MiB",
}
RAW = ("raw", "raw pieces")
WANTED = {"write": 0.75, "read": 0.9}
ARRAYS, ELEMENTS = 3, 7 * 2**20  # of a unit: float32, 88 MB together
_UNITS, _ROUNDS = (8, 2), (9, 3)  # at length, and quick

Seconds = dict[str, dict[str, list[float]]]  # operation -> way -> of each round


def table(runs: Path) -> Table:
  """The table of the measurement in `runs/ssd`, if there is one."""
  columns = ["what"]
  columns += [c for did in ("written", "read") for c in (f"GB/s {did}", "of raw", "best of raw")]
  heading = {
    "name": "ssd",
    "title": "SSD: durable writes and cold reads of optimizer states, beside raw direct I/O",
    "columns": (*columns, "processor seconds per GB"),
  }
  if not (runs / "ssd" / run_log.SUMMARY_FILE).is_file():
    rows = tuple((title, *[NOT_MEASURED] * 7) for title in WAYS.values())
    how = f"python -m experiments.tables ssd --measure --runs={runs} measures it."
    return Table(rows=rows, notes=(how,), **heading)
  summary = run_log.read_summary(runs / "ssd")
  return Table(
    rows=tuple(_row(way, summary) for way in WAYS),
    notes=(
      "{arrays} arrays of {elements:,} float32 a unit, {units} units a round, {rounds} rounds;"
      " speeds are medians.".format(**summary["setting"]),
      "Of raw: the median over rounds of two times of one round, raw being the way with the better"
      " median; best of raw: of the shortest times.",
      "Wanted: {write} of raw written, {read} of raw read.".format(**WANTED),
      f"Reading and writing at once, the store took {_at_once(summary):.2f} of the time that it"
      " took one after the other.",
    ),
    machine=machines.sentence(summary["machine"]),
    **heading,
  )


def ratios(seconds: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
  """Of each way: raw's time over its own, the median over rounds and that of the best ones."""
  raw = min((seconds[way] for way in RAW), key=statistics.median)
  return {
    way: (statistics.median(r / t for r, t in zip(raw, own, strict=True)), min(raw) / min(own))
    for way, own in seconds.items()
  }


def check(runs: Path, *, quick: bool) -> None:
  """Refuses a folder that holds something else, or whose disk has no room; touches nothing."""
  run_log.check_workdir(runs / "ssd", program.name())
  there = next(path for path in (runs, *runs.absolute().parents) if path.is_dir())
  need, free = len(WAYS) * 5 * ARRAYS * ELEMENTS * _UNITS[quick], shutil.disk_usage(there).free
  if free < need:
    raise ValueError(
      f"--runs={runs}: its disk has {bytes_text(free)} free and measuring it takes"
      f" {bytes_text(need)}: make room, or give --quick."
    )


def measure(runs: Path, *, quick: bool) -> None:
  """Measures all ways and leaves the run folder `runs/ssd`."""
  log = run_log.RunLog.start(runs / "ssd", program.name())
  units, rounds = _UNITS[quick], _ROUNDS[quick]
  with tempfile.TemporaryDirectory(dir=log.workdir, prefix="disk") as folder:
    seconds, processor, at_once = compare(Path(folder), units, rounds, ELEMENTS)
  setting = {"units": units, "rounds": rounds, "arrays": ARRAYS, "elements": ELEMENTS}
  log.finish(
    {
      "setting": setting,
      "seconds": seconds,
      "processor_seconds": processor,
      "at_once_seconds": at_once,
      "store_of_raw": {op: ratios(seconds[op])["store"][0] for op in WANTED},
    },
    "the disk is measured",
  )


def compare(
  folder: Path, units: int, rounds: int, elements: int
) -> tuple[Seconds, dict[str, list[float]], list[float]]:
  """Seconds of each operation and way in each round; processor seconds of both operations; seconds
  of the store's reading and writing at once.

  Raises:
    AssertionError: what was read is not what was written.
  """
  keepers = make(folder)
  sources, target = contents(elements, units), _unit(elements)
  seconds = {op: {way: [] for way in keepers} for op in WANTED}
  processor, at_once = {way: [] for way in keepers}, []
  names = list(keepers)
  for i in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
    turned = names[i % len(names) :] + names[: i % len(names)]
    for way in turned:
      began = time.process_time()
      keeper = keepers[way]
      spent = {
        "write": _timed(folder / way, keeper.write, [sources[(i + u) % 2] for u in range(units)]),
        "read": _timed(folder / way, keeper.read, [target] * units),
      }
      busy = time.process_time() - began
      last = sources[(i + units - 1) % 2]
      assert all(map(np.array_equal, target, last)), f"{way}: what was read is not what was written"
      if i:  # the first round makes the files
        processor[way].append(busy)
        for op in WANTED:
          seconds[op][way].append(spent[op])
    if i:
      at_once.append(_both(keepers["store"], folder / "store", sources[i % 2], target, units))
  return seconds, processor, at_once


def make(folder: Path) -> dict[str, disk.Keeper]:
  """Every way, each in a folder of its own."""
  return {
    "raw": disk.Raw(folder / "raw"),
    "raw pieces": disk.Raw(folder / "raw pieces", piece=16 * 2**20, in_flight=4),
    "store": disk.OurStore(folder / "store", direct_io=True),
    "store cached": disk.OurStore(folder / "store cached", direct_io=False),
    "raw new": disk.RawNewFiles(folder / "raw new"),
    "tensorstore 4": disk.TensorStoreAlone(folder / "tensorstore 4", 4 * 2**20),
    "tensorstore 64": disk.TensorStoreAlone(folder / "tensorstore 64", 64 * 2**20),
  }


def contents(elements: int, seed: int) -> tuple[disk.Arrays, disk.Arrays]:
  """Two units of random numbers, so that each write changes what is there."""
  random = np.random.default_rng(seed)
  units = _unit(elements), _unit(elements)
  for array in (*units[0], *units[1]):
    array[:] = random.standard_normal(elements, np.float32)
  return units


def _unit(elements: int) -> disk.Arrays:
  return [aligned((elements,), np.float32) for _ in range(ARRAYS)]


def _timed(
  folder: Path, call: Callable[[int, disk.Arrays], None], units: list[disk.Arrays]
) -> float:
  """Seconds of a call for each unit, from a cold cache."""
  disk.drop_cache(folder)
  start = time.perf_counter()
  for unit, arrays in enumerate(units):
    call(unit, arrays)
  return time.perf_counter() - start


def _both(
  keeper: disk.Keeper, folder: Path, source: disk.Arrays, target: disk.Arrays, units: int
) -> float:
  """Seconds until a thread that reads every unit and one that writes every unit are over."""
  disk.drop_cache(folder)
  start = time.perf_counter()
  with ThreadPoolExecutor(1) as reader:
    reading = reader.submit(lambda: [keeper.read(unit, target) for unit in range(units)])
    for unit in range(units):
      keeper.write((unit + units // 2) % units, source)
    reading.result()
  return time.perf_counter() - start


def _row(way: str, summary: dict[str, Any]) -> tuple[str, ...]:
  setting = summary["setting"]
  gigabytes = 4e-9 * setting["arrays"] * setting["elements"] * setting["units"]
  cells = []
  for op in WANTED:
    of_raw, best = ratios(summary["seconds"][op])[way]
    speed = gigabytes / statistics.median(summary["seconds"][op][way])
    cells += [number_text(speed), f"{of_raw:.2f}", f"{best:.2f}"]
  busy = statistics.median(summary["processor_seconds"][way]) / (len(WANTED) * gigabytes)
  return (WAYS[way], *cells, number_text(busy, 2))


def _at_once(summary: dict[str, Any]) -> float:
  seconds = {op: summary["seconds"][op]["store"] for op in WANTED}
  each = zip(summary["at_once_seconds"], *seconds.values(), strict=True)
  return statistics.median(both / (write + read) for both, write, read in each)
