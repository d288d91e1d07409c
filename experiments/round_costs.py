"""Times rounds of a large model's shape: what speculation would gain where the cache is large.

    python -m experiments.round_costs --model=qwen3-4b --context=100000     # on a GPU

Nothing is trained and no prompt is run: weights and cache are noise, for what a round costs depends
on their shapes alone, where a budget is not one of covered mass. What a round yields is measured of
a trained model (`acceptance`), and the table `regime` brings the two together.

All layers of a shape are alike, so rounds are timed at two small depths and the whole model's are
on the line through them. Programs are compiled side by side before the first is timed.

metrics.jsonl begins with the machine, its copy bandwidth and the memory that batches were made for
(the whole model's: what is timed takes less), and gets a line for each program as it was timed: the
seconds of some rounds, and the bytes that a round of the whole model must read.
"""

import concurrent.futures
import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments import decoding_flags, machine, program, run_log
from experiments.decoding_flags import AUTOREGRESSIVE
from models import kv_cache
from models.config import PRESETS, ModelConfig
from models.decoding import roofline
from models.decoding.generate import Generator, sequence_keys, slots_for
from models.decoding.loop import start
from models.decoding.method import Method
from models.decoding.phases import compile_round, time_phases, time_round
from models.decoding.round import LoopState
from models.transformer import Parameters, Transformer

FLAGS = flags.FLAGS

flags.DEFINE_multi_enum("model", ["qwen3-4b", "qwen3-8b"], list(PRESETS), "Shapes; repeatable.")
flags.DEFINE_multi_integer(
  "context", [10_000, 100_000], "Tokens that the cache holds of each sequence; repeatable.", 1
)
flags.DEFINE_integer("batch_size", 0, "Sequences; 0: as many as the memory holds.", lower_bound=0)
program.DEFINE_size(
  "memory", None, "Bytes that the whole model and its cache may fill; the device's unless given."
)
flags.DEFINE_multi_integer("depth", [2, 6], "Two numbers of layers to time at.", 1)
flags.DEFINE_multi_string(
  "methods",
  [
    "specattn,draft_length=6,page_size=16",
    "specattn,draft_length=6",
    "window,draft_length=6",
  ],
  "Methods with their settings; repeatable.",
)
flags.DEFINE_bool("phases", False, "Time the phases of rounds too, at the greater depth.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of weights and cache.")
_WANTED = 64  # tokens of the loop's state, of which none is decoded
_SAFE = 0.95  # of the memory; the rest is for a round's temporary arrays


class Cell(NamedTuple):
  """A shape, a context and a batch size, which are timed together."""

  model: str
  context: int
  batch_size: int


class Plan(NamedTuple):
  """A checked request: `methods` by what they are written as, the autoregressive one first."""

  cells: list[Cell]
  methods: dict[str, Method]


class Round(NamedTuple):
  """A round of one cell and method at one depth, and what compiling it needs."""

  cell: Cell
  method: str
  model: Transformer
  parameters: Any  # abstract
  state: Any  # abstract


def check() -> Plan:
  """Refuses mistakes before anything is written or compiled."""
  run_log.check_workdir(program.workdir(), program.name())
  given = [flag.name for flag in decoding_flags.OF_A_CASE if FLAGS[flag.name].present]
  if given:
    raise ValueError(f"--{given[0]} belongs into --methods, as in specattn,{given[0]}=...")
  depths = sorted(set(FLAGS.depth))
  if len(depths) != 2:
    raise ValueError(f"--depth must be given two different numbers, not {FLAGS.depth}.")
  methods = {AUTOREGRESSIVE: Method()} | {text: _method_of(text) for text in FLAGS.methods}
  cells = [Cell(name, context, 0) for name in FLAGS.model for context in FLAGS.context]
  return Plan([cell._replace(batch_size=_batch_size(cell, methods)) for cell in cells], methods)


def _method_of(text: str) -> Method:
  with decoding_flags.written("methods", text):
    method = decoding_flags.method_of_fixed_length()
    if method.selector is not None and method.selector.dense_layers:
      raise ValueError("Layers must be alike to be timed at two depths: give dense_layers=0.")
    if method.refresh != 1:
      raise ValueError("Rounds must be alike to be timed: select for each (refresh=1).")
    return method


def _batch_size(cell: Cell, methods: dict[str, Method]) -> int:
  """As many sequences as fit beside the weights, with the scratch of the largest budget."""
  if FLAGS.batch_size:
    return FLAGS.batch_size
  config, itemsize = PRESETS[cell.model], jnp.dtype(_DTYPE.value).itemsize
  count = config.layers * config.block_parameters + config.resident_parameters
  selectors = [method.selector for method in methods.values() if method.selector is not None]
  scratch = max((selector.budget.at(cell.context) for selector in selectors), default=0)
  slots = max(_slots(config, cell, method) for method in methods.values())
  memory = _memory()
  held = (_SAFE * memory - count * itemsize) / (config.kv_bytes(itemsize) * (slots + scratch))
  if held < 1:
    raise ValueError(
      f"{memory / 1e9:.3g} GB do not hold {cell.model} and {cell.context:,} tokens: give a"
      " smaller --context, or more --memory to time what a larger device would do."
    )
  return int(held)


def _memory() -> int:
  if FLAGS.memory:
    return FLAGS.memory
  stats = jax.devices()[0].memory_stats() or {}
  if "bytes_limit" not in stats:
    raise ValueError("This device does not say how much memory it has: give --memory.")
  return stats["bytes_limit"]


def _at_depth(config: ModelConfig, cell: Cell, depth: int) -> ModelConfig:
  """The shape with `depth` layers, and positions for the whole context."""
  return dataclasses.replace(config, layers=depth, context=cell.context + _WANTED)


def _slots(config: ModelConfig, cell: Cell, method: Method) -> int:
  config = _at_depth(config, cell, config.layers)
  return slots_for(config, method, cell.context, _WANTED)


def main(plan: Plan) -> None:
  log = run_log.RunLog.start(program.workdir(), program.name())
  log.metric(
    machine=machine.describe(),
    dtype=_DTYPE.value,
    copy_bytes_per_second=_copy_bandwidth(),
    memory=None if FLAGS.batch_size else _memory(),
  )
  clock = time.perf_counter()
  rounds = list(_rounds(plan))
  with concurrent.futures.ThreadPoolExecutor() as pool:
    compiled = [
      pool.submit(compile_round, one.model, one.parameters, plan.methods[one.method], one.state)
      for one in rounds
    ]
  print(f"{len(rounds)} programs compiled in {time.perf_counter() - clock:.0f} s", flush=True)
  done = [
    _tell(one, run, plan.methods[one.method], log)
    for one, run in zip(rounds, compiled, strict=True)
  ]
  log.finish({"timed": sum(done)}, f"{sum(done)} of {len(done)} rounds timed")
  sys.exit(int(not all(done)))


def _tell(one: Round, run: concurrent.futures.Future, method: Method, log: run_log.RunLog) -> bool:
  """Times a program and writes what came of it; whether all that was wanted came."""
  described = _described(one, method)
  try:
    parameters = _noise(one.parameters, jax.random.key(FLAGS.seed), scale=0.02)
    rounds, state = time_round(run.result(), parameters, _state(one))
    log.metric(**described, rounds=rounds)
    if FLAGS.phases and method.draft_length and one.model.config.layers == max(FLAGS.depth):
      # With what the rounds left: the made-up state's selector has seen nothing.
      phases, _ = time_phases(Generator(one.model, parameters, method), state)
      log.metric(**described, phases=phases)
  except Exception as error:  # any compiler's, and too little memory; the others are not lost
    said = (str(error).splitlines() or ["no message"])[0][:160]
    log.metric(**described, problem=f"{type(error).__name__}: {said}")
    return False
  return True


def _described(one: Round, method: Method) -> dict[str, Any]:
  """What is timed, and the bytes that a round of the whole model must read."""
  bound = roofline.of(
    *(PRESETS[one.cell.model], method),
    itemsize=jnp.dtype(_DTYPE.value).itemsize,
    mean_context=one.cell.context,
    batch_size=one.cell.batch_size,
  )
  return {
    **one.cell._asdict(),
    "method": one.method,
    "depth": one.model.config.layers,
    "bytes": bound.bytes_per_round(1.0),
  }


def _rounds(plan: Plan) -> Iterator[Round]:
  for cell, depth in itertools.product(plan.cells, sorted(set(FLAGS.depth))):
    config = _at_depth(PRESETS[cell.model], cell, depth)
    model = Transformer(config, jnp.dtype(_DTYPE.value))
    parameters = jax.eval_shape(model.init, jax.random.key(0))
    for text, method in plan.methods.items():
      yield Round(cell, text, model, parameters, _abstract_state(model, parameters, method, cell))


def _abstract_state(
  model: Transformer, parameters: Parameters, method: Method, cell: Cell
) -> LoopState:
  def begin(parameters):
    slots = _slots(model.config, cell, method)
    cache = kv_cache.make(model.config, cell.batch_size, slots, model.dtype)
    ends = jnp.zeros((cell.batch_size, method.prompt_rows), jnp.int32)
    keys = sequence_keys(jax.random.key(0), cell.batch_size)
    return start(model, parameters, method, cache, ends, keys, wanted=_WANTED)

  return jax.eval_shape(begin, parameters)


def _state(one: Round) -> LoopState:
  """A state of noise, with full caches."""
  key = jax.random.key(FLAGS.seed)
  state = _noise(one.state, key)
  full = jnp.full((one.cell.batch_size,), one.cell.context, jnp.int32)
  keys = sequence_keys(key, one.cell.batch_size)
  return state._replace(cache=state.cache.with_lengths(full), keys=keys)


def _noise(tree: Any, key: jax.Array, scale: float = 1.0) -> Any:
  """An array for every abstract one: of floats, random; of anything else, zeros."""
  leaves, structure = jax.tree.flatten(tree)
  made = []
  for i, leaf in enumerate(leaves):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      of_leaf = jax.random.fold_in(key, i)
      made.append((_normal(of_leaf, leaf.shape, leaf.dtype) * scale).astype(leaf.dtype))
    elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      made.append(None)  # the caller's
    else:
      made.append(jnp.zeros(leaf.shape, leaf.dtype))
  return jax.tree.unflatten(structure, made)


_normal = jax.jit(jax.random.normal, static_argnames=("shape", "dtype"))


def _copy_bandwidth() -> float:
  """Bytes read and written in a second by a copy within the device's memory."""
  x = jnp.ones(2**29 if jax.devices()[0].platform == "gpu" else 2**26, jnp.float32)
  copy = jax.jit(lambda x: x + 1, donate_argnums=0)
  seconds = []
  for _ in range(12):
    clock = time.perf_counter()
    x = copy(x).block_until_ready()
    seconds.append(time.perf_counter() - clock)
  return 2 * x.nbytes / statistics.median(seconds[2:])


if __name__ == "__main__":
  program.run(main, check)
