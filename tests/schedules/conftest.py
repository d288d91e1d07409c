"""Work and pools small enough to enumerate."""

import pytest

from schedules.pools import Pools, Sizes
from schedules.steps import Kind, Part, Tier

CUT = (Kind.PARAMETERS, Kind.STATES, Kind.GRADIENTS)


def _pools(
  device: int = 2,
  host: int = 3,
  ring: int = 2,
  gradients: Tier = Tier.SSD,
  boundaries: Tier = Tier.HOST,
  units: Tier = Tier.SSD,
  spilled: int = 0,
  master_is_parameter: bool = True,
) -> Pools:
  rings = {(Tier.DEVICE, kind): ring for kind in Kind}
  rings |= {(Tier.HOST, kind): ring for kind in Kind}
  rings |= {(Tier.DEVICE, Kind.PARAMETERS): device, (Tier.HOST, Kind.PARAMETERS): host}
  homes = {
    Kind.PARAMETERS: units,
    Kind.STATES: units,
    Kind.GRADIENTS: gradients,
    Kind.BOUNDARY: boundaries,
    Kind.BOUNDARY_GRADIENT: boundaries,
  }
  return Pools(homes, rings, spilled, master_is_parameter)


@pytest.fixture
def make_pools():
  return _pools


@pytest.fixture
def ones() -> Sizes:
  """Sizes of one byte, so that bytes count objects."""
  one = {(kind, Part.NOW if kind in CUT else Part.WHOLE): 1 for kind in Kind}
  return Sizes(one, one)
