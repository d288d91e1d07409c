"""Checksums of arrays, a block at a time, so that a bad byte is named by its place."""

import zlib

import numpy as np

BLOCK = 4 * 2**20  # bytes


class Corrupt(ValueError):  # noqa: N818 (it says what the bytes are)
  """Bytes on disk are not those that were written; the message says which."""


def checksums(array: np.ndarray) -> list[int]:
  """CRC-32 of each block of a contiguous array's bytes."""
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
  return [zlib.crc32(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]


def verify(name: str, array: np.ndarray, expected: list[int]) -> None:
  """Raises `Corrupt`, naming the array and the offset of its first bad block."""
  found = checksums(array)
  if found == expected:
    return
  pairs = zip(found, expected, strict=False)
  at = BLOCK * next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
  raise Corrupt(f"{name}: bytes {at} to {at + BLOCK - 1} are not those that were written there.")
