"""What a training run says of itself: its plan before, its counts and times after."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from offload.executor import Span
from offload.result import Result
from offload.streamer import Settings
from schedules.iterations import iterations
from schedules.pools import CUT, Pools
from schedules.residency import derive
from schedules.simulate import Profile, busy_seconds, simulate
from schedules.steps import RESIDENT_UNIT, Kind, Queue, Step, Tier
from schedules.traffic import LINKS, count, of_run, totals

_NAMES = {
  Queue.SSD_READ: "ssd_read",
  Queue.SSD_WRITE: "ssd_written",
  Queue.HOST_TO_DEVICE: "host_to_device",
  Queue.DEVICE_TO_HOST: "device_to_host",
}


def steps_of(settings: Settings, first: int, number: int) -> list[Step]:
  """The derived list of some iterations, from a cold start."""
  batches = iterations(settings.schedule, settings.work, first, number)
  return list(derive(batches, settings.work, settings.pools))


def describe(settings: Settings, number: int) -> str:
  """The run's plan in a few lines: homes, buffers, bytes."""
  work, pools = settings.work, settings.pools
  peaks = pools.peak_bytes(work)
  steady = [s for s in steps_of(settings, 0, 3) if s.iteration == 1]
  homes = ", ".join(f"{kind} on {where}" for kind, where in homes_of(pools).items())
  moved = _by_link(totals(count(steady, pools)))
  lines = [
    f"{number} iterations of {work.micro_batches} micro-batches over {work.units} units, "
    f"{len(steady)} steps each.",
    f"Homes: {homes}"
    + (f"; {pools.spilled} micro-batches' boundaries spill" * bool(pools.spilled)),
    "Buffers: " + ", ".join(f"{_bytes(peaks[tier])} on {tier}" for tier in Tier) + ".",
    "Bytes an iteration: " + ", ".join(f"{name} {_bytes(n)}" for name, n in moved.items()) + ".",
    "Gradients are summed, and steps taken, in float32; a step that is not finite "
    + ("is skipped." if work.whole_step else "ends the run."),
  ]
  return "\n".join(lines)


def homes_of(pools: Pools) -> dict[str, str]:
  """Where each kind is at home, in words: one tier, or the host's share and the rest on SSD."""
  homes = {str(kind): str(tier) for kind, tier in pools.homes.items()}
  for kind in CUT:
    vector = pools.vectors[kind]
    share = sum(n for s, n in vector.items() if s.home is Tier.HOST) / sum(vector.values())
    homes[kind] = {0.0: "ssd", 1.0: "host"}.get(share, f"host ({share:.0%}) and ssd")
  return homes


def summary(
  settings: Settings,
  profile: Profile,
  result: Result,
  peaks: dict[str, int],
  tokens: int,
) -> dict[str, Any]:
  """The fields of train's summary.json that the run itself knows.

  `peaks` has the bytes made on host and SSD, and on the device those beside the pools; `tokens` are
  those of an iteration.
  """
  work = settings.work
  predicted = of_run(settings.schedule, work, settings.pools, len(result.losses))
  device = settings.pools.peak_bytes(work)[Tier.DEVICE] + peaks["device"]
  seconds, bound = predicted_seconds(settings, profile)
  return {
    "losses": result.losses,
    "seconds_per_iteration": result.seconds,
    "skipped_steps": result.skipped,
    "accumulation_dtype": "float32",
    "tokens_per_second": tokens * len(result.seconds) / sum(result.seconds),
    "bytes": _by_link({link: sum(result.moved[link].values()) for link in LINKS}),
    "predicted_bytes": _by_link(totals(predicted)),
    "bytes_by_kind": {_NAMES[link]: dict(kinds) for link, kinds in result.moved.items()},
    "predicted_seconds_per_iteration": seconds,
    "bound_seconds_per_iteration": bound,
    "peak_bytes": {**peaks, "device": device},
    "optimizer_state_bytes": settings.pools.sizes.bytes(Kind.STATES) * work.units,
    "homes": homes_of(settings.pools),
    "busy_seconds": {str(queue): seconds for queue, seconds in result.busy.items()},
    "profile": dataclasses.asdict(profile),
  }


def predicted_seconds(settings: Settings, profile: Profile) -> tuple[float, float]:
  """Seconds of a steady iteration, simulated, and of its busiest queue alone."""
  work = settings.work
  steps = steps_of(settings, 0, 4)
  ends = [
    span.stop
    for span in simulate(steps, profile, work, settings.pools)
    if span.step.computation is not None and span.step.computation.unit == RESIDENT_UNIT
  ]
  busy = busy_seconds((s for s in steps if s.iteration == 1), profile, work, settings.pools)
  return ends[2] - ends[1], max(busy.values())


def queues_table(summary: dict[str, Any]) -> str:
  """Busy and waiting seconds of each queue, the bottleneck marked."""
  total = sum(summary["seconds_per_iteration"])
  busy = summary["busy_seconds"]
  rows = [
    f"  {queue:15}{seconds:9.2f} s busy{total - seconds:9.2f} s waiting"
    + ("   <- bottleneck" if seconds == max(busy.values()) else "")
    for queue, seconds in busy.items()
  ]
  predicted = summary["predicted_seconds_per_iteration"]
  median = float(np.median(summary["seconds_per_iteration"]))
  head = (
    f"Median iteration {median:.3f} s; predicted {predicted:.3f} s, "
    f"bound {summary['bound_seconds_per_iteration']:.3f} s. Over all {total:.1f} s:"
  )
  return "\n".join([head, *rows])


def write_timeline(path: pathlib.Path, spans: list[Span]) -> None:
  """A Chrome trace of the first iterations, one row a queue; Perfetto opens it."""
  rows = {queue: i for i, queue in enumerate(Queue)}
  events: list[dict[str, Any]] = [
    {"name": "thread_name", "ph": "M", "pid": 0, "tid": i, "args": {"name": queue.value}}
    for queue, i in rows.items()
  ]
  events += [
    {
      "name": span.name,
      "cat": span.queue.value,
      "ph": "X",
      "ts": round(span.start * 1e6, 1),
      "dur": round((span.stop - span.start) * 1e6, 1),
      "pid": 0,
      "tid": rows[span.queue],
    }
    for span in spans
  ]
  path.write_text(json.dumps({"traceEvents": events}) + "\n")


def _by_link(moved: dict[Queue, int]) -> dict[str, int]:
  return {name: moved[link] for link, name in _NAMES.items()}


def _bytes(count: float) -> str:
  """Three digits or so and the unit that fits."""
  for unit in ("bytes", "KiB", "MiB", "GiB"):
    if count < 1024:
      return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
    count /= 1024
  return f"{count:.3g} TiB"
