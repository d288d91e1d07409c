"""The optimizers that have a name: elementwise optax transformations, with and without decay."""

from collections.abc import Callable

import optax

from offload.update import Optimizer

Rate = optax.ScalarOrSchedule
_Make = Callable[[Rate, float], optax.GradientTransformation]

_MAKERS: dict[str, _Make] = {
  "adamw": lambda rate, decay: optax.adamw(rate, b2=0.95, weight_decay=decay),
  "lion": lambda rate, decay: optax.lion(rate, weight_decay=decay),
  "momentum": lambda rate, decay: optax.chain(
    optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9)
  ),
}
OPTIMIZERS = tuple(_MAKERS)


def make(name: str, rate: Rate, weight_decay: float) -> Optimizer:
  """An optimizer for matrices (which decay) and for all other leaves (which do not)."""
  return Optimizer(_MAKERS[name](rate, weight_decay), _MAKERS[name](rate, 0.0))


def warmup_cosine(peak: float, warmup: int, steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, then a cosine down to a tenth of it at `steps`."""
  warmup = min(warmup, max(steps - 1, 0))
  return optax.warmup_cosine_decay_schedule(
    peak / max(warmup, 1), peak, warmup, max(steps, warmup + 1), peak / 10
  )
