"""Every GPU kernel compiles to machine code, and what does not compile is seen.

The compilers live in an environment of their own, which the first run makes from
requirements-compile.txt; without a package index these tests fail and say so.
"""

import pathlib

import pytest

from pallas_kernels import compile_all


@pytest.fixture(scope="module")
def reports():
  return compile_all.compile_all()


@pytest.mark.parametrize("gpu", compile_all.GPUS)
@pytest.mark.parametrize("operation", ["attention_with_mass", "page_attention"])
def test_kernels_compile(operation, gpu, reports):
  languages = {"A100": {"triton"}, "H100": {"triton", "mosaic_gpu"}}[gpu]
  own = [r for r in reports if r["gpu"] == gpu and r["kernel"].startswith(f"{operation}/")]
  assert {report["kernel"].split("/")[1] for report in own} == languages
  for report in own:
    assert "error" not in report, report
    assert report["target"].startswith("sm_80" if gpu == "A100" else "sm_90")
    assert 0 < report["registers"] <= 255
    assert report["spilled_bytes"] == 0


def test_what_does_not_compile_is_seen():
  path = pathlib.Path(__file__).with_name("broken_kernels.py")
  errors = {r["kernel"]: r.get("error", "") for r in compile_all.compile_all(["A100"], str(path))}
  assert set(errors) == {"shared memory", "registers", "wgmma before Hopper"}
  assert "hared memory" in errors["shared memory"]
  assert "spill" in errors["registers"]
  assert errors["wgmma before Hopper"]


def test_partial_results_of_many_splits_are_small(reports):
  """What a call allocates beside its result is far below the cache that it reads."""
  for report in reports:
    if report["shape"] == "llama-3-8b":
      cache_bytes = 2 * 4 * 8 * 32_768 * 128 * 2
      assert report["temporary_bytes"] < cache_bytes / 20
