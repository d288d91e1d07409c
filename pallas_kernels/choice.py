"""Which implementation of an operation runs: the platform's best, unless the caller names one."""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax

# `supports(*arguments)` of an implementation: None, or the sentence that says why it cannot.
Supports = Callable[..., str | None]


# What a GPU kernel's language needs.
GPU_CAPABILITY = {
  "triton": "it needs an NVIDIA GPU of compute capability 8.0 or more.",
  "mosaic_gpu": "it needs an NVIDIA GPU of compute capability 9.0 (Hopper).",
}


def preferred(platform: str, compute_capability: float) -> tuple[str, ...]:
  """Names of implementations, the fastest first, for a platform and (NVIDIA) compute capability."""
  if platform != "gpu" or compute_capability < 8:
    return ("xla",)
  return ("mosaic_gpu", "triton", "xla") if 9 <= compute_capability < 10 else ("triton", "xla")


@functools.cache
def of_this_machine() -> tuple[str, ...]:
  """Names of the implementations that run here without an interpreter, the fastest first."""
  device = jax.devices()[0]
  capability = getattr(device, "compute_capability", None)
  return preferred(device.platform, float(capability) if capability else 0.0)


_preferred_by_user: str | None = None
_chosen: dict[str, str] = {}  # by operation, the latest


def prefer(name: str | None) -> None:
  """Sets the implementation of every operation that has one of this name; None: the platform's.

  Holds for the process, and for what is traced from here on: a program calls it once, at its start.

  Raises:
    ValueError: it does not run on this machine.
  """
  global _preferred_by_user
  if name in GPU_CAPABILITY and name not in of_this_machine():
    raise ValueError(f"{name} kernels cannot run here: {GPU_CAPABILITY[name]}")
  _preferred_by_user = name


def chosen() -> dict[str, str]:
  """The implementation that each operation used so far runs as, by the operation's name."""
  return dict(_chosen)


def _log(operation: str, name: str) -> None:
  if _chosen.get(operation) != name:
    _chosen[operation] = name
    logging.getLogger(__name__).info("%s runs as %s.", operation, name)


def choose(
  operation: str,
  implementations: Mapping[str, tuple[Callable[..., Any], Supports]],
  requested: str | None,
  *arguments: Any,
  first: str | None = None,
  **options: Any,
) -> Callable[..., Any]:
  """The function to call: `requested`, else what `prefer` named, else the first of this platform's
  that supports the arguments, `first` before the others where it runs at all.

  Raises ValueError, with the reason, if the implementation asked for does not exist, does not run
  on this machine, or does not support the arguments. A choice is logged once a process.
  """
  if requested is None and _preferred_by_user in implementations:
    requested = _preferred_by_user
  if requested is not None and requested not in implementations:
    raise ValueError(
      f"{operation} has no implementation {requested!r}; use one of {', '.join(implementations)}."
    )
  if requested in GPU_CAPABILITY and requested not in of_this_machine():
    raise ValueError(f"{operation} cannot run as {requested}: {GPU_CAPABILITY[requested]}")
  for name in (requested,) if requested else sorted(of_this_machine(), key=lambda n: n != first):
    if name not in implementations:
      continue
    function, supports = implementations[name]
    reason = supports(*arguments, **options)
    if reason is None:
      _log(operation, name)
      return function
    if requested:
      raise ValueError(f"{operation} cannot run as {requested}: {reason}")
  raise ValueError(f"{operation} has no implementation for these arguments.")
