"""The prediction at the figures of decoding_reference section 7 (Qwen3-8B, gamma 6)."""

import pytest

from models.config import PRESETS
from models.decoding import roofline
from models.decoding.method import Method
from models.decoding.roofline import Roofline
from models.decoding.selectors import Budget, make_selector

TAU, GAMMA = 6.24, 6


def qwen3_8b(context, batch):
  """s = 0.07 with the tail in it, eps = 2 G / d = 1/16, as the table there has them."""
  k = PRESETS["qwen3-8b"].kv_bytes(2)
  tail = TAU - 1 + (GAMMA + 1) / 2
  return Roofline(
    111_000 * k, k, float(context), batch, GAMMA, round(0.07 * context - tail), k // 16
  )


@pytest.mark.parametrize(
  ("context", "batch", "speedup"),
  [(10_000, 1, 0.95), (10_000, 16, 1.67), (10_000, 44, 2.40), (100_000, 1, 1.42),
   (100_000, 4, 2.33)],
)  # fmt: skip
def test_published_speedups(context, batch, speedup):
  assert qwen3_8b(context, batch).speedup(TAU) == pytest.approx(speedup, abs=0.012)


def test_break_even():
  assert qwen3_8b(100_000, 1).break_even_rho(TAU) == pytest.approx(0.16, abs=0.01)
  assert qwen3_8b(100_000, 1).break_even_rho(1.2) is None


def test_autoregressive_decoding_is_its_own_measure():
  bound = roofline.of(PRESETS["bytes-3m"], Method(), itemsize=4, mean_context=8192.0, batch_size=1)
  assert bound.speedup(1.0) == 1
  assert bound.bytes_per_token(1.0) == bound.weight_bytes + 8192 * bound.kv_bytes_per_token


def test_bytes_are_the_models():
  config = PRESETS["gpt-bytes-3m"]
  method = Method(make_selector("specattn", Budget.parse("0.1")), 6)
  bound = roofline.of(config, method, itemsize=4, mean_context=10_000.0, batch_size=2)
  head = 256 * 256 + 2 * 256
  assert bound.weight_bytes == 4 * (4 * config.block_parameters + head)
  assert bound.kv_bytes_per_token == 4 * 2 * 4 * 256
  assert bound.kv_budget == 1000
  assert (
    bound.selection_bytes_per_token == 2 * 2 * 4 * 8 * 4
  )  # rows, in and out, layers, heads, f32
