"""How `acceptance` decodes: one prefill for all cases, and budgets side by side in a batch."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models import kv_cache
from models.decoding.generate import Generator, Prompts, pad, sequence_keys
from models.decoding.method import Method
from models.decoding.prefill import prefill
from models.decoding.selectors import Budget, Ladder
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer

_SPAN = 10  # of a ladder, largest budget over smallest: all cost what the largest does
_TOGETHER = 8  # sequences of a batch, about
_RUN, _NEAR = 16, 1000  # bytes


class Case(NamedTuple):
  """A selector with its settings; each part is a method and the budgets that its ladder has."""

  name: str
  parts: list[tuple[Method, tuple[str, ...]]]


def ladders(
  method: Method, budgets: dict[str, Budget], length: int
) -> list[tuple[Method, tuple[str, ...]]]:
  """The method once for each ladder of budgets, ascending; as it is where it takes no budget."""
  selector = method.selector
  if not dataclasses.is_dataclass(selector) or not hasattr(selector, "budget"):
    raise ValueError("Its budgets are varied, so it must be a dataclass with a budget.")
  steps: list[list[str]] = []
  for text in sorted(budgets, key=lambda text: budgets[text].at(length)):
    size = lambda text: budgets[text].at(length)
    if not steps or size(text) > _SPAN * size(steps[-1][0]):
      steps.append([])
    steps[-1].append(text)
  made = []
  for step in steps:
    ladder = Ladder(rungs=tuple(budgets[text] for text in step))
    own = dataclasses.replace(selector, budget=ladder)
    if own.budget != ladder:
      return [(method, ("1.0",))]
    made.append((dataclasses.replace(method, selector=own), tuple(step)))
  return made


@dataclasses.dataclass(frozen=True)
class Cache:
  """Prompts, and a KV cache of all but each one's last token, to be copied from."""

  model: Transformer
  parameters: Parameters
  prompts: Prompts
  kv: KVCache

  @classmethod
  def fill(
    cls, model: Transformer, parameters: Parameters, prompts: list[bytes], slots: int
  ) -> "Cache":
    """Prefills all prompts at once."""
    batch = pad(prompts)
    kv = kv_cache.make(model.config, len(prompts), slots, model.dtype)
    kv = prefill(model, parameters, kv, batch.tokens, batch.lengths)
    return cls(model, parameters, batch, kv)

  def __len__(self) -> int:
    return self.prompts.tokens.shape[0]


def decode(
  filled: Cache, method: Method, rungs: int, wanted: int
) -> tuple[list[list[list[int]]], np.ndarray]:
  """Every prompt with each of a ladder's budgets.

  Returns:
    Texts by rung and prompt, and rounds by accepted drafts, [rungs, prompts, draft length + 1].
  """
  generator = Generator(filled.model, filled.parameters, method)
  keys = sequence_keys(jax.random.key(0), len(filled))
  size = max(n for n in range(1, len(filled) + 1) if len(filled) % n == 0 and n * rungs <= _most(n))
  texts, accepted = [], []
  for first in range(0, len(filled), size):
    rows = jnp.repeat(jnp.arange(first, first + size), rungs)
    prompts, kv, own = jax.tree.map(lambda x, rows=rows: x[rows], (filled.prompts, filled.kv, keys))
    state = generator.advance(generator.start(prompts, kv, own, wanted), wanted)
    texts += generator.texts(state)
    accepted.append(np.asarray(state.acceptances))
  by_rung = np.concatenate(accepted).reshape(len(filled), rungs, -1).swapaxes(0, 1)
  return [texts[rung::rungs] for rung in range(rungs)], by_rung


def _most(prompts: int) -> int:
  """Sequences of a batch of so many prompts: one prompt may have as many budgets as it likes."""
  return _TOGETHER if prompts > 1 else 2**31


def copied_share(prompt: bytes, text: bytes) -> float:
  """Share of the text's bytes in runs of 16 or more that stand far back in the prompt.

  Far back: ending 1,000 bytes or more before the prompt's end.
  """
  far = prompt[: max(len(prompt) - _NEAR, 0)]
  copied = np.zeros(len(text), bool)
  for start in range(len(text) - _RUN + 1):
    if text[start : start + _RUN] in far:
      copied[start : start + _RUN] = True
  return float(copied.mean()) if text else 0.0
