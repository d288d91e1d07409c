"""Evaluation of a model in training: the same loss as the whole model in one program."""

import jax
import numpy as np
import pytest

from offload.layout import Layout
from offload.programs import Programs, Shape
from offload.sizes import sizes_of
from offload.store import Store
from offload.streamer import Settings, Streamer
from schedules.placement import smallest
from schedules.registry import SCHEDULES
from schedules.steps import Work


@pytest.fixture
def streamer(small_model, some_batches, adamw, tmp_path):
  """A model with dropout, on SSD, after two iterations."""
  unit = jax.eval_shape(small_model.init_unit, jax.random.key(0))
  layout = Layout.of(unit)
  work = Work(small_model.units, 2)
  shape = Shape(2, 24)
  pools = smallest(sizes_of(small_model, layout, shape, 2), work, True)
  settings = Settings(SCHEDULES["vertical"], work, pools, adamw)
  programs = Programs(small_model, layout, shape)
  streamer = Streamer(
    small_model, layout, programs, settings, some_batches, Store(tmp_path / "s", {})
  )
  streamer.run(2)
  return streamer


def test_evaluation_drops_nothing_and_reads_the_newest(
  streamer, small_model, some_batches, assert_close
):
  assert small_model.config.dropout > 0
  batches = [some_batches(99, m) for m in range(3)]
  units = [streamer.unit_parameters(u) for u in range(small_model.units)]
  resident, losses, weights = streamer.resident_parameters, 0.0, 0.0
  for batch in (jax.tree.map(jax.numpy.array, b) for b in batches):
    context = small_model.context(batch.positions, None)
    x = small_model.embed(resident, batch.inputs, context)
    for unit in units:
      x = small_model.block(jax.tree.map(jax.numpy.array, unit), x, context)
    loss, weight = small_model.loss(resident, x, batch.targets, context)
    losses, weights = losses + loss, weights + weight
  assert_close(np.float32(streamer.evaluate(batches)), np.float32(losses / weights))


def test_a_model_in_the_middle_of_a_step_is_not_read(streamer, some_batches):
  """Delayed parts may be pending, and units updated that others do not match yet."""

  def interrupt(iteration):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    streamer.run(2, interrupt)
  reads = (
    lambda: streamer.evaluate([some_batches(0, 0)]),
    lambda: streamer.unit_parameters(0),
    lambda: streamer.unit_states(0),
    lambda: streamer.resident_parameters,
    lambda: streamer.commit(),
    lambda: streamer.run(1),
  )
  for read in reads:
    with pytest.raises(RuntimeError, match="in the middle of a step"):
      read()
