"""Every table by name."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.tables import (
  acceptance,
  assisted,
  bandwidth,
  commits,
  conformance,
  decoding,
  draft_lengths,
  engine,
  kernels,
  memory,
  orders,
  peers,
  regime,
  ssd,
  staleness,
  throughput,
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
  "acceptance": acceptance.table,
  "staleness": staleness.table,
  "draft_lengths": draft_lengths.table,
  "peers": peers.table,
  "throughput": throughput.table,
  "assisted": assisted.table,
  "regime": regime.table,
}


class Measurement(NamedTuple):
  """Both take the runs' folder and `quick`; `check` refuses what cannot be and writes nothing."""

  check: Callable[..., None]
  measure: Callable[..., None]


QUICKSTART = ("training", "decoding")  # tables of the quickstart's runs

# Tables that --measure measures by themselves.
MEASUREMENTS = {
  "ssd": Measurement(ssd.check, ssd.measure),
  "engine": Measurement(engine.check, engine.measure),
  "orders": Measurement(orders.check, orders.measure),
  "memory": Measurement(memory.check, memory.measure),
  "transports": Measurement(transports.check, transports.measure),
  "commits": Measurement(commits.check, commits.measure),
  "acceptance": Measurement(acceptance.check, acceptance.measure),
  "staleness": Measurement(staleness.check, staleness.measure),
  "draft_lengths": Measurement(draft_lengths.check, draft_lengths.measure),
  "throughput": Measurement(throughput.check, throughput.measure),
}

# What measures the other tables, which need a GPU, other environments or their own process.
COMMANDS = {
  "kernels": "python -m experiments.tables.kernels --workdir={runs}/kernels",
  "bandwidth": "python -m experiments.gpu_check.bandwidth --workdir={runs}/bandwidth",
  "conformance": ("python -m experiments.gpu_check.conformance --workdir={runs}/conformance_xla"),
  "regime": "python -m experiments.round_costs --workdir={runs}/rounds",
  "peers": "scripts/peers/zero_infinity --workdir={runs}/peers",
  "assisted": "scripts/peers/transformers --workdir={runs}/assisted",
}
