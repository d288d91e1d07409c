"""Times the kernels of decoding on a GPU against its copy bandwidth, and against other libraries.

    python -m experiments.gpu_check.bandwidth

Each call runs many times inside one program, each run's queries being the run before's output, so
that neither a launch nor a lucky overlap is counted. All calls of a setting are timed in turn,
round by round; a figure is the median of rounds. A call that fails says why in its row, and
metrics.jsonl keeps the rows of a run that was ended.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import machine, program, run_log
from experiments.gpu_check import rivals
from pallas_kernels import choice
from pallas_kernels.attention_with_mass.api import IMPLEMENTATIONS, attention_with_mass
from pallas_kernels.page_attention import page_attention

_CONTEXTS = flags.DEFINE_multi_integer("context", [32_768, 131_072], "Entries of the cache.")
_COUNTS = flags.DEFINE_multi_integer("rows", [1, 4, 8], "New rows of each sequence.")
_BATCH = flags.DEFINE_integer("batch", 4, "Sequences.", lower_bound=1)
_KV_HEADS = flags.DEFINE_integer("kv_heads", 8, "Key/value heads.", lower_bound=1)
_GROUP = flags.DEFINE_integer("group", 4, "Query heads of a key/value head.", lower_bound=1)
_HEAD_SIZE = flags.DEFINE_integer("head_size", 128, "Size of a head.", lower_bound=8)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of queries and cache.")
_RUNS = flags.DEFINE_integer("runs_a_call", 20, "Runs of a kernel in one program.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Times that each program is timed.", lower_bound=1)

PAGE = 64
SHARE = 0.07  # of the entries, that drafts read (vegas' benchmark)

Chained = Callable[[jax.Array], Any]  # queries to something of their shape, first in a tuple


def cache_of(context: int, seed: int) -> tuple[jax.Array, jax.Array]:
  keys = jax.random.split(jax.random.key(seed))
  shape = _BATCH.value, _KV_HEADS.value, context, _HEAD_SIZE.value
  k, v = (jax.random.normal(key, shape, _DTYPE.value) for key in keys)
  return k, v


def queries(count: int, seed: int) -> jax.Array:
  shape = _BATCH.value, _KV_HEADS.value * _GROUP.value, count, _HEAD_SIZE.value
  return jax.random.normal(jax.random.key(seed + 1), shape, _DTYPE.value)


def chain(step: Callable[..., Any], q: jax.Array, *arrays: jax.Array) -> Callable[[], Any]:
  """A compiled call that runs `step(q, *arrays)`, a tuple with the next q first, many times."""

  @jax.jit
  def run(q, *arrays):
    first = jax.eval_shape(step, q, *arrays)
    carry = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    body = lambda _, carry: step(carry[0], *arrays)
    return jax.lax.fori_loop(0, _RUNS.value, body, (q, *carry[1:]))

  return functools.partial(run, q, *arrays)


def seconds(calls: dict[str, Callable[[], Any]]) -> dict[str, float | str]:
  """Median seconds of one run of each call, or the sentence that says why there are none."""
  found: dict[str, Any] = {}
  for name, call in calls.items():
    try:
      jax.block_until_ready(call())
      found[name] = []
    except Exception as error:  # any compiler's or library's
      found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
  for _ in range(_ROUNDS.value):
    for name, times in found.items():
      if isinstance(times, list):
        start = time.perf_counter()
        jax.block_until_ready(calls[name]())
        times.append((time.perf_counter() - start) / _RUNS.value)
  return {k: statistics.median(x) if isinstance(x, list) else x for k, x in found.items()}


def copy_call(seed: int) -> tuple[Callable[[], Any], int]:
  """A copy of the largest cache's keys, and the bytes that it reads and writes."""
  k, _ = cache_of(max(_CONTEXTS.value), seed)
  return chain(lambda x: (x + x.dtype.type(1),), k), 2 * k.nbytes


def full_calls(count: int, context: int, seed: int) -> tuple[dict[str, Callable[[], Any]], int]:
  """Attention of `count` rows over the whole cache, every way there is, and the bytes it reads."""
  q, (k, v) = queries(count, seed), cache_of(context, seed)
  lengths = jnp.full((_BATCH.value,), context, jnp.int32)
  calls = {}
  for name in [n for n in choice.of_this_machine() if n in IMPLEMENTATIONS]:
    scored = tuple({0, count - 1})
    options = {"rows": scored, "page_size": PAGE, "implementation": name}
    mass = lambda q, k, v, n, o=options: tuple(attention_with_mass(q, k, v, n, **o))
    calls[f"attention_with_mass, {name}"] = chain(mass, q, k, v, lengths)
  for name, step in rivals.steps(count).items():
    calls[name] = chain(step, q, *(x.swapaxes(1, 2) for x in (k, v)))
  calls |= rivals.torch_calls(q, k, _RUNS.value)
  return calls, k.nbytes + v.nbytes


def page_calls(context: int, seed: int) -> tuple[dict[str, Callable[[], Any]], int]:
  """A draft's row over selected pages and the tail, read in place, and the bytes it must read."""
  q, (k, v) = queries(1, seed), cache_of(context, seed)
  batch, chosen = _BATCH.value, max(int(SHARE * context) // PAGE, 1)
  tail_start = context - PAGE
  pages = jax.random.permutation(jax.random.key(seed + 2), tail_start // PAGE)[:chosen]
  pages = jnp.broadcast_to(jnp.sort(pages).astype(jnp.int32), (batch, 1, chosen))
  ends = [jnp.full((batch,), at, jnp.int32) for at in (context, tail_start)]
  calls = {}
  for name in [n for n in choice.of_this_machine() if n in IMPLEMENTATIONS]:
    options = {"page_size": PAGE, "tail": PAGE, "implementation": name}
    step = lambda q, k, v, n, p, t, o=options: tuple(page_attention(q, k, v, n, p, t, **o))
    calls[f"page_attention, {name}"] = chain(step, q, k, v, ends[0], pages, ends[1])
  return calls, (k.nbytes + v.nbytes) // context * (chosen + 1) * PAGE


def settings(seed: int) -> Iterator[tuple[str, dict[str, Callable[[], Any]], int]]:
  """What is timed together: a title, calls by name, bytes that each must move."""
  for context in _CONTEXTS.value:
    for count in _COUNTS.value:
      yield f"{count} rows, {context:,}", *full_calls(count, context, seed)
    yield f"1 row, {SHARE:.0%} of {context:,}", *page_calls(context, seed)


def check() -> None:
  """Refuses a cache that is no whole number of pages, or too short for a selection."""
  for context in _CONTEXTS.value:
    if context < 4 * PAGE or context % PAGE:
      raise ValueError(f"--context={context} is no multiple of {PAGE}, or below {4 * PAGE}.")
  run_log.check_workdir(program.workdir(), program.name())


def main(_: None) -> None:
  log = run_log.RunLog.start(program.workdir(), program.name())
  seed, rows = flags.FLAGS.seed, []
  copy, copied = copy_call(seed)
  log.metric(machine=machine.describe())
  for title, calls, moved in settings(seed):
    found = seconds({"copy": copy, **calls})  # the copy is timed in every round, as all else
    rate = copied / float(found.pop("copy"))
    for name, took in found.items():
      row = {"setting": title, "name": name, "bytes": moved, "copy_bytes_per_second": rate}
      row |= {"seconds": took} if isinstance(took, float) else {"problem": took}
      log.metric(**row)
      rows.append(row)
  names = ("batch", "kv_heads", "group", "head_size", "dtype", "rounds")
  setting = {name: flags.FLAGS[name].value for name in names}
  log.finish({"flags": setting, "rows": rows}, f"{len(rows)} figures")


if __name__ == "__main__":
  program.run(main, check)
