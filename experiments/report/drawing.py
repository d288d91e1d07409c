"""A drawing of the two orders of work, as inline SVG: who is computed when, and what is loaded."""

from experiments.report.plots import COLOURS

_UNITS, _MICRO_BATCHES = 3, 4
_CELL, _GAP, _LEFT, _TOP = 44, 6, 64, 64


def orders() -> str:
  """Two grids, units across and micro-batches down, numbered in the order of the forward pass.

  A filled cell is a computation before which its unit's parameters must be loaded anew.
  """
  horizontal = [(u, m) for m in range(_MICRO_BATCHES) for u in range(_UNITS)]
  # The snake: each unit begins with the micro-batch that the unit before ended with.
  vertical = [
    (u, m if u % 2 == 0 else _MICRO_BATCHES - 1 - m)
    for u in range(_UNITS)
    for m in range(_MICRO_BATCHES)
  ]
  width, height = 640, _TOP + _MICRO_BATCHES * (_CELL + _GAP) + 42
  return (
    f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="orders-title">'
    '<title id="orders-title">Horizontal order takes all units of a micro-batch before the next'
    " micro-batch and loads parameters for every computation; vertical order takes all"
    " micro-batches of a unit before the next unit and loads each unit's parameters once.</title>"
    + _grid("horizontal", horizontal, 0)
    + _grid("vertical", vertical, 330)
    + "</svg>"
  )


def _grid(name: str, order: list[tuple[int, int]], x: int) -> str:
  colour = COLOURS[name]
  parts = [f'<text x="{x + _LEFT}" y="20" class="head">{name}</text>']
  place = lambda i, start: start + i * (_CELL + _GAP)
  for u in range(_UNITS):
    at = place(u, x + _LEFT) + _CELL / 2
    parts.append(f'<text x="{at}" y="{_TOP - 12}" text-anchor="middle">unit {u + 1}</text>')
  for m in range(_MICRO_BATCHES):
    at = place(m, _TOP) + _CELL / 2 + 4
    parts.append(f'<text x="{x + _LEFT - 10}" y="{at}" text-anchor="end">batch {m + 1}</text>')
  loads, here = 0, None
  for number, (u, m) in enumerate(order, start=1):
    load, here = u != here, u
    loads += load
    left, top = place(u, x + _LEFT), place(m, _TOP)
    fill, ink = (colour, "#fff") if load else ("#eef2f4", "#22303a")
    parts.append(
      f'<rect x="{left}" y="{top}" width="{_CELL}" height="{_CELL}" rx="5" fill="{fill}"/>'
      f'<text x="{left + _CELL / 2}" y="{top + _CELL / 2 + 5}" text-anchor="middle" fill="{ink}">'
      f"{number}</text>"
    )
  below = _TOP + _MICRO_BATCHES * (_CELL + _GAP) + 20
  parts.append(
    f'<text x="{x + _LEFT}" y="{below}" fill="{colour}">{loads} loads of parameters</text>'
  )
  return "".join(parts)
