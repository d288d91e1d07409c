"""A run that is asked to stop ends with the running iteration, whole, and goes on to the bit."""

import dataclasses

import pytest

from offload.block_files import BlockFiles
from offload.passes import Passes
from schedules.vertical import snake

HOW = {"delayed_fraction": 0.5, "homes": "slices"}


@pytest.fixture
def newest(monkeypatch):
  """The newest iteration that the device has been at, in a list."""
  seen, real = [0], Passes.perform

  def perform(passes, step):
    seen[0] = max(seen[0], step.iteration)
    return real(passes, step)

  monkeypatch.setattr(Passes, "perform", perform)
  return seen


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("calls", [1, 40, 150])
def test_it_ends_with_the_running_iteration(
  tmp_path, monkeypatch, streaming, trained, reference, small, newest, calls, overlap
):
  """Asked at the n-th call of `stop`: when a step's turn comes, or while lists are made."""
  streamer = streaming(tmp_path / "store", "llama", "vertical", overlap=overlap, **HOW)
  asked, running = 0, []

  def stop():
    nonlocal asked
    asked += 1
    if asked >= calls:
      running.append(newest[0])
    return asked >= calls

  known = streamer.run(small.iterations, stop=stop).iterations
  assert running and known[-1].number - running[0] in ((0, 1) if overlap else (0,))
  assert calls > 40 or len(known) == 1
  reads, read = [], BlockFiles.read
  monkeypatch.setattr(BlockFiles, "read", lambda *args: reads.append(args) or read(*args))
  streamer.commit()
  assert calls > 1 or not reads, "checksums of what the last iteration wrote are known"
  streamer.release()
  again = streaming(tmp_path / "store", "llama", "vertical", overlap=overlap, **HOW)
  assert again.iteration == len(known) == streamer.iteration
  if again.iteration < small.iterations:
    known = known + again.run(small.iterations - again.iteration).iterations
  done = trained(again, [i.loss for i in known], 3)
  expected = reference("llama", snake)
  done.assert_equal(dataclasses.replace(expected, norms=done.norms))
