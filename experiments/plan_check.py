"""What is to be planned: the model's sizes, the machine, its room, and the orders, each checked."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from absl import flags

from experiments import hardware, program, training_flags
from experiments.plan_costs import profile_of, workspace
from experiments.run_log import check_workdir
from models.config import PRESETS, ModelConfig
from models.transformer import Transformer
from offload import optimizers
from offload.layout import Layout
from offload.programs import Shape
from offload.sizes import sizes_of
from offload.verdict import UNSCALED, check_whole_step
from schedules import registry
from schedules.check import ScheduleError, check_schedule
from schedules.placement import Budgets
from schedules.planner import Planner
from schedules.pools import Sizes
from schedules.registry import Schedule
from schedules.simulate import Profile
from schedules.steps import Part, Tier, Work
from schedules.whole_step import with_whole_step

FLAGS = flags.FLAGS


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
  dtype: jnp.dtype  # of parameters
  workdir: pathlib.Path

  @property
  def master_is_parameter(self) -> bool:
    return self.dtype == jnp.float32

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
  dtype = _dtype()
  sizes = _sizes(config, shape, dtype)
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
    *(dtype, workdir),
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


def _sizes(config: ModelConfig, shape: Shape, dtype: jnp.dtype) -> Sizes:
  model = Transformer(config, dtype)
  layout = Layout.of(jax.eval_shape(model.init_unit, jax.random.key(0)))
  rule = optimizers.make(FLAGS.optimizer, 1e-3, FLAGS.weight_decay).decayed
  state = jax.eval_shape(rule.init, jax.ShapeDtypeStruct((8,), jnp.float32))
  vectors = sum(leaf.shape == (8,) for leaf in jax.tree.leaves(state))
  return sizes_of(model, layout, shape, vectors + (dtype != jnp.float32))


def _dtype() -> jnp.dtype:
  """bfloat16 unless asked for otherwise: what the papers train in."""
  given = FLAGS["parameter_dtype"].present
  return jnp.dtype(FLAGS.parameter_dtype if given else jnp.bfloat16)
