"""Times the attention of decoding against the reading of the cache.

    python -m experiments.tables.kernels

Everything is timed once a round, in an order drawn anew for each, and a ratio is the median over
rounds of two times of one round, so that a machine's moods cancel; its middle half stands beside
it. Below the form in use stand those that lost to it.
"""

import functools
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from experiments import machine, program, run_log
from experiments.tables.table import NOT_MEASURED, Table, number_text, times_text
from pallas_kernels.attention_with_mass import attention_with_mass
from pallas_kernels.gather_pages import gather_pages
from pallas_kernels.selection import page_mass

_SLOTS = flags.DEFINE_integer("slots", 16_384, "Entries of the cache.", lower_bound=1024)
_HEADS = flags.DEFINE_integer("heads", 8, "Query heads.", lower_bound=1)
_KV_HEADS = flags.DEFINE_integer("kv_heads", 8, "Key/value heads.", lower_bound=1)
_HEAD_SIZE = flags.DEFINE_integer("head_size", 64, "Size of a head.", lower_bound=8)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of queries and cache.")
_ROUNDS = flags.DEFINE_integer("rounds", 101, "Times that everything is timed.", lower_bound=1)

SHARE = 0.05  # of the entries, that drafts read
PAGE = 16
DRAFTS = 6  # of a round: they read the same scratch one after the other

# What is timed: (title, over which it is set, the most that the ratio should be, if any). On the
# token form's limit see `_score_share`.
ROWS: dict[str, tuple[str, str, float | None]] = {
  "read": ("read K and V once", "read", None),
  "one row": ("1 row", "read", 1.5),
  "five rows": ("5 rows", "one row", 1.3),
  "seven rows": ("7 rows", "one row", None),
  "page mass": (f"5 rows, mass of 2 by pages of {PAGE}", "five rows", 1.05),
  "token mass": ("5 rows, mass of 2 by tokens, and its mean", "five rows", None),
  "draft": ("1 row over 5% of the entries, gathered", "one row", 0.1),
  "gather tokens": ("gather 5% of the entries, tokens", "one row", None),
  "gather pages": (f"gather 5% of the entries, pages of {PAGE}", "one row", None),
  "plain, one row": ("1 row, one product over the whole cache", "one row", None),
  "plain, five rows": ("5 rows, one product over the whole cache", "five rows", None),
  "by row": ("5 rows, a product each", "five rows", None),
  "by head": ("5 rows, a product a head", "five rows", None),
  "masked values": ("5 rows, one product, masked values", "five rows", None),
}


def plain(q, k, v, lengths, *, mask_values=False):
  """The textbook form: one product over the whole cache."""
  batch, heads, rows, size = q.shape
  slot = jnp.arange(k.shape[2])
  if mask_values:
    v = jnp.where((slot[None] < lengths[:, None])[:, None, :, None], v, 0)
  packed = q.reshape(batch, k.shape[1], heads // k.shape[1] * rows, size)
  logits = jnp.einsum("bkrd,bksd->bkrs", packed, k, preferred_element_type=jnp.float32)
  at = lengths[:, None] - rows + jnp.arange(logits.shape[2])[None] % rows
  visible = (slot[None, None] <= at[..., None])[:, None]
  weights = jax.nn.softmax(jnp.where(visible, logits * size**-0.5, -1e30), axis=-1)
  return jnp.einsum("bkrs,bksd->bkrd", weights.astype(v.dtype), v).reshape(q.shape)


def by_row(q, k, v, lengths):
  """`plain` for one row after the other."""
  rows = q.shape[2]
  each = [plain(q[:, :, t : t + 1], k, v, lengths - rows + 1 + t) for t in range(rows)]
  return jnp.concatenate(each, axis=2)


def by_head(q, k, v, lengths):
  """`plain` for one key/value head after the other."""
  group, heads = q.shape[1] // k.shape[1], range(k.shape[1])
  own = lambda i: (q[:, i * group : (i + 1) * group], k[:, i : i + 1], v[:, i : i + 1])
  return jnp.concatenate([plain(*own(i), lengths) for i in heads], axis=1)


def mean_mass(q, k, v, lengths):
  """Attention whose tokens' scores are written and read again: what SpecAttn's selection takes."""
  found = attention_with_mass(q, k, v, lengths, rows=(0, -1), page_size=1)
  assert found.page_lse is not None
  return found.out, page_mass(found.page_lse, found.lse[:, :, jnp.array([0, -1])])


def timed(seed: int) -> dict[str, Callable[[], Any]]:
  """Each row's compiled call, by its name in ROWS."""
  slots, chosen = _SLOTS.value, int(SHARE * _SLOTS.value) // PAGE * PAGE
  keys = jax.random.split(jax.random.key(seed), 4)
  cache = 1, _KV_HEADS.value, slots, _HEAD_SIZE.value
  k, v = (jax.random.normal(key, cache, _DTYPE.value) for key in keys[:2])
  all_q = jax.random.normal(keys[2], (1, _HEADS.value, 7, _HEAD_SIZE.value), _DTYPE.value)
  q = {rows: all_q[:, :, :rows] for rows in (1, 5, 7)}
  pages = lambda size: jnp.sort(jax.random.permutation(keys[3], slots // size)[: chosen // size])
  tokens, blocks = pages(1)[None, None], pages(PAGE)[None, None]
  full, part = (jnp.array([n], jnp.int32) for n in (slots, chosen))
  call = lambda function, *arguments: functools.partial(jax.jit(function), *arguments)
  mass = lambda page: functools.partial(attention_with_mass, rows=(0, -1), page_size=page)
  both = lambda size: lambda k, v, at: [gather_pages(x, at, page_size=size) for x in (k, v)]
  return {
    "read": call(lambda k, v: k.sum() + v.sum(), k, v),
    "one row": call(attention_with_mass, q[1], k, v, full),
    "five rows": call(attention_with_mass, q[5], k, v, full),
    "seven rows": call(attention_with_mass, q[7], k, v, full),
    "page mass": call(mass(PAGE), q[5], k, v, full),
    "token mass": call(mean_mass, q[5], k, v, full),
    "draft": call(attention_with_mass, q[1], k[:, :, :chosen], v[:, :, :chosen], part),
    "gather tokens": call(both(1), k, v, tokens),
    "gather pages": call(both(PAGE), k, v, blocks),
    "plain, one row": call(plain, q[1], k, v, full),
    "plain, five rows": call(plain, q[5], k, v, full),
    "by row": call(by_row, q[5], k, v, full),
    "by head": call(by_head, q[5], k, v, full),
    "masked values": call(functools.partial(plain, mask_values=True), q[5], k, v, full),
  }


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
  """Milliseconds of each call in each round, behind one round to compile."""
  found, order = {name: [] for name in calls}, random.Random(0)
  for i in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
    for name in order.sample(list(calls), len(calls)):
      times = DRAFTS if name == "draft" else 1
      start = time.perf_counter()
      for _ in range(times):
        jax.block_until_ready(calls[name]())
      if i:
        found[name].append(1e3 * (time.perf_counter() - start) / times)
  return found


_HEADING = {
  "name": "kernels",
  "title": "Attention of decoding: what rows, masses and selections cost",
  "columns": ("what", "milliseconds", "ratio", "middle half", "wanted"),
}


def _unmeasured(runs: Path) -> Table:
  rows = tuple((title, *[NOT_MEASURED] * 3, "") for title, _, _ in ROWS.values())
  how = f"python -m experiments.tables.kernels --workdir={runs / 'kernels'} measures it."
  return Table(rows=rows, notes=(how,), machine="", **_HEADING)


def table(runs: Path) -> Table:
  """The table of the run in `runs/kernels`, if there is one."""
  if not (runs / "kernels" / run_log.SUMMARY_FILE).is_file():
    return _unmeasured(runs)
  summary = run_log.read_summary(runs / "kernels")
  found, setting = summary["milliseconds"], summary["setting"]
  share = _score_share(setting)
  limits = {name: most for name, (_, _, most) in ROWS.items()}
  limits["token mass"] = 1 + 1.5 * 2 * share
  if summary["machine"]["jax"].startswith("0.10."):
    limits["five rows"] = 1.7  # its products of several rows by a matrix are slower
  return Table(
    rows=tuple(_row(name, found, limits[name]) for name in ROWS),
    **_HEADING,
    notes=(
      "One sequence, {slots} entries, {heads} query and {kv_heads} key/value heads of {head_size},"
      " {dtype}; medians of {rounds} rounds.".format(**setting),
      f"A round drafts {DRAFTS} tokens from one scratch: its time is of as many calls in a row.",
      f"Scores of 2 rows by tokens are {share:.1%} of the bytes of K and V to write, and as much"
      " again to read; 1.5 times that is wanted at most.",
    ),
    machine=machine.sentence(summary["machine"]),
  )


def _score_share(setting: dict[str, Any]) -> float:
  """Bytes of two rows' scores of every query head in f32, over those of K and V."""
  cached = 2 * setting["kv_heads"] * setting["head_size"] * jnp.dtype(setting["dtype"]).itemsize
  return 2 * setting["heads"] * 4 / cached


def _row(name: str, found: dict[str, list[float]], most: float | None) -> tuple[str, ...]:
  title, base, _ = ROWS[name]
  ratios = [own / other for own, other in zip(found[name], found[base], strict=True)]
  low, middle, high = (
    statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
  )
  return (
    title,
    number_text(statistics.median(found[name])),
    f"{times_text(middle)} {ROWS[base][0]}",
    f"{low:.2f} to {high:.2f}",
    f"at most {times_text(most)}" if most else "",
  )


def check() -> None:
  """Refuses flags that do not fit one another."""
  if _HEADS.value % _KV_HEADS.value:
    raise ValueError(f"--heads={_HEADS.value} is no multiple of --kv_heads={_KV_HEADS.value}.")
  if _SLOTS.value % PAGE:
    raise ValueError(f"--slots={_SLOTS.value} is no multiple of a page's {PAGE}.")
  run_log.check_workdir(program.workdir(), program.name())


def main(_: None) -> None:
  log = run_log.RunLog.start(program.workdir(), program.name())
  names = ("slots", "heads", "kv_heads", "head_size", "dtype", "rounds")
  setting = {name: flags.FLAGS[name].value for name in names}
  found = measure(timed(flags.FLAGS.seed), _ROUNDS.value)
  log.finish({"setting": setting, "milliseconds": found}, "everything timed")
  print(table(log.workdir.parent).markdown() if log.workdir.name == "kernels" else "")


if __name__ == "__main__":
  program.run(main, check)
