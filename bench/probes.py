"""What the design of the CUDA kernels takes for granted of a GPU, measured (``probes.cu``): rates per second of

* mma: multiplications and additions of tensor cores, in products that depend on each other as those of a node do,
* pack: conversions of two floats to halves,
* l2: bytes read and written in a working set that stays in the L2 cache,
* cluster of 2, of 4: bytes that blocks write to each other's shared memory (Hopper and later).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

BENCH = Path(__file__).parent
SOURCE, CSRC = BENCH / "probes.cu", BENCH.parent / "csrc"
LIBRARY = BENCH.parent / "build" / "probes" / "probes.so"
PROBES = ("mma", "pack", "l2", "cluster of 2", "cluster of 4")
ARCHS = ("80", "90a", "100a", "120")


def build(target: Path) -> Path:
    """Compile for all architectures. Raises FileNotFoundError without nvcc, where there is no library yet either."""
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None:
        if target.exists():  # built on another machine
            return target
        raise FileNotFoundError(f"nvcc is not here, and {target} has not been built elsewhere")
    target.parent.mkdir(parents=True, exist_ok=True)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    flags = ["-std=c++20", "-O3", "-Werror=all-warnings", f"-I{CSRC}", "-shared", "-Xcompiler=-fPIC"]
    subprocess.run([nvcc, *flags, *codes, SOURCE, "-o", target], check=True)
    return target


def rate(library: Path, name: str) -> float:
    """Of one probe on the current GPU. Raises RuntimeError with what CUDA says."""
    probe = ctypes.CDLL(str(library)).monarch_probe
    probe.argtypes, probe.restype = (ctypes.c_char_p, ctypes.POINTER(ctypes.c_double)), ctypes.c_char_p
    found = ctypes.c_double()
    if error := probe(name.encode(), ctypes.byref(found)):
        raise RuntimeError(f"probe {name!r}: {error.decode()}")
    return found.value


def rates() -> dict[str, float | str]:
    """Of all probes, or what kept one from running."""
    try:
        library = build(LIBRARY)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        return dict.fromkeys(PROBES, str(error))
    found: dict[str, float | str] = {}
    for name in PROBES:
        try:
            found[name] = rate(library, name)
        except RuntimeError as error:
            found[name] = str(error)
    return found
