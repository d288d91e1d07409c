"""Which entries of the cache drafts attend to. `SELECTORS` is the whole list of names."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from models.decoding.selectors.base import (
  AnySelector,
  InLayerSelector,
  Observation,
  Selection,
  Selector,
)
from models.decoding.selectors.budget import Budget, Ladder
from models.decoding.selectors.drawn import Random
from models.decoding.selectors.full import Full
from models.decoding.selectors.oracle import Oracle
from models.decoding.selectors.quest import Quest
from models.decoding.selectors.scored import Scored
from models.decoding.selectors.window import Window

SELECTORS: dict[str, Callable[..., AnySelector]] = {
  # SpecAttn, called Vegas in its second version (arXiv 2602.07223).
  "specattn": Scored,
  # PillarAttn of SparseSpec (arXiv 2512.01278). It reads everything in its first round, which here
  # has the prompt's last row to go by.
  "pillar": functools.partial(Scored, rows="all", head_sets="group", charge_tail=True),
  # SnapKV (arXiv 2404.14469), as MagicDec drafts with it: selected once, and then kept.
  "snapkv": functools.partial(
    Scored, prompt_rows=32, recent=32, smoothing=5, head_sets="group", refresh=0
  ),
  # H2O (arXiv 2306.14048): half heavy hitters, half recent. It accumulates over every row of the
  # prompt, and here over its last 32.
  "h2o": functools.partial(
    Scored,
    prompt_rows=32,
    rows="all",
    rejected_rows_vote=False,
    head_sets="group",
    decay=1.0,
    recent=0.5,
  ),
  "quest": functools.partial(Quest, page_size=16, dense_layers=2),
  "window": Window,
  "oracle": Oracle,
  "random": Random,
  "full": Full,
}


def make_selector(name: str, budget: Budget, **settings: Any) -> AnySelector:
  """A selector by its name or by a dotted path, `my_module.MySelector`.

  Args:
    settings: by the names of its fields; what is not given is as the rule's authors have it.

  Raises:
    ValueError: no such name, nothing at the path, or a setting that is not the selector's; one
      sentence.
  """
  if "." in name:
    return _from_outside(name, budget, settings)
  if name not in SELECTORS:
    raise ValueError(
      f"There is no selector {name!r}; choose among {', '.join(sorted(SELECTORS))}, or give a"
      " dotted path such as my_module.MySelector."
    )
  maker = SELECTORS[name]
  known = inspect.signature(maker).parameters
  for setting in settings:
    if setting not in known:
      raise ValueError(f"--{setting} is no setting of the selector {name}: leave it out.")
  return maker(budget=budget, **settings)


def _from_outside(path: str, budget: Budget, settings: dict[str, Any]) -> AnySelector:
  module, _, attribute = path.rpartition(".")
  try:
    made = getattr(importlib.import_module(module), attribute)(budget=budget, **settings)
    hash(made)  # a compiled program is made for it
  except Exception as error:  # anybody's code
    raise ValueError(f"There is no selector at {path!r}: {error}.") from error
  if not isinstance(made, Selector | InLayerSelector):
    raise ValueError(f"{path!r} makes a {type(made).__name__}, which is no selector.")
  return made


__all__ = [
  "SELECTORS",
  "AnySelector",
  "Budget",
  "Full",
  "InLayerSelector",
  "Ladder",
  "Observation",
  "Oracle",
  "Quest",
  "Random",
  "Scored",
  "Selection",
  "Selector",
  "Window",
  "make_selector",
]
