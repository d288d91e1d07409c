"""The axis alphabet and the array types that every signature of `models` uses.

    B  sequences of a batch            H  query heads            S  slots of a KV cache
    T  rows: tokens of one call        K  key/value heads        E  selected entries of a KV cache
    M  model width                     D  size of a head         V  vocabulary
    L  layers

Annotations are checked in tests alone (`tests/conftest.py` installs the hook); elsewhere they are
documentation. Numbers are `float32` unless a docstring says otherwise.
"""

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Activations = Float[Array, "B T M"]
Logits = Float[Array, "B T V"]
Tokens = Int[Array, "B T"]
Positions = Int[Array, "B T"]
Lengths = Int[Array, " B"]
Queries = Float[Array, "B H T D"]
KeysOrValues = Float[Array, "B K T D"]
CachedKeysOrValues = Float[Array, "B K S D"]
Mask = Bool[Array, "B T"]
Key = PRNGKeyArray

__all__ = [
  "Activations",
  "Array",
  "Bool",
  "CachedKeysOrValues",
  "Float",
  "Int",
  "Key",
  "KeysOrValues",
  "Lengths",
  "Logits",
  "Mask",
  "Positions",
  "Queries",
  "Tokens",
]
