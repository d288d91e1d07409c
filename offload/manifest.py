"""What makes a folder a store: `store.json`, with the configuration that its arrays belong to."""

import dataclasses
import json
import pathlib
import uuid
import zlib
from collections.abc import Mapping
from typing import Any

from offload import lock
from offload.checksums import Corrupt
from offload.durable import BESIDE, write_whole

NAME = "store.json"
_FORMAT = 3


@dataclasses.dataclass(frozen=True)
class Manifest:
  """`id` is in the attributes of every array that the store made: no other is touched."""

  id: str
  configuration: Mapping[str, Any]


def check(folder: pathlib.Path, configuration: Mapping[str, Any]) -> Manifest | None:
  """The manifest of a store of this configuration, or None where a new one may be made.

  Raises:
    ValueError: the folder is something else, or the store is of another configuration: says which
      flags differ.
    Corrupt: the manifest is not as it was written.
  """
  if folder.exists() and not folder.is_dir():
    raise ValueError(f"--store={folder} is a file: name a folder.")
  if not (folder / NAME).exists():
    ours = (lock.NAME, f"{NAME}{BESIDE}")
    if folder.exists() and any(path.name not in ours for path in folder.iterdir()):
      raise ValueError(f"--store={folder} holds files that are no store: name an empty folder.")
    return None
  found = read(folder)
  names = sorted({*found.configuration, *configuration})
  differing = [n for n in names if found.configuration.get(n) != configuration.get(n)]
  if differing:
    said = ", ".join(f"--{n}={found.configuration.get(n)}" for n in differing)
    raise ValueError(
      f"--store={folder} holds a run with {said}: give the same to go on with it, name another "
      "folder, or remove it."
    )
  return found


def read(folder: pathlib.Path) -> Manifest:
  """Raises:
  ValueError: there is no store.
  Corrupt: the manifest is not as it was written.
  """
  path = folder / NAME
  if not path.is_file():
    raise ValueError(f"--store={folder} holds no store: there is no {NAME} in it.")
  try:
    fields = json.loads(path.read_bytes())
    checksum = fields.pop("checksum")
    if checksum != _checksum(fields) or fields.pop("format") != _FORMAT:
      raise ValueError
    return Manifest(**fields)
  except (ValueError, KeyError, TypeError, AttributeError):
    raise Corrupt(f"{path} is not as it was written.") from None


def create(folder: pathlib.Path, configuration: Mapping[str, Any]) -> Manifest:
  """Writes a new store's manifest, in one piece."""
  fields = {"format": _FORMAT, "id": uuid.uuid4().hex, "configuration": dict(configuration)}
  text = json.dumps({**fields, "checksum": _checksum(fields)}, indent=2) + "\n"
  write_whole(folder / NAME, text.encode())
  return Manifest(fields["id"], json.loads(text)["configuration"])


def _checksum(fields: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(fields, sort_keys=True).encode())
