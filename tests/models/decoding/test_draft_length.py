"""The draft length that pays best, against expectations made by listing a round's every outcome."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.draft_length import Chooser, RoundSeconds, Seen, expected_tokens


def listed(chances, wanted):
  """Mean tokens of a round of drafts that stand with `chances`, over all outcomes one by one."""
  mean = 0.0
  for outcome in itertools.product((True, False), repeat=len(chances)):
    weight = np.prod([p if stands else 1 - p for p, stands in zip(chances, outcome, strict=True)])
    accepted = next((i for i, stands in enumerate(outcome) if not stands), len(outcome))
    mean += weight * min(accepted + 1, wanted)
  return mean


@functools.partial(jax.jit, static_argnames="lengths")
def choose(chooser, lengths, seconds, remaining):
  return chooser.choose(lengths, seconds, remaining)


after = functools.partial(jax.jit, static_argnames="lengths")(Chooser.after)


def chosen(seconds, remaining, chooser):
  """Draft length and rounds of a stretch; `seconds` by draft length."""
  stretch = stretch_of(seconds, remaining, chooser)
  length = [*seconds][int(stretch.index)]
  assert stretch.even == pytest.approx(seconds[length] / seconds[0])
  return length, int(stretch.rounds)


def stretch_of(seconds, remaining, chooser):
  costs = jnp.array([*seconds.values()])
  return choose(chooser, tuple(seconds), costs, jnp.array(remaining))


def certain(chances, weight=1e6):
  """A chooser that has seen drafts of each position stand so often."""
  reached = jnp.full(len(chances), weight)
  return Chooser.fresh(len(chances))._replace(seen=Seen(reached, reached * jnp.array(chances)))


@pytest.mark.parametrize("seed", range(20))
def test_the_best_length_is_the_one_of_most_tokens_a_second(seed):
  rng = np.random.default_rng(seed)
  chances, lengths = rng.uniform(0.3, 1, 6), (0, 1, 2, 4, 6)
  standing = jnp.array(np.cumprod(chances))
  seconds = {g: float(s) for g, s in zip(lengths, rng.uniform(1, 4, 5), strict=True)}
  remaining = rng.integers(1, 12, 3)
  every = {g: sum(listed(chances[:g], wanted) for wanted in remaining) for g in lengths}
  with_one_that_ended = jnp.array([*remaining, 0])
  expected = expected_tokens(standing, lengths, with_one_that_ended)
  np.testing.assert_allclose(expected, [*every.values()], rtol=1e-5)
  fastest = max(lengths, key=lambda g: every[g] / seconds[g])
  assert chosen(seconds, with_one_that_ended, certain(chances))[0] == fastest


@pytest.mark.parametrize("alpha", [0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("step", [0.05, 0.2, 0.6])
def test_with_one_chance_and_even_steps_it_is_the_published_rule(alpha, step):
  """Lengthen as long as alpha^(g+1) / tau > c_d / (g c_d + c_v)."""
  verify, published = 1.3, 0
  tau = lambda g: sum(alpha**i for i in range(g + 1))
  while alpha ** (published + 1) / tau(published) > step / (published * step + verify):
    published += 1
  seconds = {g: g * step + verify for g in range(60)}
  assert chosen(seconds, [1000], certain([alpha] * 59))[0] == published


def test_standing_is_the_mean_of_texts_with_chances_of_their_own():
  """Rounds of several lengths, many of them: a position's chance is seen where it was reached."""
  rng = np.random.default_rng(0)
  chances, found, see = [0.9, 0.5, 0.8], [], jax.jit(Seen.after)
  for _ in range(40):
    seen = Seen.nothing(3)
    for length in rng.choice([1, 2, 3], 400):
      stands = [*(rng.random(length) < chances[:length]), False]
      seen = see(seen, length, np.eye(4, dtype=int)[stands.index(False)])
    found.append(seen.standing())
  np.testing.assert_allclose(np.mean(found, axis=0), [0.9, 0.45, 0.36], atol=0.03)


def test_what_was_seen_long_ago_counts_less():
  seen = Seen.nothing(1).after(jnp.int32(1), jnp.array([200, 0]))
  seen = seen.after(jnp.int32(1), jnp.array([0, 200]))
  assert seen.standing()[0] > 0.85  # and not half


def test_costs_lie_on_a_line_between_contexts():
  costs = RoundSeconds(jnp.array([100.0, 300.0]), jnp.array([1.0, 3.0]), jnp.array([2.0, 3.0]))
  assert costs.at(jnp.float32(150)).tolist() == [1.25, 3.0]
  assert costs.at(jnp.float32(1))[0] == 1.0 and costs.at(jnp.float32(900))[0] == 2.0


def simulate(seconds, alpha, wanted, seed=1):
  """Seconds a token of a text whose drafts stand with chance alpha(token), and stretches used."""
  rng, chooser = np.random.default_rng(seed), Chooser.fresh(max(seconds))
  emitted, spent, used = 0, 0.0, []
  while emitted < wanted:
    stretch = stretch_of(seconds, [wanted - emitted], chooser)
    length, rounds = [*seconds][int(stretch.index)], 0
    counts = [0] * (max(seconds) + 1)
    while rounds < stretch.rounds and emitted < wanted:
      stood = rng.random(length) < alpha(emitted)
      accepted = int(np.cumprod(stood).sum())
      counts[accepted] += 1
      emitted, rounds = emitted + accepted + 1, rounds + 1
      spent += seconds[length]
    ran = stretch._replace(rounds=rounds)
    chooser = after(chooser, tuple(seconds), ran, np.array(counts))
    used.append((length, rounds))
  return spent / emitted, used


SECONDS = {0: 1.0, **{g: 1.3 + 0.25 * g for g in (1, 2, 4, 6, 8, 12)}}


CHEAP = {0: 1.0, **{g: 1.1 + 0.1 * g for g in (1, 2, 4, 6, 8, 12)}}


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_tries_grow_rare_where_drafts_are_cheap_too(alpha):
  """There a failed try is followed by stretches that are none, and fail as well."""
  spent, used = simulate(CHEAP, lambda _: alpha, 3000)
  assert max(rounds for length, rounds in used if not length) >= 256
  assert spent < 1.05


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6, 0.8, 0.95])
def test_choosing_costs_little_against_the_best_fixed_length(alpha):
  tau = lambda g: sum(alpha**i for i in range(g + 1))
  best = min(seconds / tau(g) for g, seconds in SECONDS.items())
  spent = [simulate(SECONDS, lambda _: alpha, 1500, seed)[0] for seed in range(4)]
  assert np.mean(spent) < 1.05 * best


def test_where_no_draft_could_pay_none_is_tried():
  seconds = {0: 1.0, 1: 2.5, 4: 6.0}
  assert {length for length, _ in simulate(seconds, lambda _: 1.0, 500)[1]} == {0}


def test_tries_that_fail_grow_rare():
  _, used = simulate(SECONDS, lambda _: 0.05, 3000)
  tries = sum(length > 0 for length, _ in used[10:])
  assert 3 <= tries <= 9  # 32, 64, ..., 512 rounds apart; 32 apart they would be 80


def test_a_text_that_begins_to_repeat_is_noticed():
  _, used = simulate(SECONDS, lambda token: 0.98 if token > 400 else 0.1, 1500)
  assert sum(rounds for length, rounds in used if length >= 6) > 50


def test_no_stretch_drafts_far_beyond_the_end():
  sure = certain([1.0] * 12, weight=50.0)
  assert chosen(SECONDS, [1], sure)[0] == 0
  assert chosen(SECONDS, [3], sure)[0] == 2
  assert chosen(SECONDS, [14], sure) == (12, 1)


def test_a_wait_that_was_cut_short_goes_on():
  waiting = certain([0.1] * 12)._replace(waited=jnp.int32(10), wait=jnp.int32(16))
  assert chosen(SECONDS, [100], waiting) == (0, 6)
  # A try, of the length that pays most if all stand.
  assert chosen(SECONDS, [100], waiting._replace(waited=jnp.int32(16))) == (12, 1)
  too_dear = {0: 1.0, 1: 2.5, 12: 20.0}
  assert chosen(too_dear, [100], waiting._replace(waited=jnp.int32(16)))[0] == 0


def test_only_a_try_is_judged_by_itself():
  """Drafts that win by themselves go on from what was seen, however long they had not."""
  known = certain([0.9] * 12)._replace(waited=jnp.int32(20), wait=jnp.int32(16))
  lengths, counts = tuple(SECONDS), np.eye(13, dtype=int)[0]
  stretch = stretch_of(SECONDS, [100], known)
  assert stretch.index > 0 and not stretch.tries
  assert after(known, lengths, stretch, counts).seen.reached[0] > 1e5
  tried = after(known, lengths, stretch._replace(tries=jnp.array(True)), counts)
  assert tried.seen.reached[0] == 1 and tried.wait == 32
