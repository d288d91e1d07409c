"""Hardware profiles: what a machine does in a second, and how much memory it has.

A profile is a JSON file: a name, a sentence about it, and figures, each with its value, its status
(measured, stated, assumed) and its source.

    flops            achieved floating-point operations a second, recomputation counted as work
    host_to_device   bytes a second, and device_to_host
    link_shared      whether both directions share that bandwidth
    ssd_read         bytes a second, and ssd_write
    ssd_shared       whether reads and writes take turns
    update           elements a second that the host's optimizer goes through
    host_memory      bytes for buffers, and device_memory
    ssd_capacity     bytes, or null where there is no limit
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

from schedules.placement import Budgets
from schedules.simulate import Profile, Shared
from schedules.steps import Queue, Tier

FOLDER = pathlib.Path(__file__).parent
_LINK = (Queue.HOST_TO_DEVICE, Queue.DEVICE_TO_HOST)
_SSD = (Queue.SSD_READ, Queue.SSD_WRITE)
_RATES = ("flops", "host_to_device", "device_to_host", "ssd_read", "ssd_write", "update")


@dataclasses.dataclass(frozen=True)
class Hardware:
  """A machine's figures; rates are per second."""

  name: str
  about: str
  flops: float
  host_to_device: float
  device_to_host: float
  link_shared: bool
  ssd_read: float
  ssd_write: float
  ssd_shared: bool
  update: float  # elements
  host_memory: int
  device_memory: int
  ssd_capacity: int | None
  sources: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def budgets(self) -> Budgets:
    return {
      Tier.HOST: self.host_memory,
      Tier.DEVICE: self.device_memory,
      Tier.SSD: self.ssd_capacity,
    }

  def profile(
    self, forward_flops: float, last_flops: float, state_bytes_per_element: int
  ) -> Profile:
    """Seconds of a run's computations and transfers.

    `forward_flops` are those of one unit and micro-batch; backward recomputes and takes three times
    as many; `last_flops` are those of the last unit's forward, loss and backward.
    """
    shared = [("link", _LINK)] * self.link_shared + [("ssd", _SSD)] * self.ssd_shared
    rates = {
      Queue.HOST_TO_DEVICE: self.host_to_device,
      Queue.DEVICE_TO_HOST: self.device_to_host,
      Queue.SSD_READ: self.ssd_read,
      Queue.SSD_WRITE: self.ssd_write,
      Queue.HOST_UPDATE: self.update * state_bytes_per_element,
    }
    return Profile(
      *(forward_flops / self.flops, 3 * forward_flops / self.flops, last_flops / self.flops),
      rates,
      tuple(Shared(name, 1.0, dict.fromkeys(queues, 1.0)) for name, queues in shared),
    )


def names() -> list[str]:
  """The profiles that have a name."""
  return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Hardware:
  """A profile by its name, or from a file.

  Raises:
    ValueError: there is none, or a figure is missing or makes no sense.
  """
  path = FOLDER / f"{name}.json" if name in names() else pathlib.Path(name)
  if not path.is_file():
    raise ValueError(
      f"--hardware={name} is no profile: take one of {', '.join(names())}, a file, or measure."
    )
  try:
    return _read(json.loads(path.read_text()))
  except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
    raise ValueError(f"--hardware={name} is no hardware profile: {error}.") from error
  except ValueError as error:
    raise ValueError(f"--hardware={name}: {error}") from error


def _positive(value: Any) -> bool:
  """Whether it is a number above zero, neither infinite nor a boolean."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value) and value > 0


def _read(found: dict[str, Any]) -> Hardware:
  figures = found.get("figures", {})
  known = [f.name for f in dataclasses.fields(Hardware)]
  needed = [name for name in known if name not in ("name", "about", "sources")]
  missing = [name for name in needed if name not in figures or "value" not in figures[name]]
  if missing:
    raise ValueError(f"{', '.join(missing)} missing; a plan never rests on silent defaults.")
  values = {name: figures[name]["value"] for name in needed}
  for name in (*_RATES, "host_memory", "device_memory"):
    if not _positive(values[name]):
      raise ValueError(f"{name}={values[name]} must be a finite number above zero.")
  for name in ("link_shared", "ssd_shared"):
    if not isinstance(values[name], bool):
      raise ValueError(f"{name}={values[name]!r} must be true or false.")
  if values["ssd_capacity"] is not None and not _positive(values["ssd_capacity"]):
    raise ValueError(
      f"ssd_capacity={values['ssd_capacity']!r} must be bytes, or null for no limit."
    )
  sources = {
    name: f"{figures[name].get('status', 'unknown')}: {figures[name].get('source', 'unknown')}"
    for name in needed
  }
  return Hardware(found.get("name", "unnamed"), found.get("about", ""), **values, sources=sources)
