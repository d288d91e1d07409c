"""Other libraries' attention over a whole cache, to be timed beside ours; those that are there."""

import warnings
from collections.abc import Callable
from typing import Any

import jax


def steps(count: int) -> dict[str, Callable[..., Any]]:
  """JAX's own, by name: functions of q [B, H, T, D] and k, v [B, S, K, D] that return (out,).

  They let every row see the whole cache, which is the same work within a thousandth.
  """
  found = {}
  if jax.devices()[0].platform == "gpu":
    found["jax.nn.dot_product_attention, cuDNN"] = _cudnn
    if count == 1:
      found["jax.experimental.pallas.ops.gpu.decode_attention"] = _pallas_decode
  else:
    found["jax.nn.dot_product_attention, XLA"] = _xla
  return found


def _dot_product(q, k, v, implementation):
  out = jax.nn.dot_product_attention(q.swapaxes(1, 2), k, v, implementation=implementation)
  return (out.swapaxes(1, 2),)


def _cudnn(q, k, v):
  return _dot_product(q, k, v, "cudnn")


def _xla(q, k, v):
  return _dot_product(q, k, v, "xla")


def _pallas_decode(q, k, v):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it is deprecated
    from jax.experimental.pallas.ops.gpu import decode_attention
  out = decode_attention.gqa(q[:, :, 0], k, v)
  return (out[:, :, None].astype(q.dtype),)


def torch_calls(q: jax.Array, k: jax.Array, runs: int) -> dict[str, Callable[[], None]]:
  """Torch's SDPA on random tensors of the shapes of q and k, `runs` times, where torch is there."""
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError:
    return {}
  if q.devices().pop().platform == "gpu" and not torch.cuda.is_available():
    return {}
  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = getattr(torch, q.dtype.name)
  a, b, c = (torch.randn(x.shape, dtype=dtype, device=device) for x in (q, k, k))
  attend = torch.nn.functional.scaled_dot_product_attention

  def call() -> None:
    for _ in range(runs):
      attend(a, b, c, enable_gqa=True)
    if device == "cuda":
      torch.cuda.synchronize()

  return {"torch scaled_dot_product_attention": call}
