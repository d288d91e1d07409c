"""A training run: stretches of iterations that end in commits, told of as they go."""

import math
import sys
import time
from collections.abc import Callable, Iterator

from absl import flags
from tqdm import tqdm

from experiments import program, training_flags
from experiments.run_log import RunLog
from experiments.stopping import Stop
from experiments.train_check import Plan
from offload.passes import NonFiniteGradientError
from offload.programs import Programs
from offload.result import Iteration, Result
from offload.state import environment
from offload.store import Store
from offload.streamer import Streamer

FLAGS = flags.FLAGS
_SECONDS_BETWEEN_LINES = 10


class Run:
  """Trains in stretches that end in commits."""

  def __init__(self, plan: Plan, programs: Programs, log: RunLog, store: Store):
    self._plan, self._programs, self._log, self._store = plan, programs, log, store
    self._stop, self._last = Stop(), plan.done
    self.commits = {"bytes": 0, "predicted_bytes": 0, "seconds": []}
    if FLAGS.commit_every:
      pools, work = plan.settings.pools, plan.settings.work
      self.commits["predicted_disk_bytes"] = pools.disk_bytes(work, FLAGS.keep)
    self.streamer: Streamer

  def start(self) -> None:
    plan = self._plan
    self.streamer = Streamer(
      *(plan.model, plan.layout, self._programs, plan.settings),
      *(plan.batch, self._store),
    )
    if plan.done:
      print(f"Goes on after iteration {plan.done}, from the commit in {plan.store}.", flush=True)
      for name, then in plan.commits[-1].environment.items():
        now = environment().get(name)
        if now != then:
          print(f"WARNING: {name} was {then} and is {now}: bits may differ.", file=sys.stderr)

  def train(self) -> Result:
    with tqdm(
      total=FLAGS.iterations, initial=self.streamer.iteration, unit="it", desc=FLAGS.schedule,
      disable=None,
    ) as bar:  # fmt: skip
      result = Result.joined(self._stretches(bar))
    if self._stop():
      if self._last < self.streamer.iteration:  # the stop came behind the last look at it
        self._commit()
      where = f"stopped after iteration {self.streamer.iteration}"
      self._stop.exit(f"{where}; {self.advice(None)}")
    return result

  def _stretches(self, bar: tqdm) -> Iterator[Result]:
    streamer, commits = self.streamer, FLAGS.commit_every > 0
    while streamer.iteration < FLAGS.iterations and not self._stop():
      count = FLAGS.iterations - streamer.iteration
      count = min(FLAGS.commit_every or count, count)
      try:
        yield streamer.run(count, _progress(self._log, bar), stop=self._stop, commits=commits)
      except NonFiniteGradientError as error:
        raise program.Failure(f"{error} {self.advice(None)}") from error
      if commits or self._stop():
        self._commit()

  def advice(self, _: object) -> str:
    """What a user can do after an end before the end."""
    if not self._last:
      return "Nothing is committed: the same command begins anew."
    return f"The same command goes on after iteration {self._last}, the last that is committed."

  def _commit(self) -> None:
    self._log.sync()
    start = time.perf_counter()
    self.commits["predicted_bytes"] += self.streamer.commit_bytes
    self.commits["bytes"] += self.streamer.commit()
    self.commits["seconds"].append(time.perf_counter() - start)
    self._last = self.streamer.iteration


def _progress(log: RunLog, bar: tqdm) -> Callable[[Iteration], None]:
  told = time.monotonic()

  def tell(known: Iteration) -> None:
    nonlocal told
    iteration, loss, norm, skipped, loss_scale = known
    values = {"loss": loss, "bits": loss / math.log(2), "tokens": training_flags.tokens()}
    values |= {"gradient_norm": norm, "skipped": skipped}
    if FLAGS.parameter_dtype == "float16":
      values["loss_scale"] = loss_scale
    log.metric(iteration=iteration, **values)
    bar.update()
    if bar.disable and time.monotonic() - told > _SECONDS_BETWEEN_LINES:  # no terminal: lines
      told = time.monotonic()
      print(f"iteration {iteration + 1} of {FLAGS.iterations}: loss {loss:.3f}", flush=True)
    rate = bar.format_dict["rate"] or 0.0
    bar.set_postfix_str(
      f"loss {loss:.3f}, {rate * training_flags.tokens():,.0f} tokens/s", refresh=False
    )

  return tell
