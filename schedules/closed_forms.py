"""Objects moved in a steady iteration, as formulas: what the derived list is held against.

The formulas hold at delayed fraction 0, with rings of two for boundaries and gradients, rings of
`device` and `host` buffers for parameters (device <= host <= units - 2), parameters and states at
home on SSD, boundaries and the horizontal order's gradients in host memory.

At `device` = 1 and `host` = 2 the vertical ones are those of GreedySnake (arXiv 2512.17570), whose
planner loads the unit at the turn twice: 2U - 1 parameter loads, and 2(U - 2) parameter reads. The
horizontal ones are ZeRO-Infinity's M(2U - 1) loads and M(U - 2) boundaries less what one rule for
every schedule keeps where it is: the unit at each micro-batch's end and the boundary at each turn.
"""

from schedules.steps import Kind, Queue

Counts = dict[Queue, dict[Kind, int]]


def vertical(units: int, micro_batches: int, device: int, host: int) -> Counts:
  """Counts by link and kind; at least two micro-batches."""
  u, m = units, micro_batches
  return {
    Queue.HOST_TO_DEVICE: {
      Kind.PARAMETERS: 2 * u - device,
      Kind.BOUNDARY: (u - 1) * (m - 1) + (u - 2) * m,
      Kind.BOUNDARY_GRADIENT: (u - 1) * (m - 1),
    },
    Queue.DEVICE_TO_HOST: {
      Kind.GRADIENTS: u,
      Kind.BOUNDARY: (u - 1) * m - 1,
      Kind.BOUNDARY_GRADIENT: (u - 1) * (m - 1),
    },
    Queue.SSD_READ: {Kind.PARAMETERS: 2 * (u - host), Kind.STATES: u},
    Queue.SSD_WRITE: {Kind.PARAMETERS: u, Kind.STATES: u},
  }


def horizontal(units: int, micro_batches: int, device: int, host: int) -> Counts:
  """Counts by link and kind, for parameters that are their own float32 masters: the step reads
  again those that the last micro-batch has not left in host memory."""
  u, m = units, micro_batches
  loads = (2 * u - device) + (m - 1) * 2 * (u - device)
  reads = (2 * u - host) + (m - 1) * 2 * (u - host)
  return {
    Queue.HOST_TO_DEVICE: {
      Kind.PARAMETERS: loads,
      Kind.BOUNDARY: m * (u - 3),
      Kind.GRADIENTS: (m - 1) * u,
    },
    Queue.DEVICE_TO_HOST: {Kind.GRADIENTS: m * u, Kind.BOUNDARY: m * (u - 3)},
    Queue.SSD_READ: {Kind.PARAMETERS: reads + (u - host), Kind.STATES: u},
    Queue.SSD_WRITE: {Kind.PARAMETERS: u, Kind.STATES: u},
  }
