"""How to decode: a selector, a draft length, a sampler, and what they need room for."""

import dataclasses

from models.decoding import draft as drafting
from models.decoding.sampling import Greedy, Sampler
from models.decoding.selectors.base import AnySelector, Selector


@dataclasses.dataclass(frozen=True)
class Method:
  """How to decode: everything a compiled program depends on beside the model and the shapes.

  Attributes:
    selector: what drafts attend to; None decodes autoregressively.
    draft_length: tokens drafted per round; 0 without a selector.
    end_token: ends a sequence and is its last token; None: nothing does.
    bit_exact: verify row by row, with the bits of autoregressive decoding. These depend on how many
      sequences there are, so it is one at a time (`together`).
    draft_lengths: all that a text's rounds may have, ascending from 0, where each stretch of rounds
      chooses among them (`pacing.py`); `draft_length` is then one of them.
  """

  selector: AnySelector | None = None
  draft_length: int = 0
  sampler: Sampler = Greedy()  # noqa: RUF009 - a frozen dataclass
  end_token: int | None = None
  bit_exact: bool = False
  draft_lengths: tuple[int, ...] = ()

  def __post_init__(self):
    if self.selector is not None and self.longest < 1:
      raise ValueError(
        f"--draft_length={self.draft_length} drafts nothing: give at least 1, or decode with"
        " --method=autoregressive."
      )
    if self.selector is None and self.longest:
      raise ValueError("A draft needs a selector: set both or neither.")
    if self.draft_lengths and self.draft_length not in self.draft_lengths:
      raise ValueError(f"Draft length {self.draft_length} is none of {self.draft_lengths}.")
    if self.draft_lengths and (0, *sorted(set(self.draft_lengths) - {0})) != self.draft_lengths:
      raise ValueError(f"Draft lengths {self.draft_lengths} do not ascend from 0.")

  @property
  def longest(self) -> int:
    """The longest draft that a text's rounds may have: what states and caches have room for."""
    return max(self.draft_lengths, default=self.draft_length)

  def of_length(self, draft_length: int) -> "Method":
    """The same with rounds of another of its draft lengths, over the same state."""
    return dataclasses.replace(self, draft_length=draft_length)

  def spare_slots(self, wanted: int) -> int:
    """Slots the cache needs behind the longest text that it is to hold, `wanted` tokens decoded.

    A tail is copied from where it starts: at a last page's begin and, unless the selection is kept
    for the whole text, at most at the last token.
    """
    if self.selector is None:
      return 1
    kept = self.refresh == 0
    since = 0 if kept else drafting.accepted_since(self.longest, self.refresh, wanted)
    return since + 2 * self.longest + 1 + self.selector.page_size

  def together(self, sequences: int) -> int:
    """How many of these sequences are to be decoded as one batch."""
    return 1 if self.bit_exact else sequences

  @property
  def prompt_rows(self) -> int:
    """How many of a prompt's last tokens `start` wants."""
    return 1 if self.selector is None else self.selector.prompt_rows

  @property
  def refresh(self) -> int:
    """Rounds that a selection holds for; 0: all of them."""
    return self.selector.refresh if isinstance(self.selector, Selector) else 1

  @property
  def observer(self) -> AnySelector | None:
    """Whoever wants to know what verifications of a round that drafts see."""
    return self.selector if self.refresh else None
