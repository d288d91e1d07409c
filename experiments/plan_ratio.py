"""Vertical over horizontal, and on a stated machine how that ratio moves with what it rests on."""

import dataclasses
from typing import Any

from experiments import hardware
from experiments.plan_check import Setting
from experiments.plan_costs import elements, profile_of, workspace
from models.config import ModelConfig
from offload.programs import Shape
from schedules import published
from schedules.placement import smallest
from schedules.planner import Plan
from schedules.pools import Sizes
from schedules.steps import Kind, Tier, Work


def compare(setting: Setting, plans: dict[str, Plan]) -> dict[str, Any]:
  """The ratio of throughputs, and with a stated machine what moves it: ours, and by the published
  systems' own costs."""
  rates = {name: plan.micro_batches_per_second for name, plan in plans.items()}
  out: dict[str, Any] = {"vertical_over_horizontal": rates["vertical"] / rates["horizontal"]}
  if setting.machine is None:
    return out
  count = plans["vertical"].work.micro_batches
  rows = {
    name: _ratios(setting, count, change) for name, change in _changes(setting, count).items()
  }
  return out | {"sensitivity": rows}


@dataclasses.dataclass(frozen=True)
class Change:
  """Factors on a machine's rates, sequences of a micro-batch, and the baseline's gradient bytes."""

  sequences: int = 0  # 0: as asked for
  link: float = 1.0
  ssd: float = 1.0
  flops: float = 1.0
  gradient_bytes: int = 0  # 0: 2 in the published baseline, 4 in ours
  fills_device: bool = True  # ours only: the device's memory is used for deeper rings


def _changes(setting: Setting, micro_batches: int) -> dict[str, Change]:
  """One assumption at a time; other micro-batches only where whole ones make as many tokens."""
  b = setting.shape.sequences
  out = {"as assumed": Change()}
  for n in sorted({max(b // 2, 1), b + 1, 2 * b} - {b}):
    if micro_batches * b % n:
      continue
    out[f"{n} sequence{'s' * (n > 1)} a micro-batch, as many tokens"] = Change(sequences=n)
  out |= {f"link x {f}": Change(link=f) for f in (0.5, 1.5, 2.0)}
  out |= {f"SSD x {f}": Change(ssd=f) for f in (0.5, 2.0)}
  out |= {f"compute x {f}": Change(flops=f) for f in (0.8, 1.2)}
  out["device memory left unused"] = Change(fills_device=False)
  return out | {f"{n}-byte gradients in both": Change(gradient_bytes=n) for n in (2, 4)}


def _ratios(setting: Setting, micro_batches: int, change: Change) -> dict[str, float | None]:
  """Vertical over horizontal at as many tokens, under changed assumptions; None: does not fit."""
  machine, config = setting.machine, setting.config
  assert machine is not None
  shape = dataclasses.replace(setting.shape, sequences=change.sequences or setting.shape.sequences)
  count = micro_batches * setting.shape.sequences // shape.sequences
  machine = dataclasses.replace(
    machine,
    flops=machine.flops * change.flops,
    **{name: getattr(machine, name) * change.link for name in ("host_to_device", "device_to_host")},
    **{name: getattr(machine, name) * change.ssd for name in ("ssd_read", "ssd_write")},
  )
  sizes = _resized(setting, shape, change.gradient_bytes or 4)
  planner = dataclasses.replace(
    setting.planner(profile_of(machine, config, shape, sizes)),
    sizes=sizes,
    device_reserved=workspace(config, shape),
  )
  if not change.fills_device:
    work = Work(config.layers, count, tuple(sizes.elements))
    least = smallest(sizes, work, setting.master_is_parameter).peak_bytes(work)[Tier.DEVICE]
    room = {**setting.budgets, Tier.DEVICE: least + planner.device_reserved}
    planner = dataclasses.replace(planner, budgets=room)
  host = float(setting.budgets[Tier.HOST] or machine.host_memory)
  theirs = _published_ratio(config, elements(sizes), shape, count, machine, host, change)
  try:
    horizontal = planner.plan(setting.schedules["horizontal"], count, 0.0)
    vertical = planner.plan(setting.schedules["vertical"], count, setting.fractions["vertical"])
  except ValueError:
    return {"ours": None, "published": theirs}
  ours = horizontal.prediction.seconds / vertical.prediction.seconds
  return {"ours": ours, "published": theirs}


def _published_ratio(
  config: ModelConfig,
  elements: int,
  shape: Shape,
  micro_batches: int,
  machine: hardware.Hardware,
  host_memory: float,
  change: Change,
) -> float | None:
  model = published.Training(
    *(config.layers, config.width, float(config.layers * elements)),
    *(shape.sequences * shape.tokens, shape.tokens, micro_batches),
  )
  rates = published.Rates(
    *(machine.flops, machine.host_to_device, machine.ssd_read, machine.ssd_write),
    *(machine.update, host_memory),
  )
  horizontal = published.horizontal_seconds(model, rates, change.gradient_bytes or 2)
  vertical = published.vertical_seconds(model, rates, change.gradient_bytes or 4)
  return horizontal / vertical if horizontal and vertical else None


def _resized(setting: Setting, shape: Shape, gradient_bytes: int) -> Sizes:
  """Sizes with other micro-batches, and with gradients of another width."""
  sizes, kinds = setting.sizes, (Kind.BOUNDARY, Kind.BOUNDARY_GRADIENT)
  scaled = {k: sizes.whole[k] // setting.shape.sequences * shape.sequences for k in kinds}
  widths = {**sizes.widths, Kind.GRADIENTS: gradient_bytes}
  gradients = sizes.payload[Kind.GRADIENTS] // sizes.widths[Kind.GRADIENTS] * gradient_bytes
  return dataclasses.replace(
    sizes,
    widths=widths,
    whole={**sizes.whole, **scaled},
    payload={**sizes.payload, **scaled, Kind.GRADIENTS: gradients},
  )
