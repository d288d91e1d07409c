"""Continuous batching: a queue of prompts over a fixed number of places in one batch.

    queue of prompts -> prefill and start, alone -> a place in the batch -> rounds -> text
                                                    ^ free again as soon as its text ends

Orca (Yu et al., OSDI 2022) schedules iterations instead of whole batches; here, rounds. Shapes
never change: a prompt is prefilled and started as a batch of one, by programs that serve every
prompt, and its whole state (its cache, what its selector knows) is copied over what its place held.
So nothing is compiled while the queue is served, no prompt is padded to another's length, and what
a sequence decodes depends on its own prompt and key, not on its place or on who is beside it (but
for rounding; under `--bit_exact` not even so far). The price is a cache for one more sequence.
"""

import collections
import functools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.axes import Key
from models.decoding.draft_length import RoundSeconds
from models.decoding.generate import Generator, pad, sequence_keys
from models.decoding.loop import Round, start
from models.decoding.pacing import Pacer
from models.decoding.prefill import prefill
from models.decoding.round import LoopState
from models.decoding.sampling import SequenceKeys
from models.kv_cache import KVCache

_TO_THE_END = 2**31 - 1  # rounds


class Emission(NamedTuple):
  """What one sequence has gained since it was last looked at.

  Attributes:
    number: its prompt's, in the order of the queue.
    tokens: the new ones.
    drafts, accepted: what the last round drafted, and how many of these stood.
    begin: where that round's tokens begin among `tokens`.
    acceptances: once its text has ended, the sequence's rounds by accepted drafts; else None.
  """

  number: int
  tokens: list[int]
  drafts: list[int]
  accepted: int
  begin: int
  acceptances: list[int] | None


class ContinuousBatch:
  """A batch whose places are filled from a queue.

  Attributes:
    seconds: spent so far on `prefill`, and on `decode`: from each prompt's last token on.
    state: of the batch, as the last round left it; None before the first prompt.
    pacer: advances it; None before it is warmed up.
  """

  def __init__(self, generator: Generator, *, size: int, slots: int, wanted: int):
    """`size` places, each with `slots` slots of cache, for texts of `wanted` tokens."""
    self.generator, self.size, self.slots, self.wanted = generator, size, slots, wanted
    self.pacer: Pacer | None = None
    self.seconds = {"prefill": 0.0, "decode": 0.0}
    self.state: LoopState | None = None
    self._spare: KVCache | None = None  # of one sequence: the next prompt's

  def warm_up(self) -> float:
    """Compiles every program; returns the seconds it took. Only before anything is decoded."""
    clock = time.perf_counter()
    for place in (0, self.size - 1):  # the first place is filled apart
      self._admit(place, [0, 0], sequence_keys(jax.random.key(0), 1))
    seconds = self.generator.round_seconds(self._filled, self.slots, self.wanted)
    self.pace(seconds)
    if seconds is None:
      self._advance(0, np.zeros(self.size, bool))
    self.state = None
    self.seconds = dict.fromkeys(self.seconds, 0.0)
    return time.perf_counter() - clock

  def pace(self, seconds: RoundSeconds | None) -> None:
    """Chooses draft lengths by these seconds, if they are to be chosen; `warm_up` measures them."""
    self.pacer = self.generator.pacer(seconds)

  def decode(
    self, prompts: Sequence[Sequence[int]], key: Key, rounds: int = _TO_THE_END
  ) -> Iterator[Emission]:
    """Decodes the whole queue, first come, first served.

    Args:
      prompts: of at least one token each.
      key: a sequence's own is made of it and of the sequence's number (`sequence_keys`).
      rounds: between two looks from the host: 1 streams every round's tokens; by default a look is
        taken where a text ends.
    """
    if self.pacer is None and self.generator.method.draft_lengths:
      self.warm_up()
    elif self.pacer is None:
      self.pace(None)
    waiting = collections.deque(enumerate(prompts))
    held: dict[int, int] = {}  # numbers by place
    told = [0] * self.size
    while waiting or held:
      for place in range(self.size):
        if waiting and place not in held:
          held[place], prompt = waiting.popleft()
          self._admit(place, prompt, sequence_keys(key, 1, held[place]))
          told[place] = 0
      # With nobody waiting there is no reason to stop where the first text ends.
      watched = np.array([place in held and bool(waiting) for place in range(self.size)])
      last = self._advance(rounds, watched)
      for place, emission in self._look(held, told, last):
        told[place] += len(emission.tokens)
        if emission.acceptances is not None:
          del held[place]
        yield emission

  def _admit(self, place: int, prompt: Sequence[int], keys: SequenceKeys) -> None:
    """Prefills and starts a prompt alone, and gives it its place."""
    generator, alone, clock = self.generator, pad([prompt]), time.perf_counter()
    cache, self._spare = self._spare, None
    if self.size == 1 and self.state is not None:
      cache, self.state = self.state.cache, None
    if cache is None:
      cache = generator.empty_cache(1, self.slots)
    cache = prefill(generator.model, generator.parameters, cache, alone.tokens, alone.lengths)
    jax.block_until_ready(cache)
    self.seconds["prefill"] += time.perf_counter() - clock
    clock = time.perf_counter()
    self._seat(place, generator.start(alone, cache, keys, self.wanted))
    self.seconds["decode"] += time.perf_counter() - clock

  def _seat(self, place: int, one: LoopState) -> None:
    if self.size == 1:
      self.state = one
    else:
      vacant = _vacant(one, self._axes, self.size) if self.state is None else self.state
      self.state = _place(vacant, one, jnp.int32(place), self._axes)
      self._spare = one.cache
    jax.block_until_ready(self.state)

  def _filled(self, context: int) -> LoopState:
    """Every place with so many tokens of nothing, to measure with: the caller may donate it."""
    generator, self.state = self.generator, None
    for place in range(self.size):
      cache = self._spare
      if cache is None:
        cache = generator.empty_cache(1, self.slots)
      keys = sequence_keys(jax.random.key(0), 1)
      lengths = jnp.full(1, context, jnp.int32)  # donated with the cache
      self._seat(
        place, generator.start(pad([[0, 0]]), cache.with_lengths(lengths), keys, self.wanted)
      )
    assert self.state is not None
    filled, self.state = self.state, None
    return filled

  def _advance(self, rounds: int, watched: np.ndarray) -> Round:
    assert self.pacer is not None and self.state is not None
    clock = time.perf_counter()
    self.state, last = self.pacer.advance(self.state, rounds, watched)
    self.seconds["decode"] += time.perf_counter() - clock
    return last

  def _look(self, held: dict[int, int], told: list[int], last: Round) -> list[tuple[int, Emission]]:
    """What each place has to tell, fetched at once."""
    state = self.state
    assert state is not None
    output, emitted, ended, acceptances, last = jax.device_get(
      (state.output, state.emitted, state.ended, state.acceptances, last)
    )
    return [
      (
        place,
        Emission(
          number,
          output[place, told[place] : emitted[place]].tolist(),
          last.drafts[place].tolist(),
          int(last.accepted[place]),
          max(int(last.before[place]) - told[place], 0),
          acceptances[place].tolist() if ended[place] or emitted[place] >= self.wanted else None,
        ),
      )
      for place, number in sorted(held.items())
    ]

  @functools.cached_property
  def _axes(self) -> tuple[int | None, ...]:
    """Which axis of each of the state's arrays counts sequences; None: none does.

    A selector's state may have it anywhere: it is the axis that differs between two batches.
    """
    one, two = map(jax.tree.leaves, (self._shapes(1), self._shapes(2)))
    differ = lambda a, b: [m != n for m, n in zip(a.shape, b.shape, strict=True)]
    found = [differ(a, b) for a, b in zip(one, two, strict=True)]
    return tuple(axes.index(True) if any(axes) else None for axes in found)

  def _shapes(self, size: int) -> LoopState:
    generator = self.generator
    begin = lambda parameters, cache, ends, keys: start(
      *(generator.model, parameters, generator.method, cache, ends, keys), wanted=self.wanted
    )
    keys = jax.eval_shape(lambda: sequence_keys(jax.random.key(0), size))
    cache = jax.eval_shape(lambda: generator.empty_cache(size, self.slots))
    ends = jax.ShapeDtypeStruct((size, generator.method.prompt_rows), np.int32)
    return jax.eval_shape(begin, generator.parameters, cache, ends, keys)


@functools.partial(jax.jit, static_argnames=("axes", "size"))
def _vacant(one: LoopState, axes: tuple[int | None, ...], size: int) -> LoopState:
  """A batch of `size` places that nobody holds, each a copy of `one` that has ended."""
  leaves, tree = jax.tree.flatten(one)
  many = [
    leaf if axis is None else jnp.concatenate([leaf] * size, axis)
    for leaf, axis in zip(leaves, axes, strict=True)
  ]
  state: LoopState = tree.unflatten(many)
  return state._replace(ended=jnp.ones_like(state.ended))


@functools.partial(jax.jit, static_argnames="axes", donate_argnames="state")
def _place(
  state: LoopState, one: LoopState, place: jax.Array, axes: tuple[int | None, ...]
) -> LoopState:
  """`state`, which is donated, with `one` in that place; what no axis divides stays the batch's."""
  leaves, tree = jax.tree.flatten(state)
  put = lambda old, new, axis: (
    old if axis is None else jax.lax.dynamic_update_slice_in_dim(old, new, place, axis)
  )
  return tree.unflatten(list(map(put, leaves, jax.tree.leaves(one), axes)))
