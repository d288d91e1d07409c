"""Steps that are decided on as a whole: clipped by the norm of all gradients, or skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.transformer import Transformer
from offload.passes import NonFiniteGradientError
from offload.verdict import LossScale, Verdict
from schedules.vertical import snake

WHOLE = {
  "vertical": ("vertical", 1.0, snake),
  "horizontal": ("horizontal", 0.0, lambda unit, micro_batches: range(micro_batches)),
  "horizontal, delayed": ("horizontal", 0.25, lambda unit, micro_batches: range(micro_batches)),
}


@pytest.mark.parametrize(
  "how, model, dtype, homes",
  [
    ("vertical", "tied", "bfloat16", "ssd"),
    ("horizontal, delayed", "llama", "float32", "slices"),
  ],
)
def test_clipping_equals_the_reference(train, reference, how, model, dtype, homes):
  schedule, delayed, order = WHOLE[how]
  free = reference(model, order, 2, dtype)
  limit = sorted(free.norms)[1]  # at least the largest is clipped, and the smallest is not
  trained = train(model, schedule, 2, dtype, delayed, homes=homes, clip_norm=limit)
  trained.assert_equal(reference(model, order, 2, dtype, clip_norm=limit))
  assert any((a != b).any() for a, b in zip(trained.parameters, free.parameters, strict=True))


def test_clipping_is_that_of_optax_on_the_whole_model(train, models, some_batches, assert_close):
  """One program, one batch of all micro-batches, whose tokens count alike: nothing in common."""
  model, m, limit = Transformer(models["gpt"]), 3, 0.5
  assert model.config.dropout == 0
  parameters = model.init(jax.random.key(0))
  decays = jax.tree.map(lambda leaf: leaf.ndim >= 2, parameters)
  rate = optax.warmup_cosine_decay_schedule(5e-3, 1e-2, 2, 10, 1e-3)
  rule = optax.chain(
    optax.clip_by_global_norm(limit),
    optax.add_decayed_weights(0.1, mask=decays),
    optax.sgd(rate, momentum=0.9),
  )

  @jax.jit
  def step(parameters, state, batch):
    def loss_of(parameters):
      context = model.context(batch.positions, None)
      x = model.embed(parameters["resident"], batch.inputs, context)
      for unit in parameters["units"]:
        x = model.block(unit, x, context)
      loss, weight = model.loss(parameters["resident"], x, batch.targets, context)
      return loss / weight

    loss, gradients = jax.value_and_grad(loss_of)(parameters)
    updates, state = rule.update(gradients, state, parameters)
    return optax.apply_updates(parameters, updates), state, loss, optax.tree.norm(gradients)

  state, losses, norms = rule.init(parameters), [], []
  for k in range(3):
    rows = [some_batches(k, i) for i in range(m)]
    batch = type(rows[0])(*(jnp.concatenate(arrays) for arrays in zip(*rows, strict=True)))
    parameters, state, loss, norm = step(parameters, state, batch)
    losses, norms = [*losses, loss], [*norms, norm]
  trained = train("gpt", "vertical", m, delayed_fraction=1.0, rule="momentum", clip_norm=limit)
  assert max(norms) > limit
  assert_close(np.float32(trained.losses), np.stack(losses))
  assert_close(np.float32(trained.norms), np.stack(norms))
  flat = jax.tree.leaves((*parameters["units"], parameters["resident"]))
  assert_close(trained.parameters, [np.asarray(leaf) for leaf in flat], scale=20)


def test_dropout_masks_are_those_of_seed_iteration_unit_and_micro_batch(
  train, models, some_batches, assert_close
):
  """Forward, recomputation and every schedule: the same loss and norm as a plain gradient."""
  model, m = Transformer(models["llama"]), 3
  assert model.config.dropout > 0
  rows = [jax.tree.map(jnp.array, some_batches(0, i)) for i in range(m)]
  weight = sum((row.targets >= 0).sum() for row in rows)

  @jax.jit
  def loss_of(parameters):
    total = 0.0
    for i, row in enumerate(rows):
      x = model.embed(parameters["resident"], row.inputs, model.context(row.positions, None))
      for u, unit in enumerate(parameters["units"]):
        key = jax.random.key(0)
        for number in (0, u, i):  # iteration, unit, micro-batch
          key = jax.random.fold_in(key, number)
        x = model.block(unit, x, model.context(row.positions, key))
      context = model.context(row.positions, None)
      total += model.loss(parameters["resident"], x, row.targets, context)[0]
    return total / weight

  loss, gradients = jax.value_and_grad(loss_of)(model.init(jax.random.key(0)))
  for schedule in ("vertical", "horizontal"):
    trained = train("llama", schedule, m, runs=(1,))
    assert_close(np.float32(trained.losses), np.asarray(loss)[None])
    assert_close(np.float32(trained.norms), np.asarray(optax.tree.norm(gradients))[None])


@pytest.mark.parametrize(
  "how, unit",
  [("vertical", -1), ("vertical", 1), ("horizontal, delayed", 0), ("horizontal, delayed", 2)],
)
def test_a_step_that_is_not_finite_is_skipped(train, reference, how, unit):
  """In all units, and with it their step count: losses and bits are those of a step left out."""
  schedule, delayed, order = WHOLE[how]
  trained = train(
    *("llama", schedule, 2, "bfloat16", delayed),
    homes="slices" if unit else "ssd",
    poisoned=(1, unit),
  )
  assert [i.skipped for i in trained.result.iterations] == [False, True, False]
  expected = reference("llama", order, 2, "bfloat16", skipped=(1,))
  trained.norms[1] = expected.norms[1]
  trained.assert_equal(expected)


@pytest.mark.parametrize("unit, name", [(1, "unit 1"), (-1, "the embedding or the head")])
@pytest.mark.parametrize("m", [1, 2])
def test_a_step_that_cannot_be_skipped_ends_the_run(train, m, unit, name):
  with pytest.raises(NonFiniteGradientError) as caught:
    train("llama", "vertical", m, delayed_fraction=0.25, poisoned=(1, unit), ample=True)
  assert f"gradient of {name} in iteration 1 is not finite" in str(caught.value)
  assert "--delayed_fraction=1" in str(caught.value)


def test_a_probe_takes_no_step(train, reference):
  """Not even where the first step is skipped, so that nothing else writes its successor's count."""
  trained = train("llama", "vertical", 2, "float32", 1.0, poisoned=(0, 1), probed=True)
  expected = reference("llama", snake, 2, "float32", skipped=(0,))
  expected.losses[0], expected.norms[0] = trained.losses[0], trained.norms[0]
  trained.assert_equal(expected)


def test_float16_finds_its_loss_scale(train, reference):
  """Scales that overflow halve, and leave everything as it was; good ones double."""
  how = ("llama", "vertical", 2, "float16", 1.0)
  over = train(*how, "ssd", loss_scale=LossScale(2.0**40, 1))
  assert [i.skipped for i in over.result.iterations] == [True] * 3
  assert [i.loss_scale for i in over.result.iterations] == [2.0**40, 2.0**39, 2.0**38]
  untouched = reference("llama", snake, 2, "float16", skipped=range(3))
  untouched.norms = over.norms
  over.assert_equal(untouched)
  good = train(*how, loss_scale=LossScale(2.0**10, 2))
  assert [i.skipped for i in good.result.iterations] == [False] * 3
  scales = [i.loss_scale for i in good.result.iterations]
  assert scales == [2.0**10, 2.0**10, 2.0**11]
  good.assert_equal(reference("llama", snake, 2, "float16", loss_scales=scales))


@pytest.mark.parametrize(
  "settings, sentence",
  [
    ({"clip_norm": 1.0}, r"--clip_norm=1.0 needs .*--delayed_fraction=1"),
    ({"loss_scale": LossScale(8.0, 1)}, r"--parameter_dtype=float16 .*--delayed_fraction=1"),
    ({"clip_norm": -1.0}, "--clip_norm=-1.0 must be 0"),
  ],
)
@pytest.mark.parametrize("delayed", [0.0, 0.5])
def test_what_a_schedule_cannot_do_is_refused(train, settings, sentence, delayed):
  with pytest.raises(ValueError, match=sentence):
    train("llama", "vertical", 2, delayed_fraction=delayed, **settings)


def test_the_loss_scale_halves_and_doubles():
  scale, seen = LossScale(4.0, interval=2), []
  for finite in (True, False, True, True, True, False, False, False, False):
    scale = scale.after(finite)
    seen.append(scale.value)
  assert seen == [4, 2, 2, 4, 4, 2, 1, 1, 1]
  with pytest.raises(ValueError, match="--loss_scale=3 must be a power of two"):
    LossScale(3.0)


@pytest.mark.parametrize("norm, limit", [(3.0, 1.0), (0.5, 1.0), (1.0, 1.0), (7.0, 0.0)])
def test_clips_as_optax_does(norm, limit):
  tree = {"a": np.float32([0.6, 0.8]) * np.float32(norm)}
  verdict = Verdict.of(optax.tree.norm(tree) ** 2, loss_scale=1.0, clip_norm=limit)
  rule = optax.clip_by_global_norm(limit) if limit else optax.identity()
  np.testing.assert_allclose(verdict.scaled(tree)["a"], rule.update(tree, None)[0]["a"], rtol=1e-6)
