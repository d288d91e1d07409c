"""The published systems' own costs, for prediction only: what GreedySnake is compared with.

Two models of an iteration, phase by phase with barriers between, as their authors' code has them:
ZeRO-Infinity's horizontal order as DeepSpeed runs it (gradients of 2 bytes on the link; float32
gradients written to SSD in the backward pass and read again in the step, as large as the states'
share there) and GreedySnake's vertical order with its snake and delayed step. Nothing here can be
run: our own engine keeps gradients in one type, spills none of them as float32 and has no barriers.

The placement of each is the best under a host memory, found by a linear program.
"""

import dataclasses

from scipy.optimize import linprog

_PARAMETER, _STATES, _SPILL = 2, 12, 4  # bytes an element: low precision; master, m, v; float32
_RING = 4  # boundaries of each unit that vertical keeps in host memory before any go to SSD
_FRACTIONS = [i / 50 for i in range(16)]


@dataclasses.dataclass(frozen=True)
class Training:
  """A model in training; boundaries are of 2 bytes."""

  units: int
  width: int
  elements: float  # of all units
  tokens: int  # of a micro-batch
  sequence_length: int
  micro_batches: int

  @property
  def boundary(self) -> float:
    return self.tokens * self.width * 2.0


@dataclasses.dataclass(frozen=True)
class Rates:
  """Per second; both directions of the link share it, and so do reads and writes of the SSD."""

  flops: float
  link: float
  ssd_read: float
  ssd_write: float
  update: float  # elements
  host_memory: float


def horizontal_seconds(shape: Training, rates: Rates, gradient_bytes: int = 2) -> float | None:
  """Seconds of an iteration of ZeRO-Infinity's, or None where it does not fit."""
  u, m, n, a = shape.units, shape.micro_batches, shape.elements, shape.boundary
  p, g, state, spill = _PARAMETER * n, gradient_bytes * n, _STATES * n, _SPILL * n
  forward, boundaries = _forward_seconds(shape, rates), m * (u - 2) * a
  passes = m * p * (u - 1) / u
  rows = [  # phase, seconds, and their slopes in the SSD shares of parameters, states, boundaries
    (0, forward, ()),
    (0, (m * p + boundaries) / rates.link, ()),
    (0, 0.0, (m * p / rates.ssd_read,)),
    (1, 3 * forward, ()),
    (1, (passes + boundaries + (2 * m - 1) * g) / rates.link, ()),
    (1, 0.0, (passes / rates.ssd_read, spill / rates.ssd_write)),
    (2, n / rates.update, ()),
    (2, 0.0, (p / rates.ssd_write, (state + spill) / rates.ssd_read + state / rates.ssd_write)),
  ]
  memory = [(p + state + g + (u - 1) * a, (-p, -state))]
  return _least(rows, memory, rates.host_memory)


def vertical_seconds(shape: Training, rates: Rates, gradient_bytes: int = 4) -> float | None:
  """Seconds of an iteration of GreedySnake's, at its best delayed fraction, or None."""
  found = [_vertical_seconds(shape, rates, gradient_bytes, f) for f in _FRACTIONS]
  return min((seconds for seconds in found if seconds is not None), default=None)


def _vertical_seconds(
  shape: Training, rates: Rates, gradient_bytes: int, delayed: float
) -> float | None:
  u, m, n, a = shape.units, shape.micro_batches, shape.elements, shape.boundary
  p, g, state = _PARAMETER * n, gradient_bytes * n, _STATES * n
  forward, deep = _forward_seconds(shape, rates), max(m - _RING, 0) * a
  turning = (u - 1) * (m - 1) * a
  up, down = 1 / rates.ssd_read, 1 / rates.ssd_write
  both = state * (up + down)
  rows = [
    (0, forward, ()),
    (0, (p + turning + ((u - 1) * m - 1) * a) / rates.link, ()),
    (0, delayed * n / rates.update, ()),
    (0, 0.0, (p * ((1 - delayed) * up + delayed * down), delayed * both, (u - 2) * deep * down)),
    (1, 3 * forward, ()),
    (1, (p * (u - 1) / u + (u - 2) * m * a + 2 * turning + g) / rates.link, ()),
    (1, (1 - delayed) * n / rates.update, ()),
    (
      *(1, 0.0),
      (
        p * ((u - 2) / u * up + (1 - delayed) * down),
        (1 - delayed) * both,
        (u - 3) * deep * up,
      ),
    ),
  ]
  kept, larger = m * u * a, max(delayed, 1 - delayed) * n / u
  ring = a * (min(m, _RING) * u + 2 * max(m - _RING, 0))
  held = (
    p + state + kept + m * a + 2 * _SPILL * larger,
    (-p + 3 * p / u, -state + 3 * _STATES * larger, ring - kept),
  )
  # Delayed gradients wait in what boundaries and the delayed share of parameters leave in memory.
  waiting = (
    delayed * g - kept - delayed * p + rates.host_memory,
    (delayed * p, 0.0, kept),
  )
  return _least(rows, [held, waiting], rates.host_memory)


def _forward_seconds(shape: Training, rates: Rates) -> float:
  """Of all micro-batches; dense attention, nothing saved by causality."""
  attention = 4 * shape.units * shape.sequence_length * shape.width
  return shape.micro_batches * shape.tokens * (2 * shape.elements + attention) / rates.flops


def _least(rows: list, memory: list, host_memory: float) -> float | None:
  """The least sum of phases, over SSD shares of parameters, states and boundaries."""
  pad = lambda slopes: [*slopes, *([0.0] * (3 - len(slopes)))]
  unit = lambda phase: [-float(phase == i) for i in range(3)]
  matrix = [pad(slopes) + unit(phase) for phase, _, slopes in rows]
  limits = [-seconds for _, seconds, _ in rows]
  matrix += [[s / host_memory for s in pad(slopes)] + [0.0] * 3 for _, slopes in memory]
  limits += [1.0 - size / host_memory for size, _ in memory]
  bounds = [(0.0, 1.0)] * 3 + [(0.0, None)] * 3
  found = linprog([1e-6] * 3 + [1.0] * 3, matrix, limits, bounds=bounds, method="highs")
  return sum(map(float, found.x[3:])) if found.status == 0 else None
