"""Plans a training run on a machine: its micro-batches, delayed fraction, placement and costs.

    python -m experiments.plan --model=gpt-65b --hardware=a100-paper --micro_batches=60 \
        --micro_batch_size=2 --sequence_length=2048 --workdir=runs/plan

Takes train's flags. The hardware is a profile's name, a file, or `measure`, which probes this
machine. Without --micro_batches it plans them too and prints the curve over their number. Both
schedules are planned, each at its own best placement. No parameter is ever made.

Writes flags.txt and summary.json; with --dry_run nothing, but what `measure` writes meanwhile.
"""

import dataclasses
from typing import Any

from absl import flags

from experiments import hardware, plan_report, program, training_flags
from experiments.plan_check import Setting, check
from experiments.plan_costs import elements
from experiments.plan_ratio import compare
from experiments.run_log import RunLog
from offload.buffers import recycle_freed
from schedules.planner import Plan, Planner
from schedules.steps import Tier

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)
flags.DEFINE_string(
  "hardware", "measure", f"A profile ({', '.join(hardware.names())}), its file, or measure."
)


def main(setting: Setting) -> None:
  profile = setting.profile
  if profile is None:
    from experiments.measure import measure  # compiles a unit

    profile, reserved = measure(setting.config, setting.shape, setting.dtype)
    setting = dataclasses.replace(setting, profile=profile, reserved=reserved)
  with program.mistakes():
    plans = _plans(setting, setting.planner(profile))
  comparison = compare(setting, plans)
  print(plan_report.text(_head(setting), plans, comparison, FLAGS.model), flush=True)
  if FLAGS.dry_run:
    return
  log = RunLog.start(setting.workdir, "plan")
  chosen = plans[FLAGS.schedule]
  budget = setting.budgets.get(Tier.DEVICE)
  if budget is None:
    budget = chosen.pools.peak_bytes(chosen.work)[Tier.DEVICE] + setting.reserved
  summary = plan_report.summary(plans, FLAGS.schedule, _run_flags(setting), budget) | comparison
  log.finish(
    summary | {"hardware": _hardware(setting)},
    f"{FLAGS.schedule} with {chosen.work.micro_batches} micro-batches and delayed fraction "
    f"{chosen.delayed_fraction:.2f}: {chosen.prediction.seconds:,.3g} s an iteration, bound by "
    f"{chosen.prediction.binding}",
  )


def _plans(setting: Setting, planner: Planner) -> dict[str, Plan]:
  fixed = FLAGS.micro_batches if FLAGS["micro_batches"].present else None
  return {
    name: planner.plan(schedule, fixed, setting.fractions[name])
    for name, schedule in setting.schedules.items()
  }


def _run_flags(setting: Setting) -> dict[str, Any]:
  """Of what is planned, as train takes them."""
  names = ("model", "micro_batch_size", "sequence_length", "optimizer", "clip_norm")
  return {name: FLAGS[name].value for name in names} | {"parameter_dtype": setting.dtype.name}


def _hardware(setting: Setting) -> dict[str, Any]:
  """Its name and figures, as stated or as measured."""
  if setting.machine is not None:
    return dataclasses.asdict(setting.machine)
  assert setting.profile is not None
  return {"name": "measured", **dataclasses.asdict(setting.profile)}


def _head(setting: Setting) -> str:
  """What is planned, and what the figures rest on."""
  shape, machine = setting.shape, setting.machine
  millions = setting.config.layers * elements(setting.sizes) / 1e6
  lines = [
    f"{FLAGS.model}: {setting.config.layers} units, {millions:,.4g} million streamed parameters in "
    f"{setting.dtype}, micro-batches of {shape.sequences} x {shape.tokens} tokens, "
    f"{FLAGS.optimizer}."
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


if __name__ == "__main__":
  recycle_freed()
  program.run(main, check)
