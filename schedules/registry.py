"""The schedules that have a name, and how to bring one from outside the tree."""

import importlib
from collections.abc import Callable, Iterator
from typing import cast

from schedules.horizontal import horizontal
from schedules.in_memory import in_memory, in_memory_ascending
from schedules.steps import Computation, Work
from schedules.vertical import vertical

Schedule = Callable[[Work], Iterator[Computation]]

SCHEDULES: dict[str, Schedule] = {
  "in_memory": in_memory,
  "in_memory_ascending": in_memory_ascending,
  "horizontal": horizontal,
  "vertical": vertical,
}


def find(name: str) -> Schedule:
  """A schedule by its name in `SCHEDULES`, or by a dotted path such as `my_module.my_schedule`.

  Raises:
    ValueError: there is no such schedule.
  """
  if name in SCHEDULES:
    return SCHEDULES[name]
  module, _, attribute = name.rpartition(".")
  if not module:
    raise ValueError(
      f"--schedule={name} is unknown: take one of {', '.join(SCHEDULES)}, or a dotted path."
    )
  try:
    found = getattr(importlib.import_module(module), attribute)
  except Exception as error:  # importing runs anybody's code
    raise ValueError(
      f"--schedule={name} cannot be imported: {type(error).__name__}: {error}."
    ) from error
  if not callable(found):
    raise ValueError(f"--schedule={name} is no function of Work to computations.")
  return cast(Schedule, found)
