"""How many tokens a selection may hold."""

import dataclasses
import fractions

import jax.numpy as jnp

from models.axes import Lengths


@dataclasses.dataclass(frozen=True)
class Budget:
  """A share of the context, or a number of tokens; never below `floor`, never above what exists.

  SpecAttn's rule: clip(ceil(length * ratio), floor, ...). Ratios are kept as fractions of
  thousandths at most, since 0.07 * 100 in float32 rounds up to 8 tokens.
  """

  ratio: fractions.Fraction | None
  tokens: int = 0
  floor: int = 256

  @classmethod
  def parse(cls, text: str, floor: int = 256) -> "Budget":
    """With a decimal point a ratio in (0, 1], else tokens; ValueError with one sentence."""
    try:
      if "." in text:
        ratio = fractions.Fraction(text).limit_denominator(1000)
        if 0 < ratio <= 1:
          return cls(ratio, floor=floor)
      elif 0 < int(text) < 2**31:
        return cls(None, tokens=int(text))
    except ValueError:
      pass
    raise ValueError(
      f"--kv_budget={text} selects nothing to attend to: give a share of the context in (0, 1] with"
      " a decimal point, as 0.07, or a number of tokens of at least 1."
    )

  def of(self, lengths: Lengths) -> Lengths:
    """Tokens to select at these lengths, before the cap at what exists."""
    if self.ratio is None:
      return jnp.full_like(lengths, self.tokens)
    share = -(-lengths * self.ratio.numerator // self.ratio.denominator)
    return jnp.maximum(share, self.floor)

  def at(self, length: int) -> int:
    """`of` for one length, and capped at it."""
    if self.ratio is None:
      return min(self.tokens, length)
    share = -(-length * self.ratio.numerator // self.ratio.denominator)
    return min(max(share, self.floor), length)

  def __str__(self) -> str:
    return str(self.tokens) if self.ratio is None else f"{float(self.ratio):g}, floor {self.floor}"


@dataclasses.dataclass(frozen=True)
class Ladder(Budget):
  """Budgets of a batch's sequences, in turn: sequence i has `rungs[i % len(rungs)]`.

  Selections have room for the largest, so one compiled program serves all of them.
  """

  ratio: fractions.Fraction | None = None
  rungs: tuple[Budget, ...] = ()

  def of(self, lengths: Lengths) -> Lengths:
    each = jnp.stack([rung.of(lengths) for rung in self.rungs])
    sequence = jnp.arange(lengths.shape[0])
    return each[sequence % len(self.rungs), sequence]

  def at(self, length: int) -> int:
    return max(rung.at(length) for rung in self.rungs)

  def __str__(self) -> str:
    return "; ".join(map(str, self.rungs))
