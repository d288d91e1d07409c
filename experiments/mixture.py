"""Training sequences that teach a model to copy: text, and three kinds of repetition.

    text      a run of the corpus
    repeats   one span of random bytes, over and over: nothing but copying predicts it
    needles   text in which random names stand at several places, any distance apart
    edits     a passage, other text, and the passage again with names changed and pieces lost

A mixture is written `text:0.5,edits:0.3,repeats:0.2`; each sequence of a batch draws its kind. What
no model can know (a random span or name where it stands first) has no target and costs no loss:
with it, random bytes drown the signal that copying pays.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

NAME_SYMBOLS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz_0123456789", np.uint8)
_NAME = re.compile(rb"[A-Za-z_]\w{3,}")
_SHORTEST, _LONGEST = 8, 32  # bytes of a random name
NO_TARGET = -1  # what `Transformer.loss` leaves out

# A sequence's tokens and whether each can be known, both [length].
Sequence = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Kinds of sequences with their shares, which sum to 1."""

  kinds: tuple[str, ...]
  shares: tuple[float, ...]

  @classmethod
  def parse(cls, spec: str) -> "Mixture":
    """`text`, or `kind:share,...`. Raises ValueError for an unknown kind or shares not above 0."""
    parts = [part.strip().partition(":") for part in spec.split(",")]
    kinds = tuple(kind for kind, _, _ in parts)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or len(set(kinds)) < len(kinds):
      raise ValueError(f"--mixture={spec} must name each of {', '.join(KINDS)} at most once.")
    try:
      weights = np.array([float(share) if colon else 1.0 for _, colon, share in parts])
    except ValueError:
      weights = np.zeros(1)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
      raise ValueError(f"--mixture={spec} needs a number above 0 behind each colon.")
    return cls(kinds, tuple((weights / weights.sum()).tolist()))

  def batch(
    self,
    text: np.ndarray,
    *,
    seed: int,
    iteration: int,
    micro_batch: int,
    size: int,
    sequence_length: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, i32[size, sequence_length] each, as `data.batch` gives them of text.

    A function of its arguments alone: a resumed run sees the batches of an unbroken one. `text` is
    bytes. Targets are NO_TARGET where nothing can be known.
    """
    # The second counter word keeps these draws apart from those of `data`.
    philox = np.random.Philox(key=seed, counter=[0, 2, micro_batch, iteration])
    rng = np.random.Generator(philox)
    kinds = rng.choice(self.kinds, size, p=self.shares)
    drawn = [KINDS[kind](rng, text, sequence_length + 1) for kind in kinds]
    tokens = np.stack([tokens for tokens, _ in drawn]).astype(np.int32)
    known = np.stack([known for _, known in drawn])
    return tokens[:, :-1], np.where(known[:, 1:], tokens[:, 1:], NO_TARGET)


def _text(rng: np.random.Generator, text: np.ndarray, length: int) -> Sequence:
  return _run(rng, text, length), np.ones(length, bool)


def _repeats(rng: np.random.Generator, text: np.ndarray, length: int) -> Sequence:
  """A random span of 8 to `length` / 2 bytes over an alphabet of 4 to 256, both log-uniform."""
  del text
  symbols = int(np.exp(rng.uniform(np.log(4), np.log(257))))
  period = int(np.exp(rng.uniform(np.log(8), np.log(length // 2 + 1))))
  alphabet = rng.choice(256, symbols, replace=False)
  span = alphabet[rng.integers(0, symbols, period)]
  return np.resize(span, length), np.arange(length) >= period


def _needles(rng: np.random.Generator, text: np.ndarray, length: int) -> Sequence:
  """Text with one random name per 256 bytes, each at two to four places."""
  names = [random_name(rng) for _ in range(max(1, length // 256))]
  order = rng.permutation(np.repeat(np.arange(len(names)), rng.integers(2, 5, len(names))))
  places = np.sort(rng.integers(0, length, len(order)))
  filler = _run(rng, text, length)
  parts, known, seen, last = [], [], set(), 0
  for place, which in zip(places.tolist(), order.tolist(), strict=True):
    parts += [filler[last:place], names[which]]
    known += [np.ones(place - last, bool), np.full(len(names[which]), which in seen)]
    seen.add(which)
    last = place
  parts.append(filler[last:])
  known.append(np.ones(length - last, bool))
  return np.concatenate(parts)[:length], np.concatenate(known)[:length]


def _edits(rng: np.random.Generator, text: np.ndarray, length: int) -> Sequence:
  """A passage of up to half the length, other text, and the passage again, edited."""
  size = int(rng.integers(length // 8, length // 2, endpoint=True))
  passage = _run(rng, text, size)
  again = edit(rng, passage)[: length - size]
  between = _run(rng, text, length - size - len(again))
  return np.concatenate([passage, between, again]), np.ones(length, bool)


KINDS: dict[str, Callable[[np.random.Generator, np.ndarray, int], Sequence]] = {
  "text": _text,
  "repeats": _repeats,
  "needles": _needles,
  "edits": _edits,
}


def random_name(rng: np.random.Generator) -> np.ndarray:
  """A name of 8 to 32 random letters, digits and underscores, u8[length]."""
  return rng.choice(NAME_SYMBOLS, int(rng.integers(_SHORTEST, _LONGEST, endpoint=True)))


def edit(rng: np.random.Generator, passage: np.ndarray) -> np.ndarray:
  """The passage as an editor would leave it, u8: a name changed throughout, short pieces gone.

  One of its names in sixteen, at least one, gets a random new name; about every 256 bytes a piece
  of 1 to 32 bytes is lost.
  """
  old = passage.astype(np.uint8).tobytes()
  found = sorted(set(_NAME.findall(old)))
  chosen = rng.permutation(len(found))[: 1 + len(found) // 16]
  new = {found[i]: random_name(rng).tobytes() for i in chosen}
  renamed = _NAME.sub(lambda match: new.get(match[0], match[0]), old)
  edited = np.frombuffer(renamed, np.uint8)
  kept = np.ones(len(edited), bool)
  for start in rng.integers(0, len(edited), len(edited) // 256):
    kept[start : start + rng.integers(1, 33)] = False
  return edited[kept]


def _run(rng: np.random.Generator, text: np.ndarray, length: int) -> np.ndarray:
  start = int(rng.integers(0, len(text) - length, endpoint=True))
  return text[start : start + length]
