"""What a plan says: the choice, its seconds, bytes and peaks, and the ratio of the schedules."""

from typing import Any

from experiments.train_report import homes_of
from schedules.planner import Plan
from schedules.steps import Tier
from schedules.traffic import NAMES, totals

# GreedySnake (arXiv 2512.17570), abstract: one A100; batch and micro-batch are not published.
PUBLISHED = {"gpt-65b": 1.96, "gpt-175b": 2.53}


def summary(
  plans: dict[str, Plan], chosen: str, run: dict[str, Any], device_budget: int
) -> dict[str, Any]:
  """The fields of plan's summary.json.

  Args:
    run: flags of train that were planned for: the model's, the shape's, the optimizer's.
    device_budget: bytes of the device that were planned with.
  """
  plan = plans[chosen]
  return {
    "schedule": chosen,
    "flags": run | flags_of(chosen, plan, device_budget),
    **_of(plan),
    "schedules": {name: _of(other) for name, other in plans.items()},
  }


def _of(plan: Plan) -> dict[str, Any]:
  prediction, peaks = plan.prediction, plan.pools.peak_bytes(plan.work)
  return {
    "micro_batches": plan.work.micro_batches,
    "delayed_fraction": plan.delayed_fraction,
    "predicted_seconds_per_iteration": prediction.seconds,
    "predicted_busy_seconds": prediction.busy,
    "binding": prediction.binding,
    "predicted_bytes": _bytes_by_link(plan),
    "peak_bytes": {str(tier): peaks[tier] for tier in Tier},
    "homes": homes_of(plan.pools, prediction.traffic),
    "spilled": plan.pools.spilled,
    "rings": {f"{tier}/{kind}": n for (tier, kind), n in plan.pools.rings.items()},
    "curve": [{"micro_batches": m, "seconds": s} for m, s in plan.curve],
  }


def flags_of(schedule: str, plan: Plan, device_budget: int) -> dict[str, Any]:
  """The flags of train that follow from this plan."""
  return {
    "schedule": schedule,
    "micro_batches": plan.work.micro_batches,
    "delayed_fraction": plan.delayed_fraction,
    "host_memory_budget": plan.pools.peak_bytes(plan.work)[Tier.HOST],
    "device_memory_budget": device_budget,
  }


def _bytes_by_link(plan: Plan) -> dict[str, int]:
  moved = totals(plan.prediction.traffic)
  return {name: moved[link] for link, name in NAMES.items()}


def text(head: str, plans: dict[str, Plan], comparison: dict[str, Any], model: str) -> str:
  """The whole report."""
  lines = [head]
  for name, plan in plans.items():
    lines += ["", *_plan_lines(name, plan)]
  ratio = comparison["vertical_over_horizontal"]
  paper = PUBLISHED.get(model)
  lines += ["", f"Vertical over horizontal, each at its own best placement: {ratio:.2f}."]
  if rows := comparison.get("sensitivity"):
    lines += ["", *_sensitivity_lines(rows, paper)]
  return "\n".join(lines)


def _plan_lines(name: str, plan: Plan) -> list[str]:
  prediction, peaks = plan.prediction, plan.pools.peak_bytes(plan.work)
  moved = ", ".join(f"{link} {_size(n)}" for link, n in _bytes_by_link(plan).items())
  where = homes_of(plan.pools, prediction.traffic)
  homes = ", ".join(f"{kind} on {home}" for kind, home in where.items())
  lines = [
    f"{name}: --micro_batches={plan.work.micro_batches} "
    f"--delayed_fraction={plan.delayed_fraction:g}",
    f"  {prediction.seconds:,.4g} s an iteration, bound by {prediction.binding}",
    "  busy: " + ", ".join(f"{q} {s:,.4g} s" for q, s in prediction.busy.items()),
    f"  bytes an iteration: {moved}",
    "  peaks: " + ", ".join(f"{tier} {_size(peaks[tier])}" for tier in Tier),
    f"  homes: {homes}",
  ]
  if not peaks[Tier.SSD]:
    lines.append("  Everything fits in memory: nothing goes to or comes from an SSD.")
  if plan.work.micro_batches == 1:
    lines.append("  With one micro-batch both orders take units alike: they differ in their step.")
  if plan.work.units < 4:
    lines.append("  With fewer than 4 units the ends of each pass take most of the time: measure.")
  if plan.curve:
    lines += ["  micro-batches: micro-batches a minute", *_curve_lines(plan)]
  return lines


def _curve_lines(plan: Plan) -> list[str]:
  best = max(m / s for m, s in plan.curve)
  chosen = plan.work.micro_batches
  shown = [(m, s) for m, s in plan.curve if m <= 8 or m % 4 == 0 or m == chosen]
  return [
    f"  {m:6} {60 * m / s:10.4g}  {'#' * round(40 * m / s / best)}" + "  <- chosen" * (m == chosen)
    for m, s in shown
  ]


def _sensitivity_lines(rows: dict[str, dict[str, float | None]], paper: float | None) -> list[str]:
  """Beside the published systems' own costs, which are a model for prediction only."""
  head = "  vertical : horizontal at as many tokens"
  lines = [
    "What the ratio rests on. 'Ours' are this engine's derived lists: gradients of 4 bytes in both",
    "orders, none spilled as float32, no barriers, device memory filled. 'Published' are the two",
    "systems' own costs: 2-byte gradients and a float32 spill in the baseline, barriers between",
    "phases" + (f"; the paper reports {paper:.2f}." if paper else "."),
    f"{head:50}{'ours':>8}{'published':>11}",
  ]
  for name, row in rows.items():
    cells = [f"{row[k]:.2f}" if row[k] is not None else "no room" for k in ("ours", "published")]
    lines.append(f"  {name:48}{cells[0]:>8}{cells[1]:>11}")
  return lines


def _size(count: float) -> str:
  for unit in ("bytes", "kB", "MB", "GB"):
    if count < 1000:
      return f"{count:.4g} {unit}"
    count /= 1000
  return f"{count:.4g} TB"
