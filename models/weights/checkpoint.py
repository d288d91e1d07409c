"""A model's checkpoint: a folder with `model.json`, its shape, and `parameters/`, kept by Orbax.

Any dtype is kept as it is. The tree is the model's own: `resident` and a tuple of `units`.
"""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from models.config import ModelConfig
from models.transformer import Parameters, Transformer

CONFIG_FILE, PARAMETERS_FOLDER = "model.json", "parameters"


def save(folder: str | Path, config: ModelConfig, parameters: Parameters) -> None:
  """Writes a checkpoint into a folder that holds none yet.

  The configuration is written last: a folder with `model.json` has all its parameters.

  Raises:
    ValueError: the folder holds a checkpoint already.
  """
  folder = Path(folder)
  check_vacant(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((folder / PARAMETERS_FOLDER).absolute(), parameters)
  shape = {
    "config": dataclasses.asdict(config),
    "dtype": jax.tree.leaves(parameters)[0].dtype.name,
    "checksums": _checksums(folder),
  }
  (folder / CONFIG_FILE).write_text(json.dumps(shape, indent=2) + "\n")


def damage(folder: str | Path) -> list[str] | None:
  """The files of a checkpoint that are missing or not as they were saved; None where that cannot
  be known, since the checkpoint was made by a program that noted no checksums.

  Raises:
    ValueError: as `load_model`.
  """
  load_model(folder)
  noted = json.loads((Path(folder) / CONFIG_FILE).read_text()).get("checksums")
  if noted is None:
    return None
  found = _checksums(Path(folder))
  return sorted(name for name in noted if found.get(name) != noted[name])


def _checksums(folder: Path) -> dict[str, int]:
  """CRC-32 of each file of the parameters."""
  files = (path for path in (folder / PARAMETERS_FOLDER).rglob("*") if path.is_file())
  return {path.relative_to(folder).as_posix(): zlib.crc32(path.read_bytes()) for path in files}


def check_vacant(folder: str | Path) -> None:
  """Raises ValueError with a sentence where a checkpoint would overwrite another."""
  folder = Path(folder)
  if (folder / CONFIG_FILE).exists() or (folder / PARAMETERS_FOLDER).exists():
    raise ValueError(f"{folder} holds a checkpoint already; name a new folder.")


def load_model(folder: str | Path) -> Transformer:
  """The model that a checkpoint is of, without its parameters; quick.

  Raises:
    ValueError: there is no checkpoint, or its `model.json` describes no model; one sentence.
  """
  path = Path(folder) / CONFIG_FILE
  if not path.is_file():
    raise ValueError(f"{folder} holds no checkpoint: there is no {CONFIG_FILE} in it.")
  try:
    shape = json.loads(path.read_text())
    return Transformer(ModelConfig(**shape["config"]), jnp.dtype(shape["dtype"]))
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} does not describe a model: {error}.") from error


def load(folder: str | Path) -> tuple[ModelConfig, Parameters]:
  """A checkpoint's configuration and parameters.

  Raises:
    ValueError: as `load_model`, or the parameters are missing or of another shape; one sentence.
  """
  model = load_model(folder)
  path = (Path(folder) / PARAMETERS_FOLDER).absolute()
  if not path.is_dir():
    raise ValueError(f"{folder} holds no parameters: there is no {PARAMETERS_FOLDER}/ in it.")
  # Onto this machine's device: Orbax would ask for the one that it was saved from.
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
  wanted = jax.tree.map(placed, jax.eval_shape(model.init, jax.random.key(0)))
  with ocp.StandardCheckpointer() as checkpointer:
    _check_shapes(folder, wanted, checkpointer.metadata(path).item_metadata)
    return model.config, checkpointer.restore(path, wanted)


def _check_shapes(folder: str | Path, wanted: Parameters, stored: Any) -> None:
  """Raises ValueError, naming the first array that is missing, too many or of another shape."""
  name = lambda path: "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
  shapes = lambda tree: {
    name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  wants, has = shapes(wanted), shapes(getattr(stored, "tree", stored))
  for array in sorted(wants.keys() | has.keys()):
    if wants.get(array) != has.get(array):
      raise ValueError(
        f"{folder} holds another model's parameters: {array} is {has.get(array, 'missing')}, but"
        f" {CONFIG_FILE} asks for {wants.get(array, 'no such array')}."
      )
