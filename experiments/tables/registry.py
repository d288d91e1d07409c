"""Every table by name."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.tables import (
  bandwidth,
  commits,
  conformance,
  decoding,
  engine,
  kernels,
  memory,
  orders,
  peers,
  ssd,
  training,
  transports,
)
from experiments.tables.table import Table

TABLES: dict[str, Callable[[Path], Table]] = {
  "training": training.table,
  "decoding": decoding.table,
  "kernels": kernels.table,
  "bandwidth": bandwidth.table,
  "conformance": conformance.table,
  "ssd": ssd.table,
  "engine": engine.table,
  "orders": orders.table,
  "memory": memory.table,
  "transports": transports.table,
  "commits": commits.table,
  "peers": peers.table,
}


class Measurement(NamedTuple):
  """Both take the runs' folder and `quick`; `check` refuses what cannot be and writes nothing."""

  check: Callable[..., None]
  measure: Callable[..., None]


# Tables whose runs the quickstart does not make.
MEASUREMENTS = {
  "ssd": Measurement(ssd.check, ssd.measure),
  "engine": Measurement(engine.check, engine.measure),
  "orders": Measurement(orders.check, orders.measure),
  "memory": Measurement(memory.check, memory.measure),
  "transports": Measurement(transports.check, transports.measure),
  "commits": Measurement(commits.check, commits.measure),
}
