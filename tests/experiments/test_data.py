"""Data: a deterministic split by file, stateless batches, prompts, and the bigram's bits."""

import dataclasses
import itertools

import numpy as np
import pytest

from experiments import data


@pytest.fixture(scope="module")
def stdlib():
  return data.load_corpus("stdlib")


@pytest.fixture
def folder(tmp_path):
  """Forty files whose bytes name the file, so that every token tells where it is from."""
  for i in range(40):
    (tmp_path / f"sub{i % 3}").mkdir(exist_ok=True)
    (tmp_path / f"sub{i % 3}" / f"file{i}.txt").write_bytes(bytes([100 + i]) * (50 + i))
  return tmp_path


def test_stdlib_is_large_text_and_the_same_each_time(stdlib):
  again = data.load_corpus("stdlib")
  assert stdlib.vocabulary == 256
  assert len(stdlib.train) > 4_000_000
  assert 0.03 < len(stdlib.heldout) / len(stdlib.train) < 0.2
  np.testing.assert_array_equal(stdlib.train, again.train)
  np.testing.assert_array_equal(stdlib.heldout, again.heldout)
  parts = {part for name, _, _ in stdlib.files for part in name.split("/")}
  assert not parts & {"site-packages", "test", "tests", "encodings", "pydoc_data"}


def test_the_split_is_by_file(folder):
  corpus = data.load_corpus(str(folder))
  assert corpus.files and not set(corpus.train.tolist()) & set(corpus.heldout.tolist())
  assert len(corpus.train) + len(corpus.heldout) == sum(50 + i for i in range(40))
  for name, start, stop in corpus.files:
    assert (folder / name).read_bytes() == corpus.heldout[start:stop].tobytes()


def test_a_new_file_moves_no_other(folder):
  before = {name for name, _, _ in data.load_corpus(str(folder)).files}
  (folder / "new.txt").write_bytes(b"new")
  after = {name for name, _, _ in data.load_corpus(str(folder)).files}
  assert after - {"new.txt"} == before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_files_still_give_both_sides(tmp_path, count):
  for i in range(count):
    (tmp_path / f"{i}.txt").write_text(f"{i}" * 100)
  corpus = data.load_corpus(str(tmp_path))
  assert len(corpus.train) and len(corpus.heldout)
  assert len(corpus.train) + len(corpus.heldout) == 100 * count


def test_hidden_and_binary_files_are_left_out(folder):
  (folder / ".hidden").write_bytes(b"h" * 999)
  (folder / "image").write_bytes(b"\x89PNG\0" * 999)
  corpus = data.load_corpus(str(folder))
  assert len(corpus.train) + len(corpus.heldout) == sum(50 + i for i in range(40))


def test_token_files(tmp_path):
  tokens = np.arange(1000) % 300
  np.save(tmp_path / "tokens.npy", tokens)
  tokens.astype("<u2").tofile(tmp_path / "tokens.bin")
  for name in ("tokens.npy", "tokens.bin"):
    corpus = data.load_corpus(str(tmp_path / name), heldout_fraction=0.25)
    assert corpus.vocabulary == 300
    np.testing.assert_array_equal(corpus.train, tokens[:750])
    np.testing.assert_array_equal(corpus.heldout, tokens[750:])


def test_mistakes_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"--data=.* holds no text file\."):
    data.load_corpus(str(tmp_path))
  with pytest.raises(ValueError, match="no such folder or file"):
    data.load_corpus(str(tmp_path / "missing"))
  np.save(tmp_path / "square.npy", np.zeros((2, 2), np.int32))
  with pytest.raises(ValueError, match="one axis of token numbers"):
    data.load_corpus(str(tmp_path / "square.npy"))
  (tmp_path / "one.txt").write_text("x")
  with pytest.raises(ValueError, match="too few to train"):
    data.load_corpus(str(tmp_path / "one.txt"))
  with pytest.raises(ValueError, match="too few for --sequence_length=64"):
    data.check_length(np.zeros(64, np.uint8), 64)


def test_batches_are_runs_of_the_text_and_functions_of_their_arguments():
  tokens = np.arange(5000)
  draw = lambda **changed: data.batch(
    tokens,
    **{"seed": 1, "iteration": 7, "micro_batch": 2, "size": 4, "sequence_length": 16} | changed,
  )
  inputs, targets = draw()
  assert inputs.shape == targets.shape == (4, 16) and inputs.dtype == targets.dtype == np.int32
  np.testing.assert_array_equal(targets, inputs + 1)
  np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
  draw(iteration=8), draw(micro_batch=0)  # drawing others leaves no trace
  np.testing.assert_array_equal(draw()[0], inputs)
  for changed in ({"seed": 2}, {"iteration": 8}, {"micro_batch": 3}):
    assert not np.array_equal(draw(**changed)[0], inputs)


def test_skipping_positions_ascend_and_cover_the_span():
  draw = lambda **changed: data.skipping_positions(
    **{"seed": 1, "iteration": 7, "micro_batch": 2, "size": 64, "sequence_length": 32, "span": 500}
    | changed
  )
  positions = draw()
  assert positions.shape == (64, 32) and positions.dtype == np.int32
  steps = np.diff(positions, axis=1)
  assert (steps >= 1).all() and ((steps > 1).sum(axis=1) <= 3).all() and (steps > 1).any()
  assert positions.min() >= 0 and 450 < positions.max() < 500
  np.testing.assert_array_equal(positions, draw())
  assert not np.array_equal(positions, draw(iteration=8))
  assert draw(span=32).tolist() == [list(range(32))] * 64
  with pytest.raises(ValueError, match="cannot hold"):
    draw(span=31)


def test_batches_reach_the_first_and_the_last_token():
  inputs, targets = data.batch(
    np.arange(10), seed=0, iteration=0, micro_batch=0, size=500, sequence_length=8
  )
  assert inputs.min() == 0 and targets.max() == 9


def test_prompts_come_from_single_files_where_files_are_long_enough(folder):
  corpus = data.load_corpus(str(folder), heldout_fraction=0.3)
  prompts = corpus.heldout_prompts(3, 60, seed=0)
  assert prompts.shape == (3, 60)
  assert [len(set(row)) for row in prompts.tolist()] == [1, 1, 1]
  assert len({row[0] for row in prompts.tolist()}) == 3, "each from a file of its own"
  np.testing.assert_array_equal(prompts, corpus.heldout_prompts(3, 60, seed=0))
  assert corpus.heldout_prompts(2, 200, seed=0).shape == (2, 200)
  with pytest.raises(ValueError, match="fewer than a prompt"):
    corpus.heldout_prompts(1, 10**6, seed=0)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_bigram_bits_by_hand(chunk, monkeypatch):
  """Against the formula written out pair by pair, on text with unseen pairs, counted in pieces."""
  monkeypatch.setattr(data, "_CHUNK", chunk)
  train, heldout, vocabulary = [0, 1, 0, 1, 2, 0, 1], [0, 1, 0, 2, 2, 1, 2, 0, 1, 0], 3
  corpus = data.Corpus("x", np.array(train), np.array(heldout), vocabulary, ())
  weight, bits = vocabulary / 16, 0.0
  for last, following in itertools.pairwise(heldout):
    unigram = (train.count(following) + 1) / (len(train) + vocabulary)
    pair = sum(p == (last, following) for p in itertools.pairwise(train))
    bits -= np.log2((pair + weight * unigram) / (train.count(last) + weight))
  assert data.bigram_bits(corpus) == pytest.approx(bits / (len(heldout) - 1))
  with pytest.raises(ValueError, match="x: 1 held-out tokens hold no pair"):
    data.bigram_bits(dataclasses.replace(corpus, heldout=np.array([1])))


def test_bigram_bits_of_the_stdlib_lie_between_a_good_model_and_single_bytes(stdlib):
  counts = np.bincount(stdlib.train, minlength=256) + 1
  unigram_bits = -np.log2(counts / counts.sum())[stdlib.heldout].mean()
  assert 2.5 < data.bigram_bits(stdlib) < unigram_bits - 0.5


def test_a_description_tells_changed_contents_from_the_same(tmp_path):
  """A run goes on only with the same: one byte of one file, in either part, makes another."""
  for name in "abcdefgh":
    (tmp_path / name).write_text(name * 50)
  seen = {data.load_corpus(str(tmp_path)).description}
  assert seen == {data.load_corpus(str(tmp_path)).description}
  for name in "abcdefgh":
    (tmp_path / name).write_text("x" + name * 49)
    seen.add(data.load_corpus(str(tmp_path)).description)
  assert len(seen) == 9
