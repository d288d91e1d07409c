"""What speculation can gain where bytes decide: every step reads the weights and part of the cache.

With W bytes of weights and B sequences of L tokens whose keys and values take k bytes a token,
rho = B k L / W. A round of draft length gamma reads the weights gamma + 1 times, a share s of the
cache gamma times and all of it once, and yields tau tokens; autoregressive decoding reads all of
both once a token:

    speed-up = tau (1 + rho) / ((gamma + 1) + rho (1 + gamma s + eps))

eps is what selecting costs as a share of the cache. Where rho is small nothing can be gained.
"""

import dataclasses

from models.config import ModelConfig
from models.decoding.method import Method
from models.decoding.selectors.base import InLayerSelector


@dataclasses.dataclass(frozen=True)
class Roofline:
  """One workload and method: bytes and tokens, and what follows from them.

  Attributes:
    weight_bytes: W, of the blocks and the head: what a step reads (of the embedding, one row).
    kv_bytes_per_token: k, over all layers.
    mean_context: L, over the sequences and the run.
    batch_size: B.
    draft_length: gamma, or its mean where rounds differ; 0 decodes autoregressively.
    kv_budget: entries that a draft step attends to, the tail not included.
    selection_bytes_per_token: written and read again per cached token to select, over all layers.
    dense_layers: share of the layers in which drafts attend to everything.
    reads_per_draft: what selecting with each draft's own query reads, as a share of the cache.
  """

  weight_bytes: int
  kv_bytes_per_token: int
  mean_context: float
  batch_size: int
  draft_length: int | float
  kv_budget: int
  selection_bytes_per_token: int
  dense_layers: float = 0.0
  reads_per_draft: float = 0.0

  @property
  def rho(self) -> float:
    """Bytes of the cache over bytes of the weights."""
    cache = self.batch_size * self.kv_bytes_per_token * self.mean_context
    return cache / self.weight_bytes

  def cache_reads(self, acceptance_length: float) -> float:
    """How often a round reads the cache: once to verify, a share per draft, and to select.

    A draft also attends to the tail: tokens accepted since the selection, and drafts before it.
    """
    tail = acceptance_length - 1 + (self.draft_length + 1) / 2
    share = min(1.0, (self.kv_budget + tail) / self.mean_context) + self.reads_per_draft
    share = self.dense_layers + (1 - self.dense_layers) * share
    eps = self.selection_bytes_per_token / self.kv_bytes_per_token
    return 1 + self.draft_length * share + eps

  def bytes_per_round(self, acceptance_length: float) -> float:
    """Bytes that a round of the whole batch reads."""
    reads = self.draft_length + 1 + self.rho * self.cache_reads(acceptance_length)
    return self.weight_bytes * reads

  def bytes_per_token(self, acceptance_length: float) -> float:
    """Bytes read per emitted token of one sequence."""
    return self.bytes_per_round(acceptance_length) / (acceptance_length * self.batch_size)

  def speedup(self, acceptance_length: float) -> float:
    """Over autoregressive decoding, where both run at the same bytes per second."""
    step = self.weight_bytes * (1 + self.rho)
    return acceptance_length * step / self.bytes_per_round(acceptance_length)

  def break_even_rho(self, acceptance_length: float) -> float | None:
    """The rho from which speculation pays at this acceptance length; None: it never does."""
    gain = acceptance_length - self.cache_reads(acceptance_length)
    return (self.draft_length + 1 - acceptance_length) / gain if gain > 0 else None


def of(
  config: ModelConfig,
  method: Method,
  *,
  itemsize: int,
  mean_context: float,
  batch_size: int,
  draft_length: float | None = None,
) -> Roofline:
  """The roofline of a run; `draft_length` is the mean over rounds where the method chooses."""
  embedding = 0 if config.tied_embeddings else config.vocabulary * config.width
  if config.family == "gpt":
    embedding += config.context * config.width
  read = config.layers * config.block_parameters + config.resident_parameters - embedding
  selector, gamma = method.selector, method.draft_length
  rows = len(method.observer.rows_scored(gamma + 1)) if method.observer else 0
  page_size = selector.page_size if selector else 1
  dense = selector.dense_layers if selector else 0
  return Roofline(
    weight_bytes=read * itemsize,
    kv_bytes_per_token=config.kv_bytes(itemsize),
    mean_context=mean_context,
    batch_size=batch_size,
    draft_length=gamma if draft_length is None else draft_length,
    kv_budget=selector.budget.at(round(mean_context)) if selector else 0,
    # float32 scores per row and query head, written once and read once
    selection_bytes_per_token=2 * 4 * rows * (config.layers - dense) * config.heads // page_size,
    dense_layers=dense / config.layers,
    reads_per_draft=selector.extra_reads() if isinstance(selector, InLayerSelector) else 0.0,
  )
