"""What the design of the CUDA kernels takes for granted of a GPU, measured (``probes.cu``): rates per second of

* mma: multiplications and additions of tensor cores, in products that depend on each other as those of a node do,
* pack: conversions of two floats to halves,
* l2: bytes read and written in a working set that stays in the L2 cache,
* cluster of 2, of 4: bytes that blocks write to each other's shared memory (Hopper and later).

``python bench/probes.py`` builds the program for a GPU that is elsewhere, and says where it is.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from checks import find_program
from record import source_hash

BENCH = Path(__file__).parent
SOURCE, CSRC = BENCH / "probes.cu", BENCH.parent / "csrc"
FOLDER = BENCH.parent / "build" / "probes"
PROBES = ("mma", "pack", "l2", "cluster of 2", "cluster of 4")
ARCHS = ("80", "90a", "100a", "120")
SECONDS = 20  # of one probe, with what starts it


def build() -> Path:
    """The program of these very sources, for all architectures; where it is not yet, FileNotFoundError without nvcc."""
    sources = hashlib.sha256(source_hash("cuda").encode() + SOURCE.read_bytes()).hexdigest()[:16]
    program = FOLDER / f"probes-{sources}"
    if program.exists():  # perhaps built on another machine
        return program
    nvcc = os.environ.get("CUDACXX") or find_program("nvcc")
    if nvcc is None:
        raise FileNotFoundError(f"nvcc is not here, and {program} has not been built elsewhere")
    FOLDER.mkdir(parents=True, exist_ok=True)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    flags = ["-std=c++20", "-O3", "-Werror=all-warnings", f"-I{CSRC}", "--threads=0"]
    part = program.with_suffix(".part")
    subprocess.run([nvcc, *flags, *codes, SOURCE, "-o", part], check=True)
    return part.replace(program)


def rate(program: Path, name: str) -> float | str:
    """Of one probe on the current GPU, or what kept it from one. It may hang or fail there and spoils no other."""
    try:
        done = subprocess.run([program, name], capture_output=True, text=True, timeout=SECONDS, check=False)
        said = (done.stdout + done.stderr).strip()
        return float(said) if done.returncode == 0 else said or f"exit status {done.returncode}"
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return str(error)


def rates() -> dict[str, float | str]:
    """Of all probes."""
    try:
        program = build()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        return dict.fromkeys(PROBES, str(error))
    return {name: rate(program, name) for name in PROBES}


if __name__ == "__main__":
    print(build())
