"""Small models in training, under any schedule and placement."""

import copy
import dataclasses
import functools
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.config import ModelConfig
from models.transformer import Transformer
from offload import optimizers
from offload.feed import Batch
from offload.layout import Layout
from offload.programs import Programs, Shape
from offload.result import Result
from offload.sizes import sizes_of
from offload.store import Store
from offload.streamer import Settings, Streamer
from offload.update import Optimizer, Updater
from schedules.iterations import iterations
from schedules.placement import place, smallest
from schedules.pools import CUT, Pools, Sizes, cut
from schedules.registry import SCHEDULES
from schedules.residency import derive
from schedules.steps import Kind, Tier, Work
from schedules.traffic import count
from schedules.whole_step import with_whole_step

SHAPE, ITERATIONS = Shape(2, 24), 3
MODELS = {
  # Odd widths of the MLP, grouped heads, dropout: what could go wrong does so here.
  "llama": ModelConfig("llama", 3, 32, 4, 2, 8, 131, 64, 64, dropout=0.1),
  "gpt": ModelConfig("gpt", 4, 24, 2, 2, 12, 203, 64, 64),
  "tied": ModelConfig("llama", 3, 32, 2, 2, 16, 129, 64, 64, tied_embeddings=True, qk_norm=True),
}


@pytest.fixture(scope="session", autouse=True)
def _compile_each_program_once(tmp_path_factory):
  """Streamers of one model compile the same programs; the cache hands out the same executable."""
  settings = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def batches(iteration: int, micro_batch: int) -> Batch:
  """Random tokens; one target in ten is left out, so that micro-batches weigh differently."""
  rng = np.random.default_rng([iteration, micro_batch])
  tokens = rng.integers(0, 64, (SHAPE.sequences, SHAPE.tokens + 1)).astype(np.int32)
  targets = np.where(rng.random(tokens[:, 1:].shape) < 0.1, -1, tokens[:, 1:]).astype(np.int32)
  skip = rng.integers(0, 30)  # positions need not be consecutive
  positions = np.arange(SHAPE.tokens, dtype=np.int32) + skip * (np.arange(SHAPE.tokens) > 9)
  return Batch(tokens[:, :-1], targets, np.stack([positions] * 2).astype(np.int32))


@functools.cache
def optimizer(name: str = "adamw"):
  rate = optimizers.warmup_cosine(1e-2, 2, 10)
  if name == "groups":  # the leaves that do not decay have a rate of their own
    other = optimizers.warmup_cosine(3e-3, 1, 5)
    return Optimizer(optax.adamw(rate, weight_decay=0.2), optax.adamw(other, weight_decay=0.0))
  return optimizers.make(name, rate, 0.1)


def poison(programs: Programs, iteration: int, unit: int) -> None:
  """Puts a NaN into one gradient of a unit (-1: of the embedding) in one iteration."""

  def poisoned(call, gradients):
    def after(*args):
      out, at = call(*args), args[-1].numbers
      if tuple(at[1:]) != (iteration, max(unit, 0), 0):
        return out
      spoil = lambda tree: jax.tree.map(lambda leaf: leaf.at[..., -1].set(jnp.nan), tree)
      if gradients is None:
        return spoil(out)
      return tuple(spoil(x) if i == gradients else x for i, x in enumerate(out))

    return after

  if unit < 0:
    programs.embed_backward = poisoned(programs.embed_backward, None)
  else:
    programs.backward = poisoned(programs.backward, 1)
    programs.loss_backward = poisoned(programs.loss_backward, 2)


@dataclasses.dataclass
class Trained:
  """Everything that has to be equal to the bit."""

  losses: list[float]
  parameters: list[np.ndarray]
  states: list[np.ndarray]
  result: Result | None = None
  predicted: Any = None
  peak: Any = None
  planned: Any = None
  norms: Any = None

  def assert_equal(self, other: "Trained") -> None:
    assert self.losses == other.losses
    np.testing.assert_array_equal(self.norms, other.norms)
    for mine, theirs in ((self.parameters, other.parameters), (self.states, other.states)):
      for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@functools.cache  # so that every run of a model has the same compiled programs
def compiled(name: str, dtype: str = "float32") -> tuple[Transformer, Programs]:
  model = Transformer(MODELS[name], jnp.dtype(dtype))
  return model, Programs(model, layout_of(model), SHAPE)


def layout_of(model: Transformer, delayed_fraction: float = 0.0) -> Layout:
  return Layout.of(jax.eval_shape(model.init_unit, jax.random.key(0)), delayed_fraction)


HOMES = {"host": 1.0, "slices": 0.6, "ssd": 0.0}  # the share of every vector on the host


def placed(sizes: Sizes, work: Work, is_master: bool, homes: str, ample: bool) -> Pools:
  """A placement by hand: the smallest rings that work or ample ones, homes as `HOMES` says.

  Split slices differ from kind to kind, so that every combination of homes meets in an update.
  """
  pools = smallest(sizes, work, is_master, depth=1)
  shares = {Kind.PARAMETERS: 0.3, Kind.STATES: 0.6, Kind.GRADIENTS: 0.75}
  shares = shares if homes == "slices" else dict.fromkeys(CUT, HOMES[homes])
  activations = (Kind.BOUNDARY, Kind.BOUNDARY_GRADIENT)
  tier = Tier.SSD if homes == "ssd" else Tier.HOST
  rings = dict.fromkeys(pools.rings, work.units + 3) if ample else pools.rings
  return dataclasses.replace(
    pools,
    vectors={kind: cut(sizes.elements, share) for kind, share in shares.items()},
    homes=dict.fromkeys(activations, tier),
    rings=rings,
    spilled=1 if homes == "slices" else 0,
  )


def settings_of(
  model: Transformer,
  layout: Layout,
  schedule: str,
  micro_batches: int,
  homes: str,
  *,
  ample: bool = False,
  budget: int | None = None,
  rule: str = "adamw",
  **settings: Any,
) -> Settings:
  """Placed by hand, or under a budget in bytes."""
  order = SCHEDULES[schedule]
  work = with_whole_step(order, Work(model.units, micro_batches, layout.parts))
  sizes = sizes_of(
    model, layout, SHAPE, len(Updater(optimizer(rule), model.dtype, layout.lengths).names)
  )
  is_master = model.dtype == jnp.float32
  if budget is None:
    pools = placed(sizes, work, is_master, homes, ample)
  else:
    pools = place(order, work, sizes, {Tier.HOST: budget, Tier.DEVICE: None}, is_master)
  return Settings(order, work, pools, optimizer(rule), **settings)


def in_training(
  folder: pathlib.Path,
  name: str,
  schedule: str,
  micro_batches: int = 3,
  dtype: str = "float32",
  delayed_fraction: float = 0.0,
  homes: str = "host",
  *,
  poisoned: tuple[int, int] | None = None,
  **how: Any,
) -> tuple[Streamer, Settings]:
  """A model of `MODELS` on the store in a folder; `settings_of` takes the rest."""
  model, programs = compiled(name, dtype)
  layout = layout_of(model, delayed_fraction)
  settings = settings_of(model, layout, schedule, micro_batches, homes, **how)
  if poisoned:
    programs = copy.copy(programs)
    poison(programs, *poisoned)
  return Streamer(model, layout, programs, settings, batches, Store(folder, {})), settings


def state_of(streamer: Streamer, losses: list[float], units: int, **known: Any) -> Trained:
  """What it holds now, to compare."""
  trees = [*map(streamer.unit_parameters, range(units)), streamer.resident_parameters]
  return Trained(
    losses,
    [np.asarray(leaf) for tree in trees for leaf in jax.tree.leaves(tree)],
    [vector for u in range(units) for vector in streamer.unit_states(u).values()],
    **known,
  )


@pytest.fixture
def train(tmp_path):
  """train(model, schedule, ...): trains in a store of its own, and says what came of it."""

  def run(
    *how: Any, runs: tuple[int, ...] = (ITERATIONS,), probed: bool = False, **more: Any
  ) -> Trained:
    folder = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
    streamer, settings = in_training(folder, *how, **more)
    work, pools = settings.work, settings.pools
    if probed:
      streamer.probe()
    result = Result.joined(map(streamer.run, runs))
    lists = derive(iterations(settings.schedule, work, 0, ITERATIONS), work, pools)
    trained = state_of(
      *(streamer, result.losses, work.units),
      result=result,
      predicted=count(lists, pools),
      peak=streamer.peak_bytes,
      planned=pools.peak_bytes(work),
      norms=[i.gradient_norm for i in result.iterations],
    )
    streamer.remove()
    return trained

  return run


@pytest.fixture(scope="session")
def streaming():
  """streaming(folder, model, schedule, ...): a streamer on the store in a folder."""
  return lambda *how, **more: in_training(*how, **more)[0]


@pytest.fixture(scope="session")
def trained():
  """trained(streamer, losses, units): what it holds now, to compare."""
  return state_of


@pytest.fixture
def small_model():
  return Transformer(MODELS["llama"])


@pytest.fixture
def some_batches():
  return batches


@pytest.fixture
def adamw():
  return optimizer("adamw")


@pytest.fixture
def models():
  return MODELS


@pytest.fixture(scope="session")
def small():
  """What the reference is made of too."""
  return types.SimpleNamespace(
    iterations=ITERATIONS,
    batches=batches,
    optimizer=optimizer,
    compiled=compiled,
    layout_of=layout_of,
    Trained=Trained,
  )
