"""Every table by name."""

from collections.abc import Callable
from pathlib import Path

from experiments.tables import decoding, training
from experiments.tables.table import Table

TABLES: dict[str, Callable[[Path], Table]] = {
  "training": training.table,
  "decoding": decoding.table,
}
