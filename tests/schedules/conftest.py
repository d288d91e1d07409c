"""Work and pools small enough to enumerate."""

from collections.abc import Mapping

import pytest

from schedules.pools import CUT, Pools, Sizes, cut
from schedules.steps import Kind, Part, Tier

NOW = {Part.NOW: 1}


def _sizes(elements: Mapping[Part, int] = NOW) -> Sizes:
  """Sizes of one byte, so that bytes count objects."""
  return Sizes(dict.fromkeys(CUT, 1), elements, dict.fromkeys(Kind, 1), dict.fromkeys(Kind, 1))


def _pools(
  device: int = 2,
  host: int = 3,
  ring: int = 2,
  gradients: float = 0.0,
  boundaries: Tier = Tier.HOST,
  units: float = 0.0,
  spilled: int = 0,
  master_is_parameter: bool = True,
  elements: Mapping[Part, int] = NOW,
) -> Pools:
  """`gradients` and `units` (parameters and states) are the shares at home on the host."""
  rings = {(Tier.DEVICE, kind): ring for kind in Kind}
  rings |= {(Tier.HOST, kind): ring for kind in Kind}
  rings |= {(Tier.DEVICE, Kind.PARAMETERS): device, (Tier.HOST, Kind.PARAMETERS): host}
  homes = dict.fromkeys((Kind.BOUNDARY, Kind.BOUNDARY_GRADIENT), boundaries)
  shares = {Kind.PARAMETERS: units, Kind.STATES: units, Kind.GRADIENTS: gradients}
  vectors = {kind: cut(elements, share) for kind, share in shares.items()}
  return Pools(_sizes(elements), vectors, homes, rings, spilled, master_is_parameter)


@pytest.fixture
def make_pools():
  return _pools
