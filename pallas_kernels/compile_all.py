"""Compiles every GPU kernel for every GPU type, on any Linux machine, with no GPU.

    python -m pallas_kernels.compile_all

The CUDA compilers come from requirements-compile.txt, in an environment of their own
(.venv-compile-<Python version>), which is made if it is missing. Each GPU type is a process, since
Mosaic keeps what it compiled for the one before. This module needs the standard library alone.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements-compile.txt"
GPUS = ("A100", "H100")


def environment() -> pathlib.Path:
  """The interpreter that can compile for GPUs. Raises RuntimeError, in a sentence, without one."""
  folder = ROOT / ".venv-compile-{}.{}".format(*sys.version_info)
  python, stamp = folder / "bin" / "python", folder / "installed-requirements.txt"
  if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
    return python
  install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
  for command in (
    [sys.executable, "-m", "venv", "--clear", folder],
    [*install, "-r", REQUIREMENTS],
  ):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
      raise RuntimeError(
        f"{REQUIREMENTS.name} could not be installed into {folder.name} ({last}); "
        "with a connection to a package index, run this again."
      )
  stamp.write_text(REQUIREMENTS.read_text())
  return python


def compile_all(gpus=GPUS, cases: str | None = None) -> list[dict]:
  """The reports of `compile_for_gpu`, a dict for each kernel, shape and GPU type.

  `cases` names a file whose `cases()` stands in for the kernels of this folder.
  """
  python = environment()
  command = lambda gpu: [
    python,
    "-m",
    "pallas_kernels.compile_for_gpu",
    gpu,
    *([cases] * bool(cases)),
  ]
  running = [
    subprocess.Popen(
      command(gpu), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for gpu in gpus
  ]
  reports = []
  for gpu, process in zip(gpus, running, strict=True):
    out, errors = process.communicate()
    reports += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if process.returncode not in (0, 1):
      raise RuntimeError(f"Compiling for {gpu} ended with {process.returncode}: {errors[-2000:]}")
  return reports


def main() -> int:
  reports = compile_all()
  for report in reports:
    print(json.dumps(report))
  failed = [report for report in reports if "error" in report]
  print(f"{len(reports) - len(failed)} of {len(reports)} compile.")
  return int(bool(failed))


if __name__ == "__main__":
  try:
    sys.exit(main())
  except RuntimeError as problem:
    sys.exit(str(problem))
