"""Trains the same model as experiments.train does, all in memory, as one compiled program.

    python -m experiments.peers.whole_program --model=bytes-3m --workdir=runs/whole

What anyone would write in JAX where everything fits: an iteration is one program, micro-batches
follow one another in a scan, each block is recomputed in its backward pass, optax updates all
parameters. Takes train's flags; those of schedules, placement and the store change nothing.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import program, train_check
from experiments.run_log import RunLog
from experiments.whole_loss import whole_loss
from models.transformer import Transformer
from offload.buffers import recycle_freed
from offload.update import Optimizer

Tree = Any
_NAME = "peers.whole_program"


def main(plan: train_check.Plan) -> None:
  log = RunLog.start(plan.workdir, _NAME)
  model, key = plan.model, jax.random.key(plan.settings.seed)
  transformation = _transformation(plan.settings.optimizer)
  parameters = jax.jit(model.init)(key)
  state = jax.jit(transformation.init)(parameters)
  step = jax.jit(functools.partial(_step, model, transformation), donate_argnums=(0, 1))
  losses, seconds, used = [], [], time.process_time()
  for iteration in range(flags.FLAGS.iterations):
    batches = [plan.batch(iteration, m) for m in range(flags.FLAGS.micro_batches)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    start = time.perf_counter()
    parameters, state, loss = jax.block_until_ready(step(parameters, state, stacked))
    seconds.append(time.perf_counter() - start)
    losses.append(float(loss))
  tokens = stacked.targets.size * len(seconds) / sum(seconds)
  summary = {"losses": losses, "seconds_per_iteration": seconds, "tokens_per_second": tokens}
  summary["cpu_seconds"] = time.process_time() - used
  log.finish(summary, f"loss {losses[-1]:.4f}, {tokens:,.0f} tokens/s")


def _step(model: Transformer, transformation, parameters: Tree, state: Tree, batches: Any):
  """One iteration: parameters, optimizer state and the loss in nats per token."""
  weight = (batches.targets >= 0).sum().astype(jnp.float32)

  def loss_of(parameters, batch):
    return whole_loss(model, parameters, batch, recompute=True)[0] / weight

  def add(sums, batch):
    return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss_of)(parameters, batch)), None

  zeros = jnp.zeros(()), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), parameters)
  (loss, gradients), _ = jax.lax.scan(add, zeros, batches)
  updates, state = transformation.update(gradients, state, parameters)
  return optax.apply_updates(parameters, updates), state, loss


def _transformation(optimizer: Optimizer) -> optax.GradientTransformation:
  """Matrices decay, all else does not."""
  decays = lambda tree: jax.tree.map(lambda leaf: leaf.ndim >= 2, tree)
  others = lambda tree: jax.tree.map(lambda decayed: not decayed, decays(tree))
  return optax.chain(optax.masked(optimizer.decayed, decays), optax.masked(optimizer.plain, others))


def check() -> train_check.Plan:
  """As train's; only float32 is the truth of its own parameters."""
  if flags.FLAGS.parameter_dtype != "float32":
    raise ValueError(f"--parameter_dtype={flags.FLAGS.parameter_dtype}: here it must be float32.")
  return train_check.check(_NAME)


if __name__ == "__main__":
  recycle_freed()
  program.run(main, check)
