"""Plans a training run on a machine: its micro-batches, delayed fraction, placement and costs.

    python -m experiments.plan --model=gpt-65b --hardware=a100-paper --micro_batches=60 \
        --micro_batch_size=2 --sequence_length=2048 --workdir=runs/plan

Takes train's flags. The hardware is a profile's name, a file, or `measure`, which probes this
machine. Without --micro_batches it plans them too and prints the curve over their number. Both
schedules are planned, each at its own best placement. No parameter is ever made.

Writes flags.txt and summary.json; with --dry_run nothing, but what `measure` writes meanwhile.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import hardware, plan_report, program, training_flags
from experiments.plan_costs import elements, profile_of, workspace
from experiments.run_log import RunLog, check_workdir
from models.config import PRESETS, ModelConfig
from models.transformer import Transformer
from offload import optimizers
from offload.buffers import recycle_freed
from offload.layout import Layout
from offload.programs import Shape
from offload.sizes import sizes_of
from offload.verdict import UNSCALED, check_whole_step
from schedules import published, registry
from schedules.check import ScheduleError, check_schedule
from schedules.placement import Budgets, smallest
from schedules.planner import Plan, Planner
from schedules.pools import Sizes
from schedules.registry import Schedule
from schedules.simulate import Profile
from schedules.steps import Kind, Part, Tier, Work
from schedules.whole_step import with_whole_step

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)
flags.DEFINE_string(
  "hardware", "measure", f"A profile ({', '.join(hardware.names())}), its file, or measure."
)


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is to be planned, and where."""

  config: ModelConfig
  shape: Shape
  sizes: Sizes
  budgets: Budgets
  machine: hardware.Hardware | None  # None where this machine is measured
  profile: Profile | None
  reserved: int
  schedules: dict[str, Schedule]
  fractions: dict[str, float | None]  # delayed; None: the best is planned
  master_is_parameter: bool
  workdir: pathlib.Path

  @property
  def tokens(self) -> int:
    """Of a micro-batch."""
    return self.shape.sequences * self.shape.tokens

  def planner(self, profile: Profile) -> Planner:
    return Planner(
      *(self.config.layers, self.sizes, self.budgets, profile),
      *(self.master_is_parameter, self.reserved),
    )


def check() -> Setting:
  """Refuses mistakes in the flags."""
  config = PRESETS[FLAGS.model]
  if config.context < FLAGS.sequence_length:
    raise ValueError(
      f"--sequence_length={FLAGS.sequence_length} exceeds the context of {config.context} that "
      f"--model={FLAGS.model} has."
    )
  _check_delay()
  measured = FLAGS.hardware == "measure"
  machine = None if measured else hardware.load(FLAGS.hardware)
  schedules = {"vertical": registry.find("vertical"), "horizontal": registry.find("horizontal")}
  schedules.setdefault(FLAGS.schedule, registry.find(FLAGS.schedule))
  shape = Shape(FLAGS.micro_batch_size, FLAGS.sequence_length)
  sizes = _sizes(config, shape)
  fractions = {name: _fraction(name, s, config.layers, sizes) for name, s in schedules.items()}
  if machine is None:
    from offload.budget import budgets  # looks for a device

    room, profile, reserved = dict(budgets(None, None)), None, 0
    room[Tier.SSD] = program.disk_room(training_flags.store())
  else:
    room, reserved = machine.budgets, workspace(config, shape)
    profile = profile_of(machine, config, shape, sizes)
  room = dict(room)
  if FLAGS.host_memory_budget is not None:
    room[Tier.HOST] = FLAGS.host_memory_budget
  if FLAGS.device_memory_budget is not None:
    room[Tier.DEVICE] = FLAGS.device_memory_budget
  workdir = pathlib.Path(program.workdir())
  if not FLAGS.dry_run:
    check_workdir(workdir, "plan")
  return Setting(
    *(config, shape, sizes, room, machine, profile, reserved, schedules, fractions),
    *(_dtype() == jnp.float32, workdir),
  )


def _check_delay() -> None:
  """Refuses a share that is none, and one for an order that is only planned without."""
  delayed = FLAGS.delayed_fraction
  if not 0 <= delayed <= 1:
    raise ValueError(f"--delayed_fraction={delayed} must be in [0, 1].")
  if delayed and FLAGS.schedule == "horizontal":
    raise ValueError(
      f"--delayed_fraction={delayed} is not planned for --schedule=horizontal, whose one step comes"
      " after all passes: leave it out, or plan --schedule=vertical."
    )


def _fraction(name: str, schedule: Schedule, units: int, sizes: Sizes) -> float | None:
  """The delayed fraction that an order is planned with; None: the best.

  Raises:
    ScheduleError: the order would train wrongly.
    ValueError: a step is to be decided on as a whole, and with the fraction given it cannot be.
  """
  scale = training_flags.loss_scale()
  if name == "horizontal":
    check_whole_step(FLAGS.clip_norm, scale, True)
    return 0.0  # delay pays by balancing two passes; this order has one step after all of them
  counts = (FLAGS.micro_batches,) if FLAGS["micro_batches"].present else (1, 2, 3)
  given = FLAGS.delayed_fraction if FLAGS["delayed_fraction"].present else None
  ordered = lambda *parts: _ordered(schedule, [Work(units, count, parts) for count in counts])
  needs_whole = bool(FLAGS.clip_norm) or scale != UNSCALED
  if given is not None:
    whole = ordered(*sizes.delaying(given).parts).whole_step
    if name == FLAGS.schedule:
      check_whole_step(FLAGS.clip_norm, scale, whole)
    if whole or not needs_whole:
      return given  # otherwise vertical is only compared with, at a fraction that it can take
  whole = ordered(Part.NOW).whole_step
  if needs_whole and not whole:
    check_whole_step(FLAGS.clip_norm, scale, ordered(Part.DELAYED).whole_step)
    return 1.0
  try:
    ordered(Part.NOW, Part.DELAYED)
  except ScheduleError:
    return 0.0  # an order that knows of no delay
  return None


def _ordered(schedule: Schedule, works: list[Work]) -> Work:
  """The last of them, and whether its steps are whole; raises ScheduleError."""
  for work in works:
    check_schedule(schedule, work)
  return with_whole_step(schedule, works[-1])


def main(setting: Setting) -> None:
  profile = setting.profile
  if profile is None:
    from experiments.measure import measure  # compiles a unit

    profile, reserved = measure(setting.config, setting.shape, _dtype())
    setting = dataclasses.replace(setting, profile=profile, reserved=reserved)
  with program.mistakes():
    plans = _plans(setting, setting.planner(profile))
  comparison = compare(setting, plans)
  print(plan_report.text(head(setting), plans, comparison, FLAGS.model), flush=True)
  if FLAGS.dry_run:
    return
  log = RunLog.start(setting.workdir, "plan")
  chosen = plans[FLAGS.schedule]
  budget = setting.budgets.get(Tier.DEVICE)
  if budget is None:
    budget = chosen.pools.peak_bytes(chosen.work)[Tier.DEVICE] + setting.reserved
  summary = plan_report.summary(plans, FLAGS.schedule, _run_flags(), budget) | comparison
  log.finish(
    summary | {"hardware": _hardware(setting)},
    f"{FLAGS.schedule} with {chosen.work.micro_batches} micro-batches and delayed fraction "
    f"{chosen.delayed_fraction:.2f}: {chosen.prediction.seconds:,.3g} s an iteration, bound by "
    f"{chosen.prediction.binding}",
  )


def _run_flags() -> dict[str, Any]:
  """Of what is planned, as train takes them."""
  names = ("model", "micro_batch_size", "sequence_length", "optimizer", "clip_norm")
  return {name: FLAGS[name].value for name in names} | {"parameter_dtype": _dtype().name}


def _hardware(setting: Setting) -> dict[str, Any]:
  """Its name and figures, as stated or as measured."""
  if setting.machine is not None:
    return dataclasses.asdict(setting.machine)
  assert setting.profile is not None
  return {"name": "measured", **dataclasses.asdict(setting.profile)}


def head(setting: Setting) -> str:
  """What is planned, and what the figures rest on."""
  shape, machine = setting.shape, setting.machine
  millions = setting.config.layers * elements(setting.sizes) / 1e6
  lines = [
    f"{FLAGS.model}: {setting.config.layers} units, {millions:,.4g} million streamed parameters in "
    f"{_dtype()}, micro-batches of {shape.sequences} x {shape.tokens} tokens, {FLAGS.optimizer}."
  ]
  if machine is None:
    return lines[0] + "\nThis machine, measured."
  lines += [f"Hardware {machine.name}. {machine.about} It rests on:"]
  for name, source in machine.sources.items():
    lines.append(f"  {name:15}{_figure(getattr(machine, name)):>16}  {source}")
  return "\n".join(lines)


def _figure(value: float | bool | None) -> str:
  if value is None or isinstance(value, bool):
    return {None: "-", True: "yes", False: "no"}[value]
  return f"{value:,.4g}"


def _plans(setting: Setting, planner: Planner) -> dict[str, Plan]:
  fixed = FLAGS.micro_batches if FLAGS["micro_batches"].present else None
  return {
    name: planner.plan(schedule, fixed, setting.fractions[name])
    for name, schedule in setting.schedules.items()
  }


def compare(setting: Setting, plans: dict[str, Plan]) -> dict[str, Any]:
  """The ratio of throughputs, and with a stated machine what moves it: ours, and by the published
  systems' own costs."""
  rates = {name: plan.micro_batches_per_second for name, plan in plans.items()}
  out: dict[str, Any] = {"vertical_over_horizontal": rates["vertical"] / rates["horizontal"]}
  if setting.machine is None:
    return out
  count = plans["vertical"].work.micro_batches
  rows = {name: ratios(setting, count, change) for name, change in changes(setting, count).items()}
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


def changes(setting: Setting, micro_batches: int) -> dict[str, Change]:
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


def ratios(setting: Setting, micro_batches: int, change: Change) -> dict[str, float | None]:
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
  sizes = resized(setting, shape, change.gradient_bytes or 4)
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


def resized(setting: Setting, shape: Shape, gradient_bytes: int) -> Sizes:
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


def _sizes(config: ModelConfig, shape: Shape) -> Sizes:
  model = Transformer(config, _dtype())
  layout = Layout.of(jax.eval_shape(model.init_unit, jax.random.key(0)))
  rule = optimizers.make(FLAGS.optimizer, 1e-3, FLAGS.weight_decay).decayed
  state = jax.eval_shape(rule.init, jax.ShapeDtypeStruct((8,), jnp.float32))
  vectors = sum(leaf.shape == (8,) for leaf in jax.tree.leaves(state))
  return sizes_of(model, layout, shape, vectors + (_dtype() != jnp.float32))


def _dtype() -> Any:
  """bfloat16 unless asked for otherwise: what the papers train in."""
  given = FLAGS["parameter_dtype"].present
  return jnp.dtype(FLAGS.parameter_dtype if given else jnp.bfloat16)


if __name__ == "__main__":
  recycle_freed()
  program.run(main, check)
