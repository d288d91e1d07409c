"""Cases measured one command at a time end in one table."""

from experiments.peers import cases


def _case(micro_batches=1, iterations=3, **results):
  return {
    "model": "gpt-bytes-58m",
    "micro_batches": micro_batches,
    "iterations": iterations,
    "results": results,
  }


def test_systems_run_one_by_one_make_one_case(tmp_path):
  cases.keep(_case(ours=[1], jax=[2]), tmp_path)
  cases.keep(_case(jax=[3], torch=[4]), tmp_path)
  (found,) = cases.read_all(tmp_path)
  assert found["results"] == {"ours": [1], "jax": [3], "torch": [4]}


def test_other_settings_are_not_mixed(tmp_path):
  cases.keep(_case(ours=[1]), tmp_path)
  cases.keep(_case(iterations=4, jax=[2]), tmp_path)
  (found,) = cases.read_all(tmp_path)
  assert found["results"] == {"jax": [2]}


def test_cases_stand_in_order(tmp_path):
  for micro_batches in (16, 1, 4):
    cases.keep(_case(micro_batches), tmp_path)
  larger = _case() | {"model": "gpt-bytes-400m"}
  cases.keep(larger, tmp_path)
  found = cases.read_all(tmp_path)
  assert [case["micro_batches"] for case in found] == [1, 4, 16, 1]
  assert found[-1] == larger
