"""Every table by name."""

from collections.abc import Callable
from pathlib import Path

from experiments.tables import decoding, kernels, training
from experiments.tables.table import Table

TABLES: dict[str, Callable[[Path], Table]] = {
  "training": training.table,
  "decoding": decoding.table,
  "kernels": kernels.table,
}
