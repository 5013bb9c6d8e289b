"""What must hold before a time means anything: tests, by device, on a GPU some of them under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from glob import glob
from itertools import product
from pathlib import Path
from typing import IO

import watch

SANITIZERS = ("memcheck", "racecheck", "synccheck")
FOUND = 86  # the exit status of compute-sanitizer when it has found something
LATE, TOO_FEW = 124, 5  # as of timeout(1), and of pytest where there are no tests
# Each kind of kernel on rows of a few thousand numbers: the first that a GPU runs, and what tools have time for.
SMALL = tuple(
    f"tests/test_cuda.py::{test}[{case}-torch.{dtype}]"
    for (case, dtype), test in product(
        (
            ("fft_conv-two-sided-L640", "float16"),
            ("fft_conv-two-sided-L2049", "bfloat16"),
            ("fft_conv-two-sided-L4096", "bfloat16"),
            ("fft_conv-in-three", "float16"),
            ("fft_conv-L1000", "float32"),
            ("fft_conv-long", "float16"),
            ("prepared_conv-circular-1000", "float32"),
            ("m2_mixer-mixer-130", "float16"),
            ("m2_mixer-mixer-128", "float32"),
            ("depthwise_conv1d-L257-silu", "bfloat16"),
            ("depthwise_conv1d-blh", "float16"),
            ("blockdiag_matmul_of_rows-tiles", "bfloat16"),
            ("monarch_matmul-n64", "float16"),
            ("blockdiag_glu_mlp-m2bert", "bfloat16"),
        ),
        ("test_value", "test_gradient"),
    )
)


@dataclass(frozen=True)
class Check:
    """Tests, how many of them must have passed, and the seconds that all of them and that one of them may take."""

    name: str
    arguments: tuple[str, ...]
    least: int = 1
    seconds: float = float("inf")
    each: float = 0

    @property
    def sanitizer(self) -> bool:
        return self.name in SANITIZERS


VALUES = Check("values", ("tests/test_ops.py", "-k", "test_value or test_variant"))
WRAPPERS = Check("wrappers", ("tests/test_conformance.py", "-k", "gpu and not compile"), least=6, seconds=45, each=30)
SMOKE = Check("small", SMALL, least=len(SMALL), seconds=60, each=30)
OPS = Check("ops", ("tests/test_cuda.py",), least=1200, seconds=150, each=30)
SANITIZED = tuple(Check(tool, SMALL, least=len(SMALL), seconds=45) for tool in SANITIZERS)


def find_program(name: str) -> str | None:
    """On the PATH, or where CUDA's installers put what they do not link there."""
    folders = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/nvidia/*")
    installed = [path for pattern in folders for path in sorted(glob(pattern), reverse=True)]
    named = [str(Path(os.environ[key]) / "bin") for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join([*named, *installed]))


def sanitizer_command(tool: str, name: str) -> list[str]:
    """Looks at our kernels only: what the libraries around them do is not ours to repair."""
    known = subprocess.run([tool, "--help"], capture_output=True, text=True, check=False).stdout
    kernels = "--kernel-name" if "--kernel-name " in known else "--kernel-regex"  # as it was called before
    options = ["--error-exitcode", str(FOUND), "--target-processes", "all", kernels, "kns=_ZN7monarch"]
    options += ["--report-api-errors", "no", "--print-limit", "20"]
    options += ["--racecheck-detect-level", "error"] if name == "racecheck" else []
    # else an access behind a tensor finds memory that PyTorch keeps for the next one
    return ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool, "--tool", name, *options]


def run(check: Check, deadline: float, log: IO[str]) -> dict:
    """What came out, as it is recorded: "exit" is 0 where it holds, and None where a tool could not tell."""
    start = time.monotonic()
    seconds = min(check.seconds, deadline - start)
    found: dict = {"name": check.name, "exit": None if check.sanitizer else LATE}
    if seconds < check.seconds < float("inf"):
        return found | {"summary": f"not run: {seconds:.0f} s left of the {check.seconds:.0f} that it may take"}
    under: list[str] = []
    if check.sanitizer:
        tool = find_program("compute-sanitizer")
        if tool is None:
            return found | {"summary": "compute-sanitizer is not on this machine"}
        under = sanitizer_command(tool, check.name)
    print(f"\n==== {check.name} ====", file=log, flush=True)
    arguments = [*check.arguments, "-v", "--tb=short", "--no-summary", "--maxfail=15"]
    came = watch.run(arguments, seconds, check.each, log, under)
    took = time.monotonic() - start
    found |= {"exit": verdict(check, came), "summary": f"{came} in {took:.2f}s", "seconds": took}
    if came.failed:
        name, why = next(iter(came.failed.items()))
        found["summary"] += f"; first {name.partition('::')[2]}: {why}"
    if FOUND in came.statuses:
        found["summary"] += "; compute-sanitizer found errors"
    return found


def verdict(check: Check, came: watch.Outcomes) -> int | None:
    """Tests that all fail under a tool, which finds nothing, say that it does not work on this machine."""
    if FOUND in came.statuses:
        return FOUND
    if came.failed and (came.passed or not check.sanitizer):
        return 1
    if len(came.passed) >= check.least and not came.failed:
        return 0
    return None if check.sanitizer else LATE if came.late else TOO_FEW
