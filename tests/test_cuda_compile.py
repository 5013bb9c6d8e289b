"""Every CUDA row of variants.def compiles for every supported architecture: no warning, no spill, registers that fit.

CMake generates and compiles the units, with the flags of a real build; ptxas reports what each kernel needs. With
ccache an unchanged kernel costs nothing; without, all of it takes a few minutes. No GPU is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda_compile"
ARCHS = ("80", "90a", "100", "120")
# what the hardware of all of them has
REGISTERS_PER_THREAD, REGISTERS_PER_BLOCK = 255, 65536


@dataclass
class Function:
    """What ptxas says about one function for one architecture; `registers` is known for kernels only."""

    name: str
    arch: str
    spill_bytes: int
    registers: int | None = None


def functions(listing: str) -> list[Function]:
    """The functions in the output of ``-Xptxas -v``, kernels and what they call."""
    found: list[Function] = []
    arch = kernel = ""
    for line in listing.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            kernel, arch = match.groups()
        elif match := re.search(r"Function properties for (\w+)", line):
            found.append(Function(match[1], arch, -1))
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[-1].spill_bytes = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            [own] = [f for f in found if (f.name, f.arch) == (kernel, arch)]
            own.registers = int(match[1])
    return found


def problems(listing: str, archs: tuple[str, ...], threads: int) -> list[str]:
    """What is wrong with the kernels of one translation unit, launched with `threads` per block."""
    wrong = [line for line in listing.splitlines() if "warning" in line.lower()]
    found = functions(listing)
    kernels = {arch: {f.name for f in found if f.arch == arch and f.registers is not None} for arch in archs}
    everywhere = set().union(*kernels.values())
    if not everywhere:
        wrong.append("no kernel")
    for arch in archs:
        wrong += [f"sm_{arch}: no {name}" for name in sorted(everywhere - kernels[arch])]
    limit = min(REGISTERS_PER_THREAD, REGISTERS_PER_BLOCK // threads)
    for f in found:
        if f.spill_bytes != 0:
            wrong.append(f"sm_{f.arch}: {f.name} spills {f.spill_bytes} bytes")
        if f.registers is not None and f.registers > limit:
            wrong.append(f"sm_{f.arch}: {f.name} needs {f.registers} registers, {limit} are there")
    return wrong


def threads_per_block() -> int:
    launch = (ROOT / "csrc" / "kernels" / "cuda" / "launch.cuh").read_text()
    return int(re.search(r"constexpr int kThreads = (\d+);", launch)[1])


def cuda_rows() -> list[str]:
    """Names of the translation units of the CUDA rows."""
    table = (ROOT / "csrc" / "kernels" / "variants.def").read_text()
    rows = re.findall(r"^MONARCH_VARIANT\((\w+), (\w+), (\w+), (\w+)\)", table, re.M)
    return ["_".join(row) for row in rows if row[1] == "cuda"]


def run(*command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = os.environ | {"PATH": path, "MONARCH_CUDA": "on", "TORCH_CUDA_ARCH_LIST": " ".join(ARCHS)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def configured() -> Path:
    """A build folder of its own; nothing but the kernels is ever compiled in it."""
    if shutil.which("nvcc") is None and "CUDACXX" not in os.environ:
        pytest.skip("nvcc is not installed: the CUDA kernels cannot be compiled here")
    flags = f"-Xptxas=-v -Werror=all-warnings --threads={os.cpu_count()}"
    run("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_CUDA_FLAGS={flags}")  # fmt: skip
    return BUILD


@pytest.mark.parametrize("row", cuda_rows())
def test_kernels_compile_without_spills(configured: Path, row: str) -> None:
    target = f"CMakeFiles/monarch_ops.dir/kernels/{row}.cu.o"
    (configured / target).unlink(missing_ok=True)  # ptxas speaks only while it compiles; ccache repeats what it said
    listing = run("ninja", "-C", str(configured), target)
    assert problems(listing, ARCHS, threads_per_block()) == []


# ---- the check itself ------------------------------------------------------------------------------------------------

LISTING = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'kernel' for 'sm_80'
ptxas info    : Function properties for kernel
    296 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 108 registers, used 1 barriers, 296 bytes cumulative stack size, 656 bytes cmem[0]
ptxas info    : Compile time = 2214.699 ms
ptxas info    : Function properties for callee
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 120 registers, used 1 barriers
"""
NO_SPILL = "0 bytes spill stores, 0 bytes spill loads"


def test_the_check_accepts_a_good_listing() -> None:
    assert problems(LISTING, ("80", "90a"), 256) == []
    assert [(f.name, f.arch, f.registers) for f in functions(LISTING)] == [
        ("kernel", "80", 108),
        ("callee", "80", None),
        ("kernel", "90a", 120),
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (f"296 bytes stack frame, {NO_SPILL}", "296 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads",
         "sm_80: kernel spills 12 bytes"),
        (f"callee\n    0 bytes stack frame, {NO_SPILL}", "callee\n    0 bytes stack frame, 0 bytes spill stores, "
         "4 bytes spill loads", "sm_80: callee spills 4 bytes"),
        (f"callee\n    0 bytes stack frame, {NO_SPILL}", "callee", "sm_80: callee spills -1 bytes"),
        ("Used 120", "Used 256", "sm_90a: kernel needs 256 registers, 255 are there"),
        ("'kernel' for 'sm_90a'", "'kernel' for 'sm_100'", "sm_90a: no kernel"),
        ("ptxas info    : Compile time", "ptxas warning : Registers are spilled", "ptxas warning : Registers are"),
    ],
)  # fmt: skip
def test_the_check_can_fail(old: str, new: str, problem: str) -> None:
    assert old in LISTING
    assert any(line.startswith(problem) for line in problems(LISTING.replace(old, new), ("80", "90a"), 256))
    assert problems("", ("80", "90a"), 256) == ["no kernel"]
    assert problems(LISTING, ("80", "90a"), 1024) != []


def test_ptxas_reports_spills(configured: Path, tmp_path: Path) -> None:
    """A kernel that cannot but spill is found out by the real compiler's real words."""
    source = tmp_path / "spill.cu"
    source.write_text(
        "__global__ __launch_bounds__(1024) void spiller(float* x) {\n"
        "  float v[128];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 128; ++i) v[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 128; ++i) x[threadIdx.x * 128 + i] = v[i] * v[127 - i];\n"
        "}\n"
    )
    nvcc = os.environ.get("CUDACXX", "nvcc")
    listing = run(nvcc, "-O3", "-arch=sm_80", "-Xptxas=-v", "-cubin", "-o", str(tmp_path / "spill.cubin"), str(source))
    assert any("spiller" in line and "spills" in line for line in problems(listing, ("80",), 1024))
