"""The GPT family of models/transformer.py in plain PyTorch, parameter for parameter.

Runs in the peers' environment, which holds none of ours: the shape comes as a dict (the fields of
models.config.ModelConfig), and parameters have the names and layouts that experiments/peers/job.py
exports.
"""

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
  """Causal self-attention; queries, keys and values are three projections, as in ours."""

  def __init__(self, config: dict):
    super().__init__()
    self.heads, width = config["heads"], config["width"]
    self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
    self.output = nn.Linear(width, width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    batch, tokens, width = x.shape
    split = lambda y: y.view(batch, tokens, self.heads, -1).transpose(1, 2)
    q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return self.output(out.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
  def __init__(self, config: dict):
    super().__init__()
    self.up = nn.Linear(config["width"], config["mlp_width"])
    self.down = nn.Linear(config["mlp_width"], config["width"])

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
  """Attention and MLP, each behind a LayerNorm and a residual connection."""

  def __init__(self, config: dict):
    super().__init__()
    norm = lambda: nn.LayerNorm(config["width"], eps=config["norm_epsilon"])
    self.attention_norm, self.attention = norm(), Attention(config)
    self.mlp_norm, self.mlp = norm(), MLP(config)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = x + self.attention(self.attention_norm(x))
    return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
  """Tokens and targets [batch, tokens] to the mean loss in nats; every block is recomputed.

  Checkpointing is reentrant: under DeepSpeed 0.19.8 with parameters on NVMe, the other kind trains
  wrongly and says nothing.
  """

  def __init__(self, config: dict):
    super().__init__()
    width = config["width"]
    self.tokens = nn.Embedding(config["vocabulary"], width)
    self.positions = nn.Embedding(config["context"], width)
    self.blocks = nn.ModuleList(Block(config) for _ in range(config["layers"]))
    self.norm = nn.LayerNorm(width, eps=config["norm_epsilon"])
    self.logits = nn.Linear(width, config["vocabulary"], bias=False)

  def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
    for block in self.blocks:
      x = checkpoint(block, x, use_reentrant=True)
    return F.cross_entropy(self.logits(self.norm(x)).flatten(0, 1), targets.flatten())
