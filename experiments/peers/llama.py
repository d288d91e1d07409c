"""Our `llama` models as Hugging Face's `LlamaForCausalLM`: the same function, other names.

Both rotate halves, norm by root mean square in float32 and gate by SiLU; theirs keeps a matrix as
[out, in], ours as [in, out].
"""

from typing import Any

import jax
import numpy as np

from models.config import ModelConfig
from models.transformer import Parameters

# Ours to theirs, within a block.
_MATRICES = {
  ("attention", "query"): "self_attn.q_proj",
  ("attention", "key"): "self_attn.k_proj",
  ("attention", "value"): "self_attn.v_proj",
  ("attention", "output"): "self_attn.o_proj",
  ("mlp", "gate"): "mlp.gate_proj",
  ("mlp", "up"): "mlp.up_proj",
  ("mlp", "down"): "mlp.down_proj",
}
_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def check(config: ModelConfig) -> None:
  """Raises ValueError for a model that a Llama cannot be."""
  if config.family != "llama" or config.qk_norm:
    kind = "heads with norms" if config.qk_norm else f"the {config.family} family"
    raise ValueError(f"the model is of {kind}, which Hugging Face's Llama is not.")


def configuration(config: ModelConfig) -> dict[str, Any]:
  """What LlamaConfig takes."""
  return {
    "vocab_size": config.vocabulary,
    "hidden_size": config.width,
    "intermediate_size": config.mlp_width,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_size,
    "hidden_act": "silu",
    "max_position_embeddings": config.context,
    "rms_norm_eps": config.norm_epsilon,
    "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    "tie_word_embeddings": config.tied_embeddings,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,  # a text has the length asked for
    "pad_token_id": None,
  }


def weights(config: ModelConfig, parameters: Parameters) -> dict[str, np.ndarray]:
  """The `state_dict`, in float32."""
  array = lambda leaf: np.asarray(jax.device_get(leaf), np.float32)
  resident = parameters["resident"]
  table = array(resident["embed"]["tokens"]["embedding"])
  head = table if config.tied_embeddings else array(resident["head"]["logits"]["kernel"]).T
  found = {
    "model.embed_tokens.weight": table,
    "model.norm.weight": array(resident["head"]["norm"]["norm"]["scale"]),
    "lm_head.weight": head,
  }
  for layer, unit in enumerate(parameters["units"]):
    prefix = f"model.layers.{layer}"
    for (part, name), theirs in _MATRICES.items():
      found[f"{prefix}.{theirs}.weight"] = array(unit[part][name]["kernel"]).T
    for name, theirs in _NORMS.items():
      found[f"{prefix}.{theirs}.weight"] = array(unit[name]["norm"]["scale"])
  return found
