"""What a training run says of itself: its plan before, its counts and times after."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from offload.executor import NOTED, Span
from offload.probe import cores
from offload.result import Result
from offload.streamer import Settings
from schedules.iterations import iterations
from schedules.pools import CUT, Pools
from schedules.residency import derive
from schedules.simulate import Profile, busy_seconds, simulate
from schedules.steps import Action, Kind, Queue, Step, Tier
from schedules.traffic import LINKS, NAMES, Traffic, count, of_run, totals

STEADY = 2  # the iteration that is simulated, and drawn: the first that begins as all later ones do


def steps_of(settings: Settings, first: int, number: int) -> list[Step]:
  """The derived list of some iterations, from a cold start."""
  batches = iterations(settings.schedule, settings.work, first, number)
  return list(derive(batches, settings.work, settings.pools))


def describe(settings: Settings, number: int) -> str:
  """The run's plan in a few lines: homes, buffers, bytes."""
  work, pools = settings.work, settings.pools
  peaks = pools.peak_bytes(work)
  steady = [s for s in steps_of(settings, 0, 3) if s.iteration == 1]
  traffic = count(steady, pools)
  homes = ", ".join(f"{kind} on {where}" for kind, where in homes_of(pools, traffic).items())
  moved = _by_link(totals(traffic))
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


def homes_of(pools: Pools, traffic: Traffic) -> dict[str, str]:
  """Where each kind is at home, in words: one tier, or the host's share and the rest on SSD.

  Boundaries that no link moves are on the device, whose ring they never leave; gradients that are
  applied before they would go to SSD are on the host.
  """
  moved = {kind for kinds in traffic.values() for kind, size in kinds.items() if size}
  tiers = {kind: tier if kind in moved else Tier.DEVICE for kind, tier in pools.homes.items()}
  homes = {str(kind): str(tier) for kind, tier in tiers.items()}
  for kind in CUT:
    vector = pools.vectors[kind]
    stays = lambda s, kind=kind: s.home is Tier.HOST or (kind, s.part) in pools.stays_above
    share = sum(n for s, n in vector.items() if stays(s)) / sum(vector.values())
    homes[kind] = {0.0: "ssd", 1.0: "host"}.get(share, f"host ({share:.0%}) and ssd")
  return homes


def summary(
  settings: Settings,
  profile: Profile,
  result: Result,
  peaks: dict[str, int],
  cpu_seconds: float,
  tokens: int,
) -> dict[str, Any]:
  """The fields of train's summary.json that the run itself knows.

  `peaks` has the bytes made on host and SSD, and on the device those beside the pools; `tokens` are
  those of an iteration; `cpu_seconds` those of all of this process's threads while it trained.
  """
  work = settings.work
  predicted = _predicted(settings, result.stretches)
  device = settings.pools.peak_bytes(work)[Tier.DEVICE] + peaks["device"]
  simulated, resources = _forecast(settings, profile)
  begin, end = window(simulated)
  return {
    "seconds_per_iteration": result.seconds,
    "accumulation_dtype": "float32",
    "tokens_per_second": tokens * len(result.seconds) / max(sum(result.seconds), 1e-9),
    "bytes": _by_link({link: sum(result.moved[link].values()) for link in LINKS}),
    "predicted_bytes": _by_link(totals(predicted)),
    "bytes_by_kind": {NAMES[link]: dict(kinds) for link, kinds in result.moved.items()},
    "predicted_seconds_per_iteration": end - begin,
    "bound_seconds_per_iteration": max(resources.values()),
    "resource_seconds": resources,
    "cpu_seconds": cpu_seconds,
    "cores": cores(),
    "peak_bytes": {**peaks, "device": device},
    "optimizer_state_bytes": settings.pools.sizes.bytes(Kind.STATES) * work.units,
    "homes": homes_of(settings.pools, of_run(settings.schedule, work, settings.pools, 3)),
    "busy_seconds": {str(queue): seconds for queue, seconds in result.busy.items()},
    "profile": dataclasses.asdict(profile),
  }


def _predicted(settings: Settings, stretches: list[int]) -> Traffic:
  """Bytes of a run whose stretches each begin with nothing in flight."""
  work, pools = settings.work, settings.pools
  runs = [of_run(settings.schedule, work, pools, n) for n in stretches]
  return {
    link: {kind: sum(run[link].get(kind, 0) for run in runs) for kind in Kind} for link in LINKS
  }


def _forecast(settings: Settings, profile: Profile) -> tuple[list[Span], dict[str, float]]:
  """The first iterations, simulated; and the seconds of work of each resource in a steady one."""
  work, pools = settings.work, settings.pools
  steps = steps_of(settings, 0, NOTED)
  spans = [
    Span(s.step.queue, str(s.step), s.step.iteration, s.start, s.stop)
    for s in simulate(steps, profile, work, pools)
  ]
  busy = busy_seconds((s for s in steps if s.iteration == STEADY), profile, work, pools)
  return spans, busy


def window(spans: list[Span]) -> tuple[float, float]:
  """Begin and end of a steady iteration of a timeline, or of its last one if it is short.

  An iteration ends when the resident parameters have been updated.
  """
  ends = sorted(s.stop for s in spans if s.name.startswith(f"{Action.UPDATE}(resident"))
  last = min(STEADY, len(ends) - 1)
  return ends[last - 1] if last else min(s.start for s in spans), ends[last]


def queues_table(summary: dict[str, Any]) -> str:
  """Busy and waiting seconds of each queue, and of the cores that they share; the bottleneck.

  A queue that waits for a core counts as busy, so the bottleneck is the resource that has most to
  do by what each step takes alone.
  """
  total = sum(summary["seconds_per_iteration"])
  cores = summary["cpu_seconds"] / summary["cores"]
  busy = summary["busy_seconds"] | {f"{summary['cores']} cores": cores}
  rows = [
    f"  {name:15}{seconds:9.2f} s busy{max(total - seconds, 0.0):9.2f} s waiting"
    for name, seconds in busy.items()
  ]
  predicted = summary["predicted_seconds_per_iteration"]
  median = float(np.median(summary["seconds_per_iteration"]))
  head = f"Median iteration {median:.3f} s, predicted {predicted:.3f} s. Over all {total:.1f} s:"
  resources = sorted(summary["resource_seconds"].items(), key=lambda item: -item[1])
  foot = "  bottleneck: " + ", then ".join(f"{n} ({s:.3f} s)" for n, s in resources[:3])
  return "\n".join([head, *rows, f"{foot} of an iteration, by what each step takes alone."])


def write_timelines(
  folder: pathlib.Path, settings: Settings, profile: Profile, result: Result
) -> None:
  """timeline.json and simulated_timeline.json, Chrome traces of the first iterations for Perfetto;
  timeline.png, a steady iteration of both on one time axis."""
  from experiments.report import gantt  # not above: programs check flags before they pay for it

  panels = []
  timelines = {"timeline": result.spans, "simulated_timeline": _forecast(settings, profile)[0]}
  for name, spans in timelines.items():
    events = _trace(spans)
    (folder / f"{name}.json").write_text(json.dumps({"traceEvents": events}) + "\n")
    begin, end = window(spans)
    how = "simulated" if name.startswith("simulated") else "measured"
    panels.append(gantt.Panel(f"{how}: {end - begin:.3f} s", events, begin, end - begin))
  gantt.gantt(folder / "timeline.png", panels)


def _trace(spans: list[Span]) -> list[dict[str, Any]]:
  """Chrome trace events, one row a queue."""
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
  return events


def _by_link(moved: dict[Queue, int]) -> dict[str, int]:
  return {name: moved[link] for link, name in NAMES.items()}


def _bytes(count: float) -> str:
  """Three digits or so and the unit that fits."""
  for unit in ("bytes", "KiB", "MiB", "GiB"):
    if count < 1024:
      return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
    count /= 1024
  return f"{count:.3g} TiB"
