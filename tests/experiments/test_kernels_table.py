"""The table of what decoding's attention costs."""

import jax
import jax.numpy as jnp
import pytest

from experiments import machine, run_log
from experiments.tables import kernels
from pallas_kernels.attention_with_mass import attention_with_mass


@pytest.mark.parametrize("form", [kernels.plain, kernels.by_row, kernels.by_head])
def test_the_forms_beside_it_compute_the_same(form, assert_close):
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (2, 4, 3, 16))
  k, v = (jax.random.normal(key, (2, 2, 64, 16)) for key in keys[1:])
  lengths = jnp.array([64, 9], jnp.int32)
  wanted = attention_with_mass(q, k, v, lengths, implementation="reference").out
  assert_close(jax.jit(form)(q, k, v, lengths), wanted)


def test_ratios_are_medians_of_rounds(tmp_path):
  milliseconds = {name: [1.0, 10.0, 2.0] for name in kernels.ROWS}
  milliseconds["five rows"] = [2.0, 20.0, 1.0]
  setting = {"slots": 1024, "heads": 8, "kv_heads": 2, "head_size": 64, "dtype": "float32"}
  summary = {"setting": setting | {"rounds": 3}, "milliseconds": milliseconds}
  (tmp_path / "kernels").mkdir()
  described = machine.describe() | {"jax": "0.11.2"}
  run_log.write_json(tmp_path / "kernels" / run_log.SUMMARY_FILE, summary | {"machine": described})
  table = kernels.table(tmp_path)
  rows = {row[0]: row[1:] for row in table.rows}
  assert rows["5 rows"] == ("2.00", "2.00× 1 row", "1.25 to 2.00", "at most 1.30×")
  assert rows["1 row"][1] == "1.00× read K and V once"
  assert len(rows) == len(kernels.ROWS)
  # 2 rows of 8 heads in 4 bytes, over keys and values of 2 heads of 64 in 4 bytes:
  assert "6.2% of the bytes" in " ".join(table.notes)
  assert rows["5 rows, mass of 2 by tokens, and its mean"][-1] == "at most 1.19×"
