"""The draft length that pays best, against expectations made by listing a round's every outcome."""

import itertools

import numpy as np
import pytest

from models.decoding.draft_length import (
  Chooser,
  RoundSeconds,
  Seen,
  Stretch,
  best_length,
  expected_tokens,
)


def listed(chances, wanted):
  """Mean tokens of a round of drafts that stand with `chances`, over all outcomes one by one."""
  mean = 0.0
  for outcome in itertools.product((True, False), repeat=len(chances)):
    weight = np.prod([p if stands else 1 - p for p, stands in zip(chances, outcome, strict=True)])
    accepted = next((i for i, stands in enumerate(outcome) if not stands), len(outcome))
    mean += weight * min(accepted + 1, wanted)
  return mean


@pytest.mark.parametrize("seed", range(20))
def test_the_best_length_is_the_one_of_most_tokens_a_second(seed):
  rng = np.random.default_rng(seed)
  chances, lengths = rng.uniform(0.3, 1, 6), [0, 1, 2, 4, 6]
  standing = np.cumprod(chances).tolist()
  seconds = {g: float(s) for g, s in zip(lengths, rng.uniform(1, 4, 5), strict=True)}
  remaining = rng.integers(1, 12, 3).tolist()
  every = {g: sum(listed(chances[:g], wanted) for wanted in remaining) for g in lengths}
  for g in lengths:
    assert expected_tokens(standing, g, remaining) == pytest.approx(every[g])
  fastest = max(lengths, key=lambda g: every[g] / seconds[g])
  assert best_length(seconds, standing, remaining) == fastest


@pytest.mark.parametrize("alpha", [0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("step", [0.05, 0.2, 0.6])
def test_with_one_chance_and_even_steps_it_is_the_published_rule(alpha, step):
  """Lengthen as long as alpha^(g+1) / tau > c_d / (g c_d + c_v)."""
  verify, published = 1.3, 0
  tau = lambda g: sum(alpha**i for i in range(g + 1))
  while alpha ** (published + 1) / tau(published) > step / (published * step + verify):
    published += 1
  seconds = {g: g * step + verify for g in range(60)}
  standing = [alpha**i for i in range(1, 60)]
  assert best_length(seconds, standing, [1000]) == published


def test_standing_is_the_mean_of_texts_with_chances_of_their_own():
  """Rounds of several lengths, many of them: a position's chance is seen where it was reached."""
  rng = np.random.default_rng(0)
  chances, found = [0.9, 0.5, 0.8], []
  for _ in range(40):
    seen = Seen()
    for length in rng.choice([1, 2, 3], 400):
      stands = [*(rng.random(length) < chances[:length]), False]
      seen = seen.after(np.eye(length + 1, dtype=int)[stands.index(False)].tolist())
    found.append(seen.standing(3))
  np.testing.assert_allclose(np.mean(found, axis=0), [0.9, 0.45, 0.36], atol=0.03)


def test_what_was_seen_long_ago_counts_less():
  seen = Seen().after([200, 0]).after([0, 200])
  assert seen.standing(1)[0] > 0.85  # and not half


def test_costs_lie_on_a_line_between_contexts():
  costs = RoundSeconds((100, 300), {0: (1.0, 2.0), 4: (3.0, 3.0)})
  assert costs.at(150.0) == {0: 1.25, 4: 3.0}
  assert costs.at(1.0)[0] == 1.0 and costs.at(900.0)[0] == 2.0


def simulate(seconds, alpha, wanted):
  """Seconds a token of a text whose drafts stand with chance alpha(token), and lengths used."""
  rng, chooser, emitted, spent, used = np.random.default_rng(1), Chooser(), 0, 0.0, []
  while emitted < wanted:
    stretch = chooser.choose(seconds, [wanted - emitted])
    counts, rounds = [0] * (stretch.draft_length + 1), 0
    while rounds < stretch.rounds and emitted < wanted:
      stood = rng.random(stretch.draft_length) < alpha(emitted)
      accepted = int(np.cumprod(stood).sum())
      counts[accepted] += 1
      emitted, rounds = emitted + accepted + 1, rounds + 1
      spent += seconds[stretch.draft_length]
    chooser = chooser.after(stretch.draft_length, rounds, counts)
    used.append(stretch)
  return spent / emitted, used


SECONDS = {0: 1.0, **{g: 1.3 + 0.25 * g for g in (1, 2, 4, 6, 8, 12)}}


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6, 0.8, 0.95])
def test_choosing_costs_little_against_the_best_fixed_length(alpha):
  tau = lambda g: sum(alpha**i for i in range(g + 1))
  best = min(seconds / tau(g) for g, seconds in SECONDS.items())
  chosen, _ = simulate(SECONDS, lambda _: alpha, 1500)
  assert chosen < 1.05 * best


def test_where_no_draft_could_pay_none_is_tried():
  seconds = {0: 1.0, 1: 2.5, 4: 6.0}
  assert simulate(seconds, lambda _: 1.0, 500)[1] == [Stretch(0, 500)]


def test_tries_that_fail_grow_rare():
  _, used = simulate(SECONDS, lambda _: 0.05, 3000)
  tries = sum(s.draft_length > 0 for s in used[10:])
  assert 3 <= tries <= 9  # 32, 64, ..., 512 rounds apart; 32 apart they would be 80


def test_a_text_that_begins_to_repeat_is_noticed():
  _, used = simulate(SECONDS, lambda token: 0.98 if token > 400 else 0.1, 1500)
  assert sum(s.rounds for s in used if s.draft_length >= 6) > 50


def test_no_stretch_drafts_far_beyond_the_end():
  sure = Chooser(Seen((50.0,) * 12, (50.0,) * 12))
  assert sure.choose(SECONDS, [1]).draft_length == 0
  assert sure.choose(SECONDS, [3]).draft_length == 2
  assert sure.choose(SECONDS, [14]) == Stretch(12, 1)
