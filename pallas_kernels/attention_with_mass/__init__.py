"""Full attention over a KV cache that also tells where the attention went.

`attention_with_mass` is what verification runs: T new rows of each sequence attend to the cache and
to one another causally, and for the rows asked for, the log-sum-exp of each page comes out of the
same pass. `exp(page_lse - lse)` is a page's share of a row's attention.
"""

from pallas_kernels.attention_with_mass.api import attention_with_mass
from pallas_kernels.attention_with_mass.reference import AttentionWithMass
from pallas_kernels.masking import NOTHING

__all__ = ["NOTHING", "AttentionWithMass", "attention_with_mass"]
