"""Text as tokens, split by file, and batches that are a function of their arguments alone.

The default corpus, `stdlib`, is the sources of the running Python's standard library, as bytes:
present on every machine, real text with long-range structure. Left out are installed packages,
tests (many distributions ship without them), and generated tables (`encodings`, `pydoc_data`,
`_sysconfigdata*`), which are alike from file to file and would flatter a model.
"""

import dataclasses
import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

_NOT_STDLIB = {"site-packages", "dist-packages", "lib-dynload", "test", "tests", "idle_test"}
_GENERATED = {"encodings", "pydoc_data"}
_CHUNK = 2**18  # tokens that are counted at one time


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokens for training and held-out tokens; no file gives to both.

  `files` are the held-out files as (name, start, stop) in `heldout`; a token file has none.
  """

  name: str
  train: np.ndarray  # [tokens], an unsigned integer type
  heldout: np.ndarray
  vocabulary: int
  files: tuple[tuple[str, int, int], ...]

  @functools.cached_property
  def description(self) -> str:
    """The name, and what tells it from one of the same name whose contents have changed."""
    digest = hashlib.sha256(np.ascontiguousarray(self.train).data)
    digest.update(np.ascontiguousarray(self.heldout).data)
    count = len(self.train) + len(self.heldout)
    return f"{self.name} ({count} tokens, sha256 {digest.hexdigest()[:16]})"

  def heldout_prompts(self, count: int, length: int, seed: int) -> np.ndarray:
    """`count` held-out prompts, i32[count, length], each a run of tokens.

    From different files where enough are `length` long, else from anywhere in the held-out part.
    Raises ValueError if the held-out part is shorter than `length`.
    """
    if len(self.heldout) < length:
      raise ValueError(
        f"{self.name}: {len(self.heldout):,} held-out tokens are fewer than a prompt of {length:,}."
      )
    rng = np.random.default_rng(seed)
    long = [(start, stop) for _, start, stop in self.files if stop - start >= length]
    if len(long) >= count:
      spans = [long[i] for i in rng.permutation(len(long))[:count]]
    else:
      spans = [(0, len(self.heldout))] * count
    starts = [int(rng.integers(start, stop - length, endpoint=True)) for start, stop in spans]
    return np.stack([self.heldout[s : s + length] for s in starts]).astype(np.int32)


def load_corpus(spec: str, *, heldout_fraction: float = 0.1) -> Corpus:
  """`stdlib`, a folder of text files, one text file, or a token file.

  Token files are `.npy` (one axis, any integer type) or `.bin` (uint16, little-endian). Text is
  taken as bytes, files in the order of their paths with nothing in between. A file is held out by a
  hash of its relative path, so that adding files moves no other file to the other side; one file,
  and a token file, give their last tokens.

  Raises ValueError if there is nothing to read or too little to split.
  """
  if not 0 < heldout_fraction < 1:
    raise ValueError(f"heldout_fraction must be between 0 and 1, not {heldout_fraction}.")
  path = Path(sysconfig.get_paths()["stdlib"] if spec == "stdlib" else spec)
  if not path.exists():
    raise ValueError(f"--data={spec}: there is no such folder or file; 'stdlib' needs none.")
  if path.is_file():
    return _split_end(spec, _read_tokens(path), heldout_fraction)
  files = _python_files(path) if spec == "stdlib" else _text_files(path)
  if not files:
    raise ValueError(f"--data={spec} holds no text file.")
  if len(files) == 1:
    return _split_end(spec, _bytes(files[0]), heldout_fraction)
  return _split_files(spec, path, files, heldout_fraction)


def batch(
  tokens: np.ndarray,
  *,
  seed: int,
  iteration: int,
  micro_batch: int,
  size: int,
  sequence_length: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets, i32[size, sequence_length] each, targets one token ahead.

  The sequences start at places drawn by a counter-based generator (Philox) at the counter
  (iteration, micro_batch): there is no state, so a resumed run sees the batches of an unbroken one.
  """
  check_length(tokens, sequence_length)
  philox = np.random.Philox(key=seed, counter=[0, 0, micro_batch, iteration])
  last = len(tokens) - sequence_length - 1
  starts = np.random.Generator(philox).integers(0, last, size=size, endpoint=True)
  rows = tokens[starts[:, None] + np.arange(sequence_length + 1)].astype(np.int32)
  return rows[:, :-1], rows[:, 1:]


def skipping_positions(
  *, seed: int, iteration: int, micro_batch: int, size: int, sequence_length: int, span: int
) -> np.ndarray:
  """Ascending positions below `span` for a batch, i32[size, sequence_length], with some jumps.

  Positional skip-wise training (PoSE, arXiv 2309.10400): each sequence is cut at three random
  places, and what follows a cut is moved on by a random gap, so that short sequences show the model
  every distance of a context of `span` tokens. Without it a model with rotary positions reads text
  badly beyond the length that it was trained at. Stateless, like `batch`.

  Raises ValueError if `span` is shorter than a sequence.
  """
  if span < sequence_length:
    raise ValueError(f"A span of {span} positions cannot hold {sequence_length} tokens.")
  # The second counter word keeps these draws apart from those of `batch`.
  philox = np.random.Philox(key=seed, counter=[0, 1, micro_batch, iteration])
  rng = np.random.Generator(philox)
  cuts = rng.integers(0, sequence_length, (size, 3), endpoint=True)
  shifts = np.sort(rng.integers(0, span - sequence_length, (size, 3), endpoint=True), axis=1)
  gaps = np.diff(shifts, axis=1, prepend=0)
  passed = np.arange(sequence_length)[None, :, None] >= np.sort(cuts, axis=1)[:, None, :]
  moved = (passed * gaps[:, None, :]).sum(axis=2)
  return (np.arange(sequence_length) + moved).astype(np.int32)


def check_length(tokens: np.ndarray, sequence_length: int) -> None:
  """Raises ValueError if no sequence with its targets fits into the tokens."""
  if len(tokens) <= sequence_length:
    raise ValueError(
      f"--data gives {len(tokens):,} tokens, too few for --sequence_length={sequence_length}."
    )


def bigram_bits(corpus: Corpus) -> float:
  """Held-out bits per token (per byte, for text) of a bigram model counted on `train`.

  P(next | last) = (count(last, next) + w p(next)) / (count(last) + w), w = vocabulary / 16, where p
  is the unigram distribution, itself add-one smoothed. A little better than add-one counts.

  Raises:
    ValueError: there are fewer than two held-out tokens.
  """
  vocabulary = corpus.vocabulary
  if len(corpus.heldout) < 2:
    raise ValueError(f"{corpus.name}: {len(corpus.heldout)} held-out tokens hold no pair.")
  asked, uses = _counted(_pairs(corpus.heldout, vocabulary))
  counts, seen = np.zeros(vocabulary, np.int64), np.zeros(len(asked), np.int64)
  for pairs in _pairs(corpus.train, vocabulary):  # of the training text only what is asked for
    counts += np.bincount(pairs // vocabulary, minlength=vocabulary)
    place = np.minimum(np.searchsorted(asked, pairs), len(asked) - 1)
    seen += np.bincount(place[asked[place] == pairs], minlength=len(asked))
  counts[corpus.train[-1]] += 1  # the last token begins no pair
  unigram = (counts + 1) / (len(corpus.train) + vocabulary)
  last, following = np.divmod(asked, vocabulary)
  weight = vocabulary / 16
  probability = (seen + weight * unigram[following]) / (counts[last] + weight)
  return float(-(uses * np.log2(probability)).sum() / uses.sum())


def _counted(chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """The distinct numbers of all chunks, ascending, and how often each is there."""
  values, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
  waiting: list[np.ndarray] = []

  def merge() -> None:
    nonlocal values, counts
    new, more = np.unique(np.concatenate(waiting), return_counts=True)
    values, place = np.unique(np.concatenate([values, new]), return_inverse=True)
    every = np.concatenate([counts, more])
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, place, every)
    waiting.clear()

  for chunk in chunks:
    waiting.append(chunk)
    if sum(map(len, waiting)) >= len(values):  # seldom enough that merging takes little
      merge()
  if waiting:
    merge()
  return values, counts


def _pairs(tokens: np.ndarray, vocabulary: int) -> Iterator[np.ndarray]:
  """Each token with the next, as one number, in chunks: tokens may be more than memory holds."""
  for start in range(0, len(tokens) - 1, _CHUNK):
    wide = tokens[start : start + _CHUNK + 1].astype(np.int64)
    yield wide[:-1] * vocabulary + wide[1:]


def _python_files(root: Path) -> list[Path]:
  left_out = _NOT_STDLIB | _GENERATED
  return sorted(
    path
    for path in root.rglob("*.py")
    if not left_out & set(path.relative_to(root).parts)
    and not path.name.startswith("_sysconfigdata")
  )


def _text_files(root: Path) -> list[Path]:
  """Files below `root`: not empty, not hidden, no zero byte in the first 8 KiB."""

  def is_text(path: Path) -> bool:
    with open(path, "rb") as file:
      start = file.read(8192)
    return bool(start) and b"\0" not in start

  shown = lambda path: not any(part.startswith(".") for part in path.relative_to(root).parts)
  return sorted(p for p in root.rglob("*") if p.is_file() and shown(p) and is_text(p))


def _bytes(path: Path) -> np.ndarray:
  return np.fromfile(path, np.uint8)


def _read_tokens(path: Path) -> np.ndarray:
  if path.suffix == ".bin":
    return np.memmap(path, "<u2", "r")
  if path.suffix != ".npy":
    return _bytes(path)
  tokens = np.load(path, mmap_mode="r")
  if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or (len(tokens) and tokens.min() < 0):
    raise ValueError(f"--data={path} must hold one axis of token numbers, none negative.")
  return tokens


def _split_end(name: str, tokens: np.ndarray, fraction: float) -> Corpus:
  cut = len(tokens) - max(1, round(len(tokens) * fraction))
  if cut < 2:
    raise ValueError(f"--data={name} holds {len(tokens)} tokens; too few to train and to hold out.")
  vocabulary = 256 if tokens.dtype == np.uint8 else int(tokens.max()) + 1
  return Corpus(name, tokens[:cut], tokens[cut:], vocabulary, ())


def _split_files(name: str, root: Path, files: list[Path], fraction: float) -> Corpus:
  names = [path.relative_to(root).as_posix() for path in files]
  places = [_place(file_name) for file_name in names]
  # With few files one side may stay empty: the file nearest to the cut then changes sides.
  cut = min(max(fraction, min(places)), sorted(places)[-2])
  held = [place <= cut for place in places]
  train = np.concatenate([_bytes(p) for p, out in zip(files, held, strict=True) if not out])
  parts = [(n, _bytes(p)) for n, p, out in zip(names, files, held, strict=True) if out]
  ends = np.cumsum([len(part) for _, part in parts]).tolist()
  spans = tuple((n, end - len(part), end) for (n, part), end in zip(parts, ends, strict=True))
  return Corpus(name, train, np.concatenate([part for _, part in parts]), 256, spans)


def _place(name: str) -> float:
  """A file's fixed place in [0, 1)."""
  digest = hashlib.sha256(os.fsencode(name)).digest()
  return int.from_bytes(digest[:7], "big") / 2**56
