"""A small model in training, under any schedule and placement, and the reference it is held to."""

import dataclasses
import functools
import pathlib
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
from offload.programs import Programs, Shape, Where
from offload.result import Result
from offload.sizes import sizes_of
from offload.store import Store
from offload.streamer import Settings, Streamer
from offload.update import Optimizer, Updater
from offload.verdict import add_squares
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


def _parts(name: str, dtype: Any, delayed_fraction: float):
  model = Transformer(MODELS[name], jnp.dtype(dtype))
  layout = Layout.of(jax.eval_shape(model.init_unit, jax.random.key(0)), delayed_fraction)
  return model, layout


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


@pytest.fixture
def train(tmp_path):
  """Trains a model of `MODELS` under a schedule, placed by hand, or under a budget in bytes."""

  def run(
    name: str,
    schedule: str,
    micro_batches: int = 3,
    dtype: str = "float32",
    delayed_fraction: float = 0.0,
    homes: str = "host",
    ample: bool = False,
    budget: int | None = None,
    rule: str = "adamw",
    poisoned: tuple[int, int] | None = None,
    runs: tuple[int, ...] = (ITERATIONS,),
    **settings: Any,
  ) -> Trained:
    model, layout = _parts(name, dtype, delayed_fraction)
    order = SCHEDULES[schedule]
    work = with_whole_step(order, Work(model.units, micro_batches, layout.parts))
    states = len(Updater(optimizer(rule), model.dtype).names)
    sizes = sizes_of(model, layout, SHAPE, states)
    is_master = model.dtype == jnp.float32
    if budget is None:
      pools = placed(sizes, work, is_master, homes, ample)
    else:
      pools = place(order, work, sizes, {Tier.HOST: budget, Tier.DEVICE: None}, is_master)
    how = Settings(order, work, pools, optimizer(rule), **settings)
    programs = Programs(model, layout, SHAPE)
    if poisoned:
      poison(programs, *poisoned)
    streamer = Streamer(
      *(model, layout, programs, how),
      *(batches, Store(tmp_path / f"store{len(list(tmp_path.iterdir()))}", {})),
    )
    result = Result.none()
    for iterations_of_run in runs:
      result = result.then(streamer.run(iterations_of_run))
    lists = derive(iterations(order, work, 0, ITERATIONS), work, pools)
    units = range(model.units)
    trees = [*(streamer.unit_parameters(u) for u in units), streamer.resident_parameters]
    trained = Trained(
      [i.loss for i in result.iterations],
      [np.asarray(leaf) for tree in trees for leaf in jax.tree.leaves(tree)],
      [vector for u in units for vector in streamer.unit_states(u).values()],
      result,
      count(lists, pools),
      streamer.peak_bytes,
      pools.peak_bytes(work),
      [i.gradient_norm for i in result.iterations],
    )
    streamer.remove()
    return trained

  return run


@pytest.fixture
def reference():
  """Plain loops over the same compiled unit functions: every boundary and gradient in memory.

  Gradients are summed in `order(unit, micro_batches)`; the optimizer sees whole vectors.
  """

  def run(
    name: str,
    order,
    micro_batches: int = 3,
    dtype: str = "float32",
    rule: str = "adamw",
    **settings: Any,
  ) -> Trained:
    model, layout = _parts(name, dtype, 0.0)
    return _Reference(model, layout, order, micro_batches, rule, **settings).train()

  return run


class _Reference:
  def __init__(
    self, model, layout, order, micro_batches, rule, clip_norm=0.0, skipped=(), loss_scales=None
  ):
    """`skipped` iterations step nothing; `loss_scales` are those of each iteration."""
    self.model, self.layout, self.order, self.m = model, layout, order, micro_batches
    self.clip_norm, self.skipped = clip_norm, skipped
    self.loss_scales, self.norms = loss_scales or [1.0] * ITERATIONS, []
    self.p = Programs(model, layout, SHAPE)
    key = jax.random.key(0)
    self.units = [jax.jit(model.init_unit)(jax.random.fold_in(key, u)) for u in range(model.units)]
    self.resident = jax.jit(model.init_resident)(jax.random.fold_in(key, model.units))
    # Initial values are made in the model's dtype; masters are their float32 copies.
    vectors = [self._vector(unit) for unit in self.units]
    self.masters = [*vectors, jax.tree.map(lambda x: x.astype(jnp.float32), self.resident)]
    both = optimizer(rule)
    decays = jnp.arange(layout.elements) < layout.decayed
    self.both, self.decays = both, decays
    self.states = [(both.decayed.init(v), both.plain.init(v)) for v in vectors]
    matrices = jax.tree.map(lambda x: x.ndim >= 2, self.resident)
    self.resident_rule = optax.chain(
      optax.masked(both.decayed, matrices),
      optax.masked(both.plain, jax.tree.map(lambda x: not x, matrices)),
    )
    self.resident_state = self.resident_rule.init(self.masters[-1])

  def _vector(self, unit):
    out = np.zeros(self.layout.elements, np.float32)
    jax.tree.map(lambda view, x: np.copyto(view, x), self.layout.views(out), unit)
    return jnp.array(out)

  def train(self) -> Trained:
    losses = [self.iteration(k) for k in range(ITERATIONS)]
    leaves = [np.asarray(x) for x in jax.tree.leaves((self.units, self.resident))]
    vectors = []
    for states, master in zip(self.states, self.masters, strict=False):
      pairs = zip(*map(jax.tree.leaves, states), strict=True)  # of both rules
      vectors += [np.where(self.decays, *pair) for pair in pairs if pair[0].ndim]
      vectors += [np.asarray(master)] if self.model.dtype != jnp.float32 else []
    return Trained(losses, leaves, vectors, norms=self.norms)

  def iteration(self, k: int) -> float:
    p, last = self.p, self.model.units - 1
    data = [batches(k, m) for m in range(self.m)]
    weight = float(sum((targets >= 0).sum() for _, targets, _ in data))
    at = lambda u, m: Where.of(0, k, u, m, data[m].positions)
    embed, head = self.resident["embed"], p.head_part(self.resident)
    inputs = [[p.embed(embed, tokens, at(0, m)) for m, (tokens, _, _) in enumerate(data)]]
    for u in range(last):
      inputs.append([p.forward(self.units[u], x, at(u, m)) for m, x in enumerate(inputs[u])])
    dys: list[Any] = [None] * self.m
    losses, gradients = [0.0] * self.m, []
    head_sum, embed_sum = p.head_zeros(), p.embed_zeros()
    for u in reversed(range(last + 1)):
      total, unit = p.unit_zeros(), self.units[u]
      for m in self.order(u, self.m):
        if u == last:
          loss, dys[m], total, head_sum = p.loss_backward(
            *(unit, head, inputs[u][m], data[m][1], np.float32(self.loss_scales[k] / weight)),
            *(total, head_sum, at(u, m)),
          )
          losses[m] = float(loss)
        else:
          dys[m], total = p.backward(unit, inputs[u][m], dys[m], total, at(u, m))
        if u == 0:
          embed_sum = p.embed_backward(embed, data[m][0], dys[m], embed_sum, at(u, m))
      gradients.insert(0, total)
    total = {**head_sum, "embed": embed_sum}
    if "embed" in head_sum:
      total["embed"] = jax.tree.map(jnp.add, embed_sum, head_sum["embed"])
    gradients, total = self._clipped(gradients, total, np.float32(self.loss_scales[k]))
    if k not in self.skipped:
      self._update(gradients, total)
    return sum(losses) / weight

  def _clipped(self, gradients, total, loss_scale):
    """Squares are summed from the last unit to the first, the resident parameters' last."""
    squares = np.float32(0)
    for tree in (*reversed(gradients), total):
      squares = add_squares(squares, tree)
    norm = np.sqrt(np.asarray(squares)) / loss_scale
    self.norms.append(float(norm))
    factor = 1 / loss_scale
    if self.clip_norm and norm >= self.clip_norm:
      factor *= np.float32(self.clip_norm) / norm
    clip = lambda g: np.asarray(g) * factor
    return jax.tree.map(clip, gradients), jax.tree.map(clip, total)

  def _update(self, gradients, total) -> None:
    for u, gradient in enumerate(gradients):
      self.masters[u], self.states[u] = self._step(self._vector(gradient), u)
      self.units[u] = jax.tree.map(
        lambda x: jnp.array(x).astype(self.model.dtype),
        self.layout.views(np.asarray(self.masters[u])),
      )

    @jax.jit
    def step(masters, state, gradients):
      updates, state = self.resident_rule.update(gradients, state, masters)
      return optax.apply_updates(masters, updates), state

    self.masters[-1], self.resident_state = step(self.masters[-1], self.resident_state, total)
    self.resident = jax.tree.map(lambda x: x.astype(self.model.dtype), self.masters[-1])

  def _step(self, gradient, u):
    """With decay and without, over the whole vector; each element takes its own."""

    @jax.jit
    def both(master, states, gradient):
      rules = (self.both.decayed, self.both.plain)
      updates, after = zip(
        *(rule.update(gradient, s, master) for rule, s in zip(rules, states, strict=True)),
        strict=True,
      )
      return [optax.apply_updates(master, update) for update in updates], after

    (decayed, plain), after = both(self.masters[u], self.states[u], gradient)
    return jnp.where(self.decays, decayed, plain), after


@pytest.fixture
def small_model():
  return Transformer(MODELS["llama"])


@pytest.fixture
def some_batches():
  return batches


@pytest.fixture
def adamw():
  return optimizer()


@pytest.fixture
def models():
  return MODELS


def _streamer(
  folder: pathlib.Path,
  name: str,
  schedule: str,
  micro_batches: int = 3,
  delayed_fraction: float = 0.0,
  homes: str = "host",
  ample: bool = False,
  budget: int | None = None,
  **settings: Any,
) -> Streamer:
  model, layout, programs = _compiled(name, delayed_fraction)
  order = SCHEDULES[schedule]
  work = with_whole_step(order, Work(model.units, micro_batches, layout.parts))
  sizes = sizes_of(model, layout, SHAPE, len(Updater(optimizer(), model.dtype).names))
  if budget is None:
    pools = placed(sizes, work, True, homes, ample)
  else:
    pools = place(order, work, sizes, {Tier.HOST: budget, Tier.DEVICE: None}, True)
  both = Settings(order, work, pools, optimizer(), **settings)
  return Streamer(model, layout, programs, both, batches, Store(folder, {}))


@functools.cache  # so that every streamer of a model has the same compiled programs
def _compiled(name: str, delayed_fraction: float) -> tuple[Transformer, Layout, Programs]:
  model, layout = _parts(name, "float32", delayed_fraction)
  return model, layout, Programs(model, layout, SHAPE)


def _trained(streamer: Streamer, losses: list[float], units: int) -> Trained:
  trees = [*map(streamer.unit_parameters, range(units)), streamer.resident_parameters]
  return Trained(
    losses,
    [np.asarray(leaf) for tree in trees for leaf in jax.tree.leaves(tree)],
    [vector for u in range(units) for vector in streamer.unit_states(u).values()],
  )


@pytest.fixture(scope="session")
def streaming():
  """streaming(folder, model, schedule, ...): a streamer, in float32, on the store in a folder."""
  return _streamer


@pytest.fixture(scope="session")
def trained():
  """trained(streamer, losses, units): what it holds now, to compare."""
  return _trained
