"""Every table by name."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.tables import bandwidth, conformance, decoding, kernels, ssd, training
from experiments.tables.table import Table

TABLES: dict[str, Callable[[Path], Table]] = {
  "training": training.table,
  "decoding": decoding.table,
  "kernels": kernels.table,
  "bandwidth": bandwidth.table,
  "conformance": conformance.table,
  "ssd": ssd.table,
}


class Measurement(NamedTuple):
  """Both take the runs' folder and `quick`; `check` refuses what cannot be and writes nothing."""

  check: Callable[..., None]
  measure: Callable[..., None]


# Tables whose runs the quickstart does not make.
MEASUREMENTS = {"ssd": Measurement(ssd.check, ssd.measure)}
