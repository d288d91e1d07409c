"""Prompts in, texts out, and the time that each phase took."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models import kv_cache
from models.axes import Int, Key, Lengths, Tokens
from models.config import ModelConfig
from models.decoding.draft_length import RoundSeconds
from models.decoding.loop import advance, start
from models.decoding.method import Method
from models.decoding.pacing import Pacer, time_rounds
from models.decoding.prefill import CHUNK, prefill
from models.decoding.round import LoopState
from models.decoding.sampling import SequenceKeys
from models.kv_cache import KVCache
from models.transformer import Parameters, Transformer


class Prompts(NamedTuple):
  """Prompts of different lengths, padded behind their ends."""

  tokens: Tokens
  lengths: Lengths

  @property
  def last(self) -> Int[jax.Array, " B"]:
    """Each prompt's last token."""
    return self.ends(1)[:, 0]

  def ends(self, count: int) -> Tokens:
    """Each prompt's last `count` tokens, against the right; in front of shorter ones, any."""
    # On the host, where a new length of prompt compiles nothing.
    at = np.asarray(self.lengths)[:, None] - count + np.arange(count)[None, :]
    return jnp.asarray(np.take_along_axis(np.asarray(self.tokens), np.maximum(at, 0), axis=1))


def pad(prompts: Sequence[Sequence[int]]) -> Prompts:
  """A batch of prompts of at least one token each."""
  width = max(map(len, prompts))
  tokens = np.zeros((len(prompts), width), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[: len(prompt)] = list(prompt)
  lengths = jnp.array([len(prompt) for prompt in prompts], jnp.int32)
  return Prompts(jnp.asarray(tokens), lengths)


def slots_for(config: ModelConfig, method: Method, longest_prompt: int, wanted: int) -> int:
  """Slots of a cache for these prompts; whole chunks, so that prefill never passes its end.

  Raises:
    ValueError: the text would be longer than the model's context, or no layer is left to select
      for.
  """
  if method.selector is not None and method.selector.dense_layers >= config.layers:
    raise ValueError(
      f"--dense_layers={method.selector.dense_layers} leaves none of the model's {config.layers}"
      " layers to select for: give less."
    )
  if longest_prompt + wanted > config.context:
    raise ValueError(
      f"A prompt of {longest_prompt} tokens and --max_new_tokens={wanted} do not fit the model's"
      f" context of {config.context} tokens: shorten one of them."
    )
  slots = kv_cache.slots_for(longest_prompt + wanted, method.spare_slots(wanted), CHUNK)
  # Attention's bits do not depend on the cache's size from two chunks on.
  return max(slots, 2 * CHUNK) if method.bit_exact else slots


@dataclasses.dataclass(frozen=True)
class Generator:
  """A model, its parameters and a method; all that `generate` needs beside the prompts."""

  model: Transformer
  parameters: Parameters
  method: Method

  def empty_cache(self, sequences: int, slots: int) -> KVCache:
    """A new cache that holds nothing."""
    return kv_cache.make(self.model.config, sequences, slots, self.model.dtype)

  def prefill(self, prompts: Prompts, slots: int) -> KVCache:
    """A new cache of all but each prompt's last token."""
    cache = self.empty_cache(prompts.tokens.shape[0], slots)
    return prefill(self.model, self.parameters, cache, prompts.tokens, prompts.lengths)

  def start(self, prompts: Prompts, cache: KVCache, keys: SequenceKeys, wanted: int) -> LoopState:
    """See `loop.start`; the cache is donated."""
    ends = prompts.ends(self.method.prompt_rows)
    return start(self.model, self.parameters, self.method, cache, ends, keys, wanted=wanted)

  def advance(self, state: LoopState, until: int) -> LoopState:
    """See `loop.advance`; the state is donated. Only where there is one draft length."""
    return advance(self.model, self.parameters, self.method, state, jnp.int32(until))

  def pacer(self, seconds: RoundSeconds | None) -> Pacer:
    """Of one batch; `seconds` as `round_seconds` returns them."""
    return Pacer(self.model, self.parameters, self.method, seconds)

  def finish(
    self, state: LoopState, wanted: int, seconds: RoundSeconds | None
  ) -> tuple[LoopState, dict[int, list[int]]]:
    """All that is wanted, and `Pacer.tallies`; the state is donated."""
    if seconds is None:
      return self.advance(state, wanted), {}
    pacer = self.pacer(seconds)
    state, _ = pacer.advance(state, wanted, np.zeros(len(state.ended), bool))
    return state, pacer.tallies

  def round_seconds(
    self, begin: Callable[[int], LoopState], slots: int, wanted: int
  ) -> RoundSeconds | None:
    """See `pacing.time_rounds`; None where there is no draft length to choose."""
    if not self.method.draft_lengths:
      return None
    longest = max(1, slots - self.method.spare_slots(wanted) - wanted)
    contexts = (max(1, longest // 8), longest)
    return time_rounds(self.model, self.parameters, self.method, begin, contexts)

  def texts(self, state: LoopState) -> list[list[int]]:
    """The tokens emitted so far, of each sequence."""
    counts = np.asarray(state.emitted)
    return [row[:n].tolist() for row, n in zip(np.asarray(state.output), counts, strict=True)]

  def generate(
    self, prompts: Sequence[Sequence[int]], wanted: int, key: Key | None = None
  ) -> list[list[int]]:
    """`wanted` tokens behind each prompt, or fewer where the end token comes first."""
    slots = slots_for(self.model.config, self.method, max(map(len, prompts)), wanted)
    keys = sequence_keys(jax.random.key(0) if key is None else key, len(prompts))
    size = self.method.together(len(prompts))
    texts = []
    seconds = measure_rounds(self, size, slots=slots, wanted=wanted)
    for first in range(0, len(prompts), size):
      batch = pad(prompts[first : first + size])
      cache = self.prefill(batch, slots)
      state = self.start(batch, cache, keys[first : first + size], wanted)
      state, _ = self.finish(state, wanted, seconds)
      texts += self.texts(state)
    return texts


def sequence_keys(key: Key, count: int, first: int = 0) -> SequenceKeys:
  """A key per sequence, made of its number alone, so that its text does not depend on its batch."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(first, first + count))


class Timing(NamedTuple):
  """A timed batch: its texts, each one's rounds by accepted drafts, the last state, and seconds.

  `tallies` are the last repeat's `Pacer.tallies`, and `rounds` what rounds were measured to take,
  where draft lengths are chosen. `decode` has the seconds of each repeat, from the prompt's last
  token to the last one emitted.
  """

  texts: list[list[int]]
  acceptances: list[list[int]]
  tallies: dict[int, list[int]]
  rounds: RoundSeconds | None
  state: LoopState
  compile: float
  prefill: float
  decode: list[float]


def measure(
  generator: Generator,
  prompts: Prompts,
  keys: SequenceKeys,
  *,
  slots: int,
  wanted: int,
  repeats: int,
) -> Timing:
  """Decodes one batch, once to warm up and then `repeats` times; compilation is timed apart.

  Repeats decode from the same cache, rolled back to the prompts.
  """
  clock = time.perf_counter()
  rounds = compile_all(generator, prompts, keys, slots=slots, wanted=wanted)
  compile_seconds = time.perf_counter() - clock
  clock = time.perf_counter()
  cache = jax.block_until_ready(generator.prefill(prompts, slots))
  prefill_seconds = time.perf_counter() - clock
  seconds = []
  runs = _decode_repeatedly(generator, prompts, cache, keys, wanted, 1 + repeats, rounds, seconds)
  for state, tally in runs:
    last, tallies = state, tally
  return Timing(
    texts=generator.texts(last),
    acceptances=np.asarray(last.acceptances).tolist(),
    tallies=tallies,
    rounds=rounds,
    state=last,
    compile=compile_seconds,
    prefill=prefill_seconds,
    decode=seconds[1:],
  )


def _decode_repeatedly(
  generator, prompts, cache, keys, wanted, times, rounds, seconds
) -> Iterator[tuple[LoopState, dict[int, list[int]]]]:
  for _ in range(times):
    clock = time.perf_counter()
    state = generator.start(prompts, cache, keys, wanted)
    state, tallies = jax.block_until_ready(generator.finish(state, wanted, rounds))
    seconds.append(time.perf_counter() - clock)
    cache = state.cache.with_lengths(prompts.lengths - 1)
    yield state, tallies


def compile_all(
  generator: Generator, prompts: Prompts, keys: SequenceKeys, *, slots: int, wanted: int
) -> RoundSeconds | None:
  """Compiles the programs by running one chunk, the start and no round; see `measure_rounds`."""
  size = prompts.tokens.shape[0]
  short = pad([[0, 0]] * size)
  state = generator.start(short, generator.prefill(short, slots), keys, wanted)
  if not generator.method.draft_lengths:
    jax.block_until_ready(generator.advance(state, 0))
  del state
  return measure_rounds(generator, size, slots=slots, wanted=wanted)


def measure_rounds(
  generator: Generator, size: int, *, slots: int, wanted: int
) -> RoundSeconds | None:
  """What rounds of `size` sequences take, over caches of nothing; None of one draft length."""
  short, keys = pad([[0, 0]] * size), sequence_keys(jax.random.key(0), size)

  def begin(context: int) -> LoopState:
    lengths = jnp.full(size, context, jnp.int32)
    cache = generator.empty_cache(size, slots).with_lengths(lengths)
    return generator.start(short, cache, keys, wanted)

  return generator.round_seconds(begin, slots, wanted)
