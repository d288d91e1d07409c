"""The flags that say how to decode, and the method that they make.

A selector's own settings are flags without a default: what is not given stays as the selector's
authors have it, and what is given but is no setting of the selector is refused.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from absl import flags
from absl.testing import flagsaver

from models.decoding.draft_length import LENGTHS
from models.decoding.method import Method
from models.decoding.prefill import CHUNK
from models.decoding.sampling import make_sampler
from models.decoding.selectors import SELECTORS, Budget, make_selector

AUTOREGRESSIVE = "autoregressive"
AUTO = "auto"

METHOD = flags.DEFINE_string(
  "method",
  AUTOREGRESSIVE,
  f"{AUTOREGRESSIVE}, a selector ({', '.join(SELECTORS)}), or a selector's dotted path.",
)
_LONGEST_DRAFT = 64  # tokens: no draft holds that long, and verification's memory grows with it
_MOST = 2**31 - 1  # positions are 32-bit
_MOST_POOLED = _MOST_ROWS = 512  # what memory grows with


class _LengthParser(flags.ArgumentParser):
  """A whole number in a range, or `auto`."""

  syntactic_help = f"{AUTO}, or a whole number"
  numbers = flags.IntegerParser(0, _LONGEST_DRAFT)

  def parse(self, argument: str | int) -> str | int:
    return AUTO if argument == AUTO else self.numbers.parse(argument)


DRAFT_LENGTH = flags.DEFINE(
  _LengthParser(),
  "draft_length",
  6,
  f"Tokens drafted per round, 1 to {_LONGEST_DRAFT}; {AUTOREGRESSIVE} drafts none. {AUTO}: what"
  f" pays best by measured costs and acceptance, of {', '.join(map(str, LENGTHS))}.",
  serializer=flags.ArgumentSerializer(),
)
KV_BUDGET = flags.DEFINE_string(
  "kv_budget",
  "0.07",
  "What drafts attend to: with a decimal point a share of the text, else tokens.",
)
KV_FLOOR = flags.DEFINE_integer(
  "kv_floor",
  256,
  "Least tokens of a budget given as a share.",
  lower_bound=1,
  upper_bound=_MOST,
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 decodes greedily.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Mass of the nucleus to sample from.")
TOP_K = flags.DEFINE_integer(
  "top_k", 0, "Sample from so many likeliest tokens; 0: from all.", upper_bound=_MOST
)
END_TOKEN = flags.DEFINE_integer(
  "end_token", None, "Byte that ends a text.", lower_bound=0, upper_bound=255
)
BIT_EXACT = flags.DEFINE_bool(
  "bit_exact",
  False,
  "One row and one sequence at a time, with the very bits of autoregressive decoding; slower.",
)

_integer, _float, _enum = flags.DEFINE_integer, flags.DEFINE_float, flags.DEFINE_enum
RECENT = flags.DEFINE_string(
  "recent",
  None,
  "Latest tokens that are always selected; with a decimal point a share of the budget.",
)
SETTINGS = (
  _integer("page_size", None, "Cache entries that are selected as one: 1, 2, 4, ..."),
  _integer("dense_layers", None, "So many layers, from the first, attend to everything."),
  _integer("refresh", None, "Rounds that a selection holds for; 0: the whole text.", 0, _MOST),
  _enum("rows", None, ["ends", "all", "first", "last"], "Verification rows that vote."),
  flags.DEFINE_bool("rejected_rows_vote", None, "Whether rows of rejected drafts vote too."),
  _enum("head_sets", None, ["all", "group"], "One selection, or one for each key/value head."),
  _enum("head_aggregation", None, ["mean", "max"], "Over the query heads of a set."),
  _enum("metric", None, ["weight", "logit"], "What is scored."),
  _float("decay", None, "What a verification leaves of earlier scores, 0 to 1."),
  _integer("sink", None, "Tokens at the start that are always selected.", 0, _MOST),
  _integer("smoothing", None, "Entries over which scores are pooled; 1: none.", 1, _MOST_POOLED),
  _enum("smoothing_kind", None, ["mean", "max"], "How they are pooled."),
  flags.DEFINE_bool("charge_tail", None, "Whether the tail counts towards the budget."),
  _float("coverage", None, "Share of the mass that is enough for a layer; the budget is its cap."),
  _integer(
    "prompt_rows", None, "The prompt's last rows that vote for the first selection.", 1, _MOST_ROWS
  ),
)
# What may differ between runs that are to decode the same texts.
OF_A_CASE = (KV_BUDGET, KV_FLOOR, DRAFT_LENGTH, RECENT, *SETTINGS)


def method() -> Method:
  """What the flags ask for; raises ValueError with one sentence."""
  budget = Budget.parse(KV_BUDGET.value, KV_FLOOR.value)
  common: dict[str, Any] = {
    "sampler": make_sampler(TEMPERATURE.value, TOP_P.value, TOP_K.value),
    "end_token": END_TOKEN.value,
    "bit_exact": BIT_EXACT.value,
  }
  if METHOD.value == AUTOREGRESSIVE:
    return Method(**common)
  if DRAFT_LENGTH.value == 0:
    raise ValueError(
      f"--draft_length={DRAFT_LENGTH.value} drafts nothing; give at least 1, or"
      f" --method={AUTOREGRESSIVE}."
    )
  if METHOD.value not in SELECTORS and "." not in METHOD.value:
    raise ValueError(
      f"--method={METHOD.value} is neither {AUTOREGRESSIVE} nor a selector; choose among"
      f" {', '.join(SELECTORS)}, or give a dotted path such as my_module.MySelector."
    )
  selector = make_selector(METHOD.value, budget, **settings())
  if CHUNK % selector.page_size:
    raise ValueError(f"--page_size={selector.page_size} is beyond {CHUNK}; give less.")
  if DRAFT_LENGTH.value == AUTO:
    return Method(selector, max(LENGTHS), draft_lengths=LENGTHS, **common)
  return Method(selector, DRAFT_LENGTH.value, **common)


def method_of_fixed_length() -> Method:
  """What the flags ask for, where rounds must be alike; raises ValueError with one sentence."""
  if DRAFT_LENGTH.value == AUTO:
    raise ValueError(f"--draft_length={AUTO} is no fixed length, as is needed here; give one.")
  return method()


@contextlib.contextmanager
def written(flag: str, words: str) -> Iterator[set[str]]:
  """Within, the flags are as `selector,flag=value,...` sets them; yields the names of those set.

  Raises ValueError, what is raised within included, with one sentence that names `flag`.
  """
  name, *given = words.split(",")
  pairs = (setting.partition("=") for setting in given)
  values = {key: value for key, _, value in pairs}
  known = [own.name for own in OF_A_CASE]
  try:
    if name == AUTOREGRESSIVE:
      raise ValueError("It drafts nothing: name a selector.")
    for key in values:
      if key not in known:
        raise ValueError(f"{key} is none of {', '.join(known)}.")
    with flagsaver.as_parsed(method=name, **values):
      yield set(values)
  except (ValueError, flags.Error) as error:
    raise ValueError(f"--{flag}={words}: {error}") from error


def settings() -> dict[str, Any]:
  """The selector's settings that were given, by their names."""
  given = {flag.name: flag.value for flag in SETTINGS if flag.value is not None}
  recent = RECENT.value
  if recent is not None:
    if not re.fullmatch(r"\d+|\d*\.\d+|\d+\.\d*", recent):
      raise ValueError(
        f"--recent={recent} is no number: give tokens, or a share of the budget such as 0.5."
      )
    given["recent"] = float(recent) if "." in recent else int(recent)
    if given["recent"] > _MOST:
      raise ValueError(f"--recent={recent} is beyond {_MOST}; give less.")
  return given
