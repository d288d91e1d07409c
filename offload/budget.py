"""Bytes of memory that a run may take on each tier."""

import jax

from offload.free_memory import free_memory
from schedules.placement import Budgets
from schedules.pools import Pools
from schedules.steps import Tier, Work

_SHARE = 0.8  # of what is there; the rest is for the program itself and for the page cache


def budgets(host: int | None, device: int | None) -> Budgets:
  """The given limits, or else a share of what this machine has free.

  Where the device is the CPU, both come out of the same memory: each gets half.
  """
  free = free_memory()
  limits = jax.local_devices()[0].memory_stats()
  if limits and "bytes_limit" in limits:
    found = int(_SHARE * free), int(_SHARE * limits["bytes_limit"])
  else:
    found = int(_SHARE * free / 2), int(_SHARE * free / 2)
  return {
    Tier.HOST: found[0] if host is None else host,
    Tier.DEVICE: found[1] if device is None else device,
  }


def spare_bytes(limits: Budgets, pools: Pools, work: Work, device_reserved: int) -> int:
  """What the budgets leave of the host's memory, in bytes: of the device's budget, too, where the
  device is the CPU. `device_reserved` is what the programs take beside the pools."""
  taken = pools.peak_bytes(work)
  taken[Tier.DEVICE] += device_reserved
  tiers = (Tier.HOST, Tier.DEVICE) if jax.default_backend() == "cpu" else (Tier.HOST,)
  return sum(max(limit - taken[tier], 0) for tier in tiers if (limit := limits[tier]) is not None)
