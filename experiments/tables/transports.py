"""The two ways across the device's link, side by side: asynchronous copies, and host callbacks.

python -m experiments.tables transports --measure     # about 2 minutes on 2 quiet cores
"""

import statistics
from pathlib import Path

from experiments import machine
from experiments.tables import runs
from experiments.tables.engine import FLAGS
from experiments.tables.runs import QUICK, Run
from experiments.tables.table import NOT_MEASURED, Table, number_text, steady_seconds, times_text

TRANSPORTS, ROUNDS = ("copy", "callback"), 5
_LINKS = ("host_to_device", "device_to_host")


def check(folder: Path, *, quick: bool) -> None:
  del quick
  runs.check(folder / "transports")


def measure(folder: Path, *, quick: bool) -> None:
  own = (f"--flagfile={FLAGS / 'orders.flags'}", "--schedule=vertical", "--micro_batches=4")
  todo = {name: Run((*own, *QUICK * quick, f"--transport={name}")) for name in TRANSPORTS}
  runs.measure(folder / "transports", todo, 1 if quick else ROUNDS)


def table(folder: Path) -> Table:
  """The table of the runs in `folder/transports`; each may be missing."""
  found = runs.read(folder / "transports")
  some = next((each[0] for each in found.values()), None)
  rates = lambda each, link: statistics.median(s["profile"]["rates"][link] / 1e9 for s in each)
  seconds = {name: [steady_seconds(s) for s in each] for name, each in found.items()}
  rows = []
  for name in TRANSPORTS:
    if name not in found or TRANSPORTS[0] not in found:
      rows.append((name, *[NOT_MEASURED] * 4))
      continue
    pairs = zip(seconds[name], seconds[TRANSPORTS[0]], strict=False)
    rows.append(
      (
        name,
        *(number_text(rates(found[name], link)) for link in _LINKS),
        number_text(statistics.median(seconds[name])),
        times_text(statistics.median(a / b for a, b in pairs)),
      )
    )
  return Table(
    name="transports",
    title="Training: the two transports",
    columns=(
      "transport",
      "host to device, GB/s",
      "device to host, GB/s",
      "seconds an iteration",
      "over copy",
    ),
    rows=tuple(rows),
    notes=(
      "Rates of a unit's parameters and gradients, alone, by the probe; iterations of"
      f" {FLAGS / 'orders.flags'} with 4 micro-batches, vertical. Both give the same bits.",
      runs.settings_text(folder / "transports"),
    ),
    machine=machine.sentence(some["machine"]) if some else "",
  )
