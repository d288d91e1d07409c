"""Which entries of the cache drafts attend to. `SELECTORS` is the whole list of names."""

import importlib
from collections.abc import Callable

from models.decoding.selectors.base import Observation, Selection, Selector
from models.decoding.selectors.budget import Budget
from models.decoding.selectors.full import Full, full
from models.decoding.selectors.scored import Scored, specattn
from models.decoding.selectors.window import Window

SELECTORS: dict[str, Callable[..., Selector]] = {
  "specattn": specattn,
  "window": Window,
  "full": full,
}


def make_selector(name: str, budget: Budget, page_size: int = 1) -> Selector:
  """A selector by its name or by a dotted path, `my_module.MySelector`.

  Raises:
    ValueError: no such name, or nothing at the path; one sentence.
  """
  if "." not in name:
    if name not in SELECTORS:
      raise ValueError(
        f"There is no selector {name!r}; choose among {', '.join(sorted(SELECTORS))}, or give a"
        " dotted path such as my_module.MySelector."
      )
    return SELECTORS[name](budget=budget, page_size=page_size)
  module, _, attribute = name.rpartition(".")
  try:
    made = getattr(importlib.import_module(module), attribute)(budget=budget, page_size=page_size)
    hash(made)  # a compiled program is made for it
  except Exception as error:  # anybody's code
    raise ValueError(f"There is no selector at {name!r}: {error}.") from error
  if not isinstance(made, Selector):
    raise ValueError(f"{name!r} makes a {type(made).__name__}, which is no selector.")
  return made


__all__ = [
  "SELECTORS",
  "Budget",
  "Full",
  "Observation",
  "Scored",
  "Selection",
  "Selector",
  "Window",
  "full",
  "make_selector",
  "specattn",
]
