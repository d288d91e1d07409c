"""Bytes of memory that a run may take on each tier."""

import os

import jax

from schedules.placement import Budgets
from schedules.pools import Pools, Sizes
from schedules.steps import Tier, Work

_SHARE = 0.8  # of what is there; the rest is for the program itself and for the page cache


class BudgetError(ValueError):
  """A run does not fit; the message names the flag and the bytes."""


def budgets(host: int | None, device: int | None) -> Budgets:
  """The given limits, or else a share of what this machine has free.

  Where the device is the CPU, both come out of the same memory: each gets half.
  """
  free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  limits = jax.local_devices()[0].memory_stats()
  if limits and "bytes_limit" in limits:
    found = int(_SHARE * free), int(_SHARE * limits["bytes_limit"])
  else:
    found = int(_SHARE * free / 2), int(_SHARE * free / 2)
  return {
    Tier.HOST: found[0] if host is None else host,
    Tier.DEVICE: found[1] if device is None else device,
  }


def check_device(
  pools: Pools, work: Work, sizes: Sizes, limits: Budgets, temporary_bytes: int
) -> None:
  """Holds the pools and the largest compiled program together against the device's budget.

  Raises:
    BudgetError: they exceed it.
  """
  limit = limits.get(Tier.DEVICE)
  needed = pools.peak_bytes(work, sizes)[Tier.DEVICE] + temporary_bytes
  if limit is not None and needed > limit:
    raise BudgetError(
      f"--device_memory_budget={limit} is too small: buffers and the largest program take {needed} "
      "bytes; raise it, or take a smaller --micro_batch_size or --sequence_length."
    )
