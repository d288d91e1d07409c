"""Compiles kernels to machine code for one GPU type, without a GPU; prints a JSON line for each.

    python -m pallas_kernels.compile_for_gpu H100 [file.py]

Runs in the environment of `compile_all`. XLA compiles for an abstract topology whose limits are
written out below; Triton and Mosaic see the type as an abstract device. A line holds the kernel,
its shape, PTX bytes, registers a thread, bytes spilled, shared memory where the compiler tells it,
and temporary device memory of the whole call; or the error. What spills counts as an error. The
exit status is 1 if anything failed.
"""

# ruff: noqa: E402  (what imports read is set before them)

import functools
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

DUMP = pathlib.Path(tempfile.mkdtemp())
# XLA and Mosaic read these when they are imported.
os.environ |= {
  "JAX_PLATFORMS": "cpu",
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
  "MOSAIC_GPU_DUMP_TO": str(DUMP),
  "TF_CPP_MIN_LOG_LEVEL": "3",
  "XLA_FLAGS": f"--xla_dump_to={DUMP} --xla_dump_emitter_re=ptx --xla_gpu_autotune_level=0",
}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding, use_abstract_mesh

from pallas_kernels import choice
from pallas_kernels.attention_with_mass import api as mass_api
from pallas_kernels.attention_with_mass import shapes as mass_shapes
from pallas_kernels.page_attention import api as page_api
from pallas_kernels.page_attention import shapes as page_shapes


class GPU(NamedTuple):
  """What the compilers ask of a GPU type (NVIDIA's data sheets and tuning guides)."""

  capability: int  # 80 is 8.0
  multiprocessors: int
  bandwidth: int  # bytes a second
  cache: int  # bytes, L2
  memory: int  # bytes
  shared: int  # bytes of shared memory a multiprocessor
  shared_block: int  # bytes of it that one block may ask for
  gigahertz: float
  lanes: int  # float32 units a multiprocessor


GPUS = {
  "A100": GPU(80, 108, 2_039_000_000_000, 40 << 20, 85_100_068_864, 164 << 10, 163 << 10, 1.41, 64),
  "H100": GPU(
    90, 132, 3_352_000_000_000, 50 << 20, 84_929_347_584, 228 << 10, 227 << 10, 1.98, 128
  ),
}


def target_config(name: str) -> str:
  """A GpuTargetConfigProto as text; sm_90 with the features (wgmma) that make it sm_90a."""
  gpu = GPUS[name]
  accelerated = "feature_extension: ACCELERATED_FEATURES" if gpu.capability >= 90 else ""
  return f"""
    platform_name: "CUDA" device_description_str: "NVIDIA {name}"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      name: "NVIDIA {name}" device_vendor: "NVIDIA Corporation"
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      core_count: {gpu.multiprocessors} fpus_per_core: {gpu.lanes}
      shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared}
      shared_memory_per_block_optin: {gpu.shared_block}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.cache}
      clock_rate_ghz: {gpu.gigahertz} device_memory_size: {gpu.memory}
      cuda_compute_capability {{
        major: {gpu.capability // 10} minor: {gpu.capability % 10} {accelerated}
      }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      driver_version: "12.9.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
    }}"""


def compile_for(name: str, function: Callable[..., Any], arguments: tuple) -> Any:
  """The executable of `function` for abstract arguments."""
  topology = topologies.get_topology_desc(
    "", platform="cuda", target_config=target_config(name), topology="1x1x1"
  )
  place = SingleDeviceSharding(topology.devices[0])
  place_it = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  options = {"device_kind": f"NVIDIA {name}", "num_cores": GPUS[name].multiprocessors}
  if "platform" in AbstractDevice.__dataclass_fields__:  # since JAX 0.11
    options["platform"] = "gpu"
  mesh = AbstractMesh((1,), ("gpu",), abstract_device=AbstractDevice(**options))
  with use_abstract_mesh(mesh):
    traced = jax.jit(function).trace(*jax.tree.map(place_it, arguments))
    return traced.lower(lowering_platforms=("cuda",)).compile()


@functools.cache
def ptxas() -> str:
  """NVIDIA's assembler, from its wheel."""
  [found] = pathlib.Path(sys.prefix).glob("lib/*/site-packages/nvidia/*/bin/ptxas")
  return str(found)


def resources() -> dict[str, Any]:
  """What the compilers wrote about the one kernel that was just compiled; forgets it."""
  found = {}
  thunks = "".join(path.read_text() for path in DUMP.glob("*thunk_sequence.txt"))
  for path in DUMP.glob("*.ptx"):
    text = path.read_text()
    entry = re.search(r"\.entry (?!\w*fusion|wrapped_)(\w+)", text)
    if entry is None:  # one of XLA's own, around the kernel
      continue
    found["ptx_bytes"] = len(text)
    [found["target"]] = re.findall(r"\.target (\w+)", text)
    log_path = path.with_suffix(".ptxas")
    log = log_path.read_text() if log_path.exists() else assemble(path, found["target"])
    found["registers"] = max(map(int, re.findall(r"Used (\d+) registers", log)))
    found["spilled_bytes"] = sum(map(int, re.findall(r"(\d+) bytes spill", log)))
    if (asked := path.with_suffix(".resources.txt")).exists():
      [shared] = re.findall(r"smem_scratch_bytes=(\d+)", asked.read_text())
      found["shared_bytes"] = int(shared)
    elif launch := re.search(rf" {entry[1]} grid: .* shared_memory: (\d+)", thunks):
      found["shared_bytes"] = int(launch[1])
  for path in DUMP.iterdir():
    path.unlink()
  return found


def assemble(path: pathlib.Path, target: str) -> str:
  command = [ptxas(), "-v", "-arch", target, str(path), "-o", os.devnull]
  return subprocess.run(command, capture_output=True, text=True).stderr


Case = tuple[str, str, Callable[..., Any], tuple]  # kernel, shape, function, abstract arguments


def cases(gpu: str) -> Iterator[Case]:
  """Every GPU kernel of this folder, on every shape of its `COMPILED` that it supports."""
  languages = choice.preferred("gpu", GPUS[gpu].capability / 10)
  languages = [name for name in languages if name in choice.GPU_CAPABILITY]
  shape = jax.ShapeDtypeStruct
  for operation, module, shapes in (
    ("attention_with_mass", mass_api, mass_shapes),
    ("page_attention", page_api, page_shapes),
  ):
    for case in shapes.COMPILED:
      batch = len(case.lengths)
      integers = shape((batch,), jnp.int32)
      q = shape((batch, case.heads, case.count, case.head_size), case.dtype)
      cache = shape((batch, case.kv_heads, case.slots, case.head_size), case.dtype)
      if shapes is mass_shapes:
        arguments = q, cache, cache, integers, integers
        rows = tuple(row % case.count for row in case.rows)
        options = {"rows": rows, "page_size": case.page_size}
      else:
        pages = shape((batch, case.sets, case.places), jnp.int32)
        arguments = q, cache, cache, integers, pages, integers
        options = {"page_size": case.page_size, "tail": case.tail}
      for language in languages:
        function, supports = module.IMPLEMENTATIONS[language]
        if supports(*arguments, **options) is None:
          run = functools.partial(function, **options)
          yield f"{operation}/{language}", case.name, run, arguments


def main(gpu: str, path: str | None = None) -> int:
  listed = cases
  if path:
    listed = runpy.run_path(path)["cases"]
  failed = False
  for kernel, shape, function, arguments in listed(gpu):
    report = {"gpu": gpu, "kernel": kernel, "shape": shape}
    try:
      done = compile_for(gpu, function, arguments)
      report |= resources()
      report["temporary_bytes"] = done.memory_analysis().temp_size_in_bytes
      if report["spilled_bytes"]:
        report["error"] = f"{report['spilled_bytes']} bytes of registers spill."
    except Exception as problem:  # any compiler's
      report["error"] = f"{type(problem).__name__}: {str(problem)[:500]}"
    failed |= "error" in report
    print(json.dumps(report), flush=True)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
