"""A model in training between two iterations: vectors at home, and what stays on the device."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax

from offload import snapshot
from offload.arrays import Arrays, HostSlots, HostSpecs
from offload.cuts import Cuts
from offload.generations import Generations
from offload.layout import Layout
from offload.probe import cores
from offload.programs import Model
from offload.resident import Resident
from offload.snapshot import Commit, Record
from offload.store import Store
from offload.update import Updater
from offload.verdict import LossScale
from schedules.pools import PERSISTENT, Pools
from schedules.steps import Access, Kind, Mode, Object, Part, Slice, Tier, Work


class State:
  """Parameters and optimizer states on their tiers, alike for every unit.

  Construction writes initial values, unit by unit, or takes up what a commit names: a model that
  does not fit in memory is never whole there.
  """

  def __init__(
    self,
    model: Model,
    layout: Layout,
    boundary: jax.ShapeDtypeStruct,
    updater: Updater,
    work: Work,
    pools: Pools,
    store: Store,
    *,
    verify_reads: bool = False,
  ):
    self._model, self._layout, self._updater = model, layout, updater
    self._work, self._pools, self._store = work, pools, store
    self.cuts = Cuts(pools.vectors)
    self.specs = HostSpecs(self.cuts, boundary, updater.names, model.dtype)
    self.host = HostSlots(self.specs)
    self._generations = Generations(store, verify_reads=verify_reads)
    self.arrays = Arrays(self._generations, self.cuts, updater.names)
    self.resident: Resident

  @property
  def commit_bytes(self) -> int:
    """Bytes that a commit writes: what is not on SSD anyway."""
    at_home = [access for kind, access in self._persistent() if access.tier is Tier.HOST]
    vectors = sum(self._pools.bytes(access.object.kind, access.slices) for access in at_home)
    return vectors + self.resident.bytes

  @property
  def peak_bytes(self) -> dict[str, int]:
    """Bytes of the host buffers and of the SSD arrays that were made."""
    return {"host": self.host.bytes, "ssd": self._generations.bytes}

  def initialise(self, key: jax.Array, optimizer: Any) -> None:
    """Begins anew; what an earlier run of the same configuration left unfinished goes."""
    model, layout = self._model, self._layout
    self._generations.resume([])
    masters = self.specs.vector(Kind.GRADIENTS, layout.elements)
    states = self.specs.vector(Kind.STATES, layout.elements)
    for u in range(model.units):
      tree = _made(model.init_unit, jax.random.fold_in(key, u))
      jax.tree.map(lambda view, leaf: np.copyto(view, leaf), layout.views(masters), tree)
      self._updater.initial_states(masters, states)
      self._put(Kind.PARAMETERS, u, masters.astype(model.dtype, copy=False))
      self._put(Kind.STATES, u, states)
    self._updater.start(0)
    initial = _made(model.init_resident, jax.random.fold_in(key, model.units))
    self.resident = Resident(initial, optimizer, model.dtype)

  def commit(self, iteration: int, keep: int, loss_scale: LossScale) -> int:
    """Makes the state after `iteration` iterations current on disk; returns the bytes written.

    Nothing may be pending or under way. `keep` commits are kept, this one the newest of them.
    """
    written, records = 0, dict[str, Record]()
    for kind, access in self._persistent():
      buffer = self.specs.vector(kind, 0)
      if access.tier is Tier.HOST:
        buffer = self.host[access]
        written += self.arrays.write(access.object, access.slices, buffer, checksum=True)
      records |= self.arrays.records(access.object, access.slices, buffer)
    for i, leaf in enumerate(self.resident.leaves()):
      written += self._generations.write({_leaf(i): leaf}, checksum=True)
      records[_leaf(i)] = self._generations.record(_leaf(i), leaf.dtype)
    scalars = [_said(scalar) for scalar in self._updater.scalars(iteration)]
    whole_step = {"optimizer": scalars, "loss_scale": dataclasses.asdict(loss_scale)}
    commit = Commit(iteration, records, self._slices(), whole_step, environment())
    snapshot.write(self._store.folder, commit)
    self._generations.keep(snapshot.prune(self._store.folder, keep))
    self._generations.sweep()
    return written

  def resume(self, commits: list[Commit], optimizer: Any, keep: int) -> None:
    """Takes up the last of a store's commits. One that was cut otherwise is cut anew.

    `keep` commits stay: a run that kept more, or was killed within a commit, has left others.

    Raises:
      Corrupt: names the array, and the bytes, that are not as they were written.
    """
    commit = commits[-1]
    self._generations.resume(commits)
    self._generations.keep(snapshot.prune(self._store.folder, keep))
    if commit.slices == self._slices():
      for _, access in self._persistent():
        if access.tier is Tier.HOST:
          self.arrays.read(access.object, access.slices, self.host[access])
    else:
      self._cut_anew(commit)
    scalars = [_heard(scalar) for scalar in commit.scalars["optimizer"]]
    self._updater.start(commit.iteration, scalars)
    shapes = jax.eval_shape(self._model.init_resident, jax.random.key(0))
    initial = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    self.resident = Resident(initial, optimizer, self._model.dtype)
    leaves = enumerate(self.resident.leaves())
    self.resident.restore(self._read(_leaf(i), like) for i, like in leaves)

  def vector(self, kind: Kind, unit: int) -> np.ndarray:
    """A copy of a unit's vector, or of its stacked ones."""
    vector = self.specs.vector(kind, self._layout.elements)
    for access in self._at_home(kind, unit):
      if access.tier is Tier.HOST:
        for run in self.cuts.runs(kind, access.slices, self.host[access]):
          np.copyto(vector[..., run.start : run.stop], run.array)
      else:
        self.arrays.read(access.object, access.slices, self.cuts.streamed(kind, vector))
    return vector

  def _read(self, name: str, like: np.ndarray) -> np.ndarray:
    target = np.empty_like(like)
    self._generations.read({name: target})
    return target

  def _put(self, kind: Kind, unit: int, vector: np.ndarray) -> None:
    for access in self._at_home(kind, unit):
      if access.tier is Tier.HOST:
        for run in self.cuts.runs(kind, access.slices, self.host[access]):
          np.copyto(run.array, vector[..., run.start : run.stop])
      else:
        self.arrays.write(access.object, access.slices, self.cuts.streamed(kind, vector))

  def _cut_anew(self, commit: Commit) -> None:
    """From the slices of a commit to those of this run's placement."""
    old = {
      Kind(kind): {Slice(Part(part), Tier(home)): n for part, home, n in vector}
      for kind, vector in commit.slices.items()
    }
    cuts = Cuts(old)
    arrays = Arrays(self._generations, cuts, self._updater.names)
    for kind, vector in old.items():
      for unit in range(self._model.units):
        whole = self.specs.vector(kind, self._layout.elements)
        for piece in vector:
          buffer = self.specs.vector(kind, cuts.length(kind, piece.home))
          arrays.read(Object(kind, unit), (piece,), buffer)
          for run in cuts.runs(kind, (piece,), buffer):
            np.copyto(whole[..., run.start : run.stop], run.array)
        self._put(kind, unit, whole)
    ours = self._names()
    self._generations.forget(n for n in commit.arrays if n.startswith("units/") and n not in ours)

  def _names(self) -> set[str]:
    """Arrays of this run's slices."""
    names = set[str]()
    for kind, access in self._persistent():
      names.update(self.arrays.names(access.object, access.slices, self.specs.vector(kind, 0)))
    return names

  def _persistent(self) -> Iterator[tuple[Kind, Access]]:
    for unit in range(self._model.units):
      for kind in PERSISTENT:
        for access in self._at_home(kind, unit):
          yield kind, access

  def _at_home(self, kind: Kind, unit: int) -> list[Access]:
    """Where a unit's vectors are between iterations."""
    item, pools = Object(kind, unit), self._pools
    homes: dict[Tier, list[Slice]] = {}
    for piece in pools.vectors[kind]:
      homes.setdefault(pools.home(item, piece, self._work), []).append(piece)
    return [
      Access(tier, item, Mode.READ, tuple(slices), pools.home_slot(item, tier, self._work))
      for tier, slices in homes.items()
    ]

  def _slices(self) -> dict[str, list[tuple[str, str, int]]]:
    vectors = {kind: self._pools.vectors[kind] for kind in PERSISTENT}
    return {
      str(kind): [(str(piece.part), str(piece.home), n) for piece, n in vector.items()]
      for kind, vector in vectors.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _made(init: Callable[[jax.Array], Any], key: jax.Array) -> Any:
  """Initial parameters, by one compiled program for all units and runs of a model."""
  return init(key)


def environment() -> dict[str, Any]:
  """What decides the bits of a run beside its configuration."""
  return {
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "optax": optax.__version__,
    "device": jax.devices()[0].device_kind,
    "cores": cores(),
  }


def _leaf(number: int) -> str:
  """The array of one of the resident parameters' leaves."""
  return f"resident/{number}"


def _said(scalar: Any) -> dict[str, Any]:
  """An array of few elements as JSON, to the bit."""
  array = np.asarray(scalar)
  return {"dtype": array.dtype.name, "shape": array.shape, "bytes": array.tobytes().hex()}


def _heard(said: dict[str, Any]) -> np.ndarray:
  array = np.frombuffer(bytes.fromhex(said["bytes"]), np.dtype(said["dtype"]))
  return array.reshape(said["shape"])
