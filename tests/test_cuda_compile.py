"""Every CUDA row of variants.def, as the library holds it for each architecture: nothing in local memory, registers
that fit, and no more instructions than budgeted.

Read off the machine code in libmonarch_ops.so; no GPU is needed. CI builds for every supported architecture and takes
warnings for errors (.ci/run); a library that was built for some of them is checked for those.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from monarch_ops import _C

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(_C.__file__).with_name("libmonarch_ops.so")
ARCHS = ("80", "90a", "100a", "120")
# what the hardware of all of them has
REGISTERS_PER_THREAD, REGISTERS_PER_BLOCK = 255, 65536
BLOCKS_AT_ONCE = {"depthwise_conv1d": 4}  # what waits for memory all the time has others beside it


@dataclass(frozen=True)
class Function:
    """A kernel of a translation unit for an architecture, with what it calls."""

    unit: str
    arch: str
    name: str
    registers: int
    stack_bytes: int  # arrays that the compiler could not keep in registers, and spills


def functions(listing: str) -> list[Function]:
    """The kernels in the output of ``cuobjdump -res-usage``."""
    found = []
    arch = unit = name = ""
    for line in listing.splitlines():
        if match := re.match(r"arch = sm_(\w+)", line):
            arch = match[1]
        elif match := re.match(r"identifier = (?:.*/)?(\w+)\.cu$", line):
            unit = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\w+) SHARED:\d+ LOCAL:(\d+) ", line):
            stack = int(match[2]) if match[2].isdigit() else -1  # not known: something calls itself
            found.append(Function(unit, arch, name, int(match[1]), stack + int(match[3])))
    return found


def problems(found: list[Function], archs: tuple[str, ...], threads: int) -> list[str]:
    """What is wrong with the kernels of one translation unit, launched with `threads` per block."""
    wrong = [] if found else ["no kernel"]
    for arch in archs:
        missing = {f.name for f in found} - {f.name for f in found if f.arch == arch}
        wrong += [f"sm_{arch}: no {name}" for name in sorted(missing)]
    limit = min(REGISTERS_PER_THREAD, REGISTERS_PER_BLOCK // threads)
    for f in found:
        if f.stack_bytes != 0:
            wrong.append(f"sm_{f.arch}: {f.name} has {f.stack_bytes} bytes in local memory")
        if f.registers > limit:
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


def built_archs() -> tuple[str, ...]:
    """Those of ARCHS that the library was built for."""
    built = _C.build_info()["cuda_archs"].split(",")
    archs = tuple(arch for arch in ARCHS if arch in built)
    if not archs:
        pytest.skip("the library was built without CUDA, or for other architectures")
    return archs


def tool(name: str, *arguments: str | Path, folder: Path | None = None) -> str:
    """What a tool of CUDA's, from a package for tests, says."""
    [package] = importlib.import_module("nvidia").__path__
    command = [Path(package) / "cu13" / "bin" / name, *arguments]
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_ci_builds_for_every_architecture() -> None:
    wanted = ";".join(re.sub(r"(\d)([af]?)$", r".\1\2", arch) for arch in ARCHS)
    assert f'export TORCH_CUDA_ARCH_LIST="{wanted}" CUDAFLAGS="-Werror=all-warnings"' in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize("row", cuda_rows())
def test_kernels_compile_into_registers(row: str) -> None:
    archs = built_archs()
    found = [f for f in functions(tool("cuobjdump", "-res-usage", LIBRARY)) if f.unit == row and f.arch in archs]
    blocks = BLOCKS_AT_ONCE.get(row.partition("_cuda")[0], 1)
    assert problems(found, archs, blocks * threads_per_block()) == []


# ---- instructions ----------------------------------------------------------------------------------------------------

# The passes of the float32 engine that most of its time goes into: instructions of the machine code per point.
BUDGETS = {
    "level_passILi16ELb0E": 20,
    "level_passILi256ELb0E": 20,
    "level_passILi16ELb1E": 24,
    "level_passILi256ELb1E": 24,
}
NODE_POINTS = 16


@dataclass(frozen=True)
class LoopBudget:
    """Instructions of a thread per point in the inner loops of a kernel and of what it calls. What a loop is known by,
    and how many points a warp takes in it. What comes before a loop is left out; and in it the filter, which is read
    when the channel changes, what a warp jumps over that has not parted (sm_80), and NOPs, which wait where one product
    comes right after another (sm_120).
    """

    kernel: tuple[str, ...]
    loops: dict[str, tuple[dict[str, int], int]]
    most: int


# What all rows that fit into a block go through, gated, and gradients, where points of a row and its gradient are one.
ROWS = {
    "from memory": ({"LDG.E.128": 4, "STS.128": 4}, 512),
    "nodes": ({"HMMA.16816.F32": 32, "LDSM.16.MT88.4": 2}, 256),
    "to memory": ({"STG.E.128": 2, "LDS.128": 4}, 512),
}
ROWS_AND_GRADIENTS = {
    "what comes next, both": ({"LDGSTS.E.BYPASS.128": 4}, 256),
    "from there, both": ({"LD.E.128": 4, "STS.128": 4}, 256),
    "nodes, both": ({"HMMA.16816.F32": 64, "LDSM.16.MT88.4": 4}, 256),
    "to memory, input": ({"STG.E.128": 2, "LDS.128": 2}, 256),
    "to memory, gate": ({"STG.E.128": 2, "LDS.128": 4}, 512),
}
TENSOR_CORE_BUDGETS = {
    "convolution of 4,096 points": LoopBudget(
        ("LevelAtRootILi1E", "GatedSourceINS_4Bf16E", "GatedSinkI"),
        ROWS
        | {
            "level, forward": ({"HMMA.16816.F32": 16, "LDSM.16.MT88.4": 0}, 512),
            "level, back": ({"HMMA.16816.F32": 16, "LDSM.16.MT88.4": 4}, 512),
        },
        51,
    ),
    # of 256, 512, 1,024 or 2,048 points
    "convolution of few nodes": LoopBudget(
        ("conv_staged_rows", "LevelOfFewILb0E", "GatedSourceINS_4Bf16E", "GatedSinkI"),
        ROWS
        | {
            "level, forward": ({"HMMA.16816.F32": 4, "LDSM.16.MT88.4": 0}, 256),
            "level, back": ({"HMMA.16816.F32": 4, "LDSM.16.MT88.4": 2}, 256),
        },
        52,
    ),
    # whose nodes take one row each, so that nothing is left out of their loop
    "convolution of 16,384 points": LoopBudget(
        ("LevelAndHead", "GatedSourceINS_4Bf16E", "GatedSinkI"),
        ROWS
        | {
            "level and head of 4": ({"HMMA.16816.F32": 32, "STS.64": 16}, 1024),
            "level and head of 4, back": ({"LDSM.16.MT88.4": 8, "LDS.128": 16}, 1024),
        },
        79,
    ),
    "convolution of 32,768 points": LoopBudget(
        ("LevelAndHead", "GatedSourceINS_4Bf16E", "GatedSinkI"),
        ROWS
        | {
            "level and head of 8": ({"HMMA.16816.F32": 32, "STS": 32, "LDSM.16.MT88.4": 0}, 1024),
            "level and head of 8, back": ({"LDSM.16.MT88.4": 8, "LDS.128": 32}, 1024),
        },
        86,
    ),
    "gradients of 4,096 points": LoopBudget(
        ("staged_gradients", "LevelAtRootILi1E", "Bf16"),
        ROWS_AND_GRADIENTS
        | {
            "level, forward, both": ({"HMMA.16816.F32": 16, "LDSM.16.MT88.4": 0}, 256),
            "level, back, both": ({"HMMA.16816.F32": 16, "LDSM.16.MT88.4": 4}, 256),
        },
        121,
    ),
    "gradients of few nodes": LoopBudget(
        ("staged_gradients", "LevelOfFewILb0E", "Bf16"),
        ROWS_AND_GRADIENTS
        | {
            "level, forward, both": ({"HMMA.16816.F32": 4, "LDSM.16.MT88.4": 0}, 128),
            "level, back, both": ({"HMMA.16816.F32": 4, "LDSM.16.MT88.4": 2}, 128),
        },
        122,
    ),
    # of 1,048,576 points in three launches
    "outer part": LoopBudget(
        ("staged_outer_forward", "GatedSourceINS_4Bf16E", "OuterRootILb0E"),
        {
            "from memory": ({"LDG.E.128": 4, "STS.128": 4}, 512),
            "level at the root": ({"HMMA.16816.F32": 16, "LDSM.16.MT88.4": 0}, 512),
            "level, to the workspace": ({"HMMA.16816.F32": 16, "STG.E.128": 4}, 512),
        },
        25,
    ),
    # of 524,288 points
    "outer part with a head": LoopBudget(
        ("staged_outer_forward", "GatedSourceINS_4Bf16E", "OuterRootAndHeadILb0E"),
        {
            "from memory": ({"LDG.E.128": 4, "STS.128": 4}, 512),
            "level and head of 8": ({"HMMA.16816.F32": 32, "STS": 32, "LDS.64": 0}, 1024),
            "to the workspace": ({"STG.E.128": 2, "HMMA.16816.F32": 0}, 256),
        },
        28,
    ),
    # where no level can come before the head, as if that were of 8
    "outer part below a head": LoopBudget(
        ("staged_outer_forward", "GatedSourceINS_4Bf16E", "OuterHeadE"),
        {
            "from memory": ({"LDG.E.128": 4, "STS.128": 4}, 512),
            "head of 8": ({"LDS.64": 25, "LDS.128": 1}, 1024),
            "level, to the workspace": ({"HMMA.16816.F32": 16, "STG.E.128": 4}, 512),
        },
        32,
    ),
    "inner nodes": LoopBudget(
        ("staged_inner_nodes", "InnerLevel"),
        {
            "from the workspace": ({"LDGSTS.E.BYPASS.128": 2}, 256),
            "level, forward": ({"HMMA.16816.F32": 32, "HMUL2": 16}, 512),
            "nodes": ({"HMMA.16816.F32": 32, "LDSM.16.MT88.4": 2}, 256),
            "level, to the workspace": ({"HMMA.16816.F32": 32, "STG.E.128": 4}, 512),
        },
        48,
    ),
    "inner gradients": LoopBudget(
        ("staged_inner_gradients", "InnerLevel"),
        {
            "what comes next, both": ({"LDGSTS.E.BYPASS.128": 2}, 128),
            "level, forward, both": ({"HMMA.16816.F32": 32, "HMUL2": 16}, 256),
            "nodes, both": ({"HMMA.16816.F32": 64, "LDSM.16.MT88.4": 4}, 256),
            "level, to the workspace, both": ({"HMMA.16816.F32": 32, "STG.E.128": 4}, 256),
        },
        101,
    ),
    "outer part, back": LoopBudget(
        ("staged_outer_inverse", "GatedSinkINS_4Bf16E", "OuterRootILb0E"),
        {
            "from the workspace": ({"LDGSTS.E.BYPASS.128": 2}, 256),
            "level": ({"HMMA.16816.F32": 16, "LDS.64": 2}, 512),
            "level at the root": ({"HMMA.16816.F32": 16, "LDS.64": 0}, 512),
            "to memory": ({"STG.E.128": 2, "LDS.128": 4}, 512),
        },
        29,
    ),
    "outer part with a head, back": LoopBudget(
        ("staged_outer_inverse", "GatedSinkINS_4Bf16E", "OuterRootAndHeadILb0E"),
        {
            "from the workspace": ({"LDGSTS.E.BYPASS.128": 2}, 256),
            "level and head of 8": ({"HMMA.16816.F32": 32, "LDSM.16.MT88.4": 8}, 1024),
            "to memory": ({"STG.E.128": 2, "LDS.128": 4}, 512),
        },
        28,
    ),
    "outer part below a head, back": LoopBudget(
        ("staged_outer_inverse", "GatedSinkINS_4Bf16E", "OuterHeadE"),
        {
            "from the workspace": ({"LDGSTS.E.BYPASS.128": 2}, 256),
            "level": ({"HMMA.16816.F32": 16}, 512),
            "head of 8": ({"STS.64": 16, "LDS.128": 1}, 1024),
            "to memory": ({"STG.E.128": 2, "LDS.128": 4}, 512),
        },
        39,
    ),
}
# Short convolutions, bfloat16: per output of four taps, or position of a gradient. The loop of outputs at positions
# holds the way for windows that are inside of a row and the one for those that are not.
DEPTHWISE_BUDGETS = {
    "rows": LoopBudget(("depthwise_rows", "Bf16"), {"taps": ({"LDS.U16": 32, "FFMA": 32}, 256)}, 15),
    "positions": LoopBudget(
        ("depthwise_positions", "Bf16ELi2E"), {"taps": ({"FFMA": 64, "LDG.E.U16": 0}, 512)}, 20,
    ),
    "positions of odd channels": LoopBudget(
        ("depthwise_positions", "Bf16ELi1E"), {"taps": ({"FFMA": 32, "LDG.E.U16": 22}, 256)}, 28,
    ),
    "gradient of rows": LoopBudget(
        ("weight_grad_rows", "Bf16"), {"run": ({"FFMA": 32, "LDG.E.128": 1, "LDG.E.U16": 11}, 256)}, 11,
    ),
    "gradient of positions": LoopBudget(
        ("weight_grad_positions", "Bf16ELi2E"), {"run": ({"FFMA": 64, "LDG.E": 19}, 512)}, 13,
    ),
    "gradient of positions of odd channels": LoopBudget(
        ("weight_grad_positions", "Bf16ELi1E"), {"run": ({"FFMA": 32, "LDG.E.U16": 19}, 256)}, 17,
    ),
}  # fmt: skip
WARP = 32
UNPARTED = "BRA.CONV("  # jumps when all of a warp's threads are there
FILTER_LOADS = 4  # of a lane of a node, a block that is jumped over when the channel stays


def machine_code(assembly: str) -> dict[str, list[str]]:
    """The instructions, without predicates and operands but with labels and their uses, of each function."""
    bodies: dict[str, list[str]] = {}
    for line in assembly.splitlines():
        if match := re.match(r"(\$?_[\w$]+):$", line):
            body = bodies.setdefault(match[1], [])
        elif match := re.match(r"(\.L_x_\d+):", line):
            body.append(match[0])
        elif match := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(?:.*(\(\.L_x_\d+\)))?", line):
            body.append(match[1] + (match[2] or ""))
    return bodies


def count(body: list[str]) -> Counter[str]:
    return Counter(i.partition("(")[0] for i in body if not i.endswith(":"))


def inner_loops(body: list[str]) -> list[Counter[str]]:
    """What the loops that hold no other loop consist of."""
    at = {i[:-1]: n for n, i in enumerate(body) if i.endswith(":")}
    kinds = ("BRA(", "BRA.U(", UNPARTED)
    jumps = [(at[i[i.index("(") + 1 : -1]], n) for n, i in enumerate(body) if i.startswith(kinds)]
    loops = [(begin, end) for begin, end in jumps if begin < end]
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    skipped = [(begin, end) for end, begin in jumps if begin < end]
    found = []
    for begin, end in inner:
        whole = count(body[begin : end + 1])
        for a, b in ((a, b) for a, b in skipped if begin < a and b < end):
            block = count(body[a + 1 : b])
            is_filter = block["LDG.E.128"] == FILTER_LOADS and not block["HMMA.16816.F32"]
            if is_filter or body[a].startswith(UNPARTED):
                whole -= block
        del whole["NOP"]
        found.append(whole)
    return found


def disassembled(unit: str, arch: str, folder: Path) -> dict[str, list[str]]:
    """The machine code of a unit in the library."""
    if arch not in built_archs():
        pytest.skip(f"the library was not built for sm_{arch}: set TORCH_CUDA_ARCH_LIST, as .ci/run does")
    tool("cuobjdump", "-xelf", f"{unit}.sm_{arch}.cubin", LIBRARY, folder=folder)
    [cubin] = folder.glob("*.cubin")
    return machine_code(tool("nvdisasm", "-c", cubin))


@pytest.mark.parametrize("arch", ARCHS)
def test_instruction_budgets(tmp_path: Path, arch: str) -> None:
    functions = disassembled("fft_conv_cuda_cuda_f32", arch, tmp_path)
    for name, budget in BUDGETS.items():
        bodies = [count(body) for function, body in functions.items() if name in function.rpartition("$")[2]]
        assert bodies
        assert max(body.total() for body in bodies) <= budget * NODE_POINTS
        assert min(body["FFMA"] for body in bodies) > 3 * NODE_POINTS  # it is that code


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("row", "budgets"),
    [("fft_conv_cuda_tensor_cores_f16", TENSOR_CORE_BUDGETS), ("depthwise_conv1d_cuda_cuda_f32", DEPTHWISE_BUDGETS)],
    ids=["tensor cores", "depthwise"],
)
def test_instruction_budgets_of_loops(tmp_path: Path, row: str, budgets: dict[str, LoopBudget], arch: str) -> None:
    functions = disassembled(row, arch, tmp_path)
    for budget in budgets.values():
        bodies = {f: body for f, body in functions.items() if all(part in f for part in budget.kernel)}
        assert sum(f.startswith("_Z") for f in bodies) == 1  # the others are what it calls
        loops = [loop for body in bodies.values() for loop in inner_loops(body)]
        per_point = {}
        for name, (signs, points) in budget.loops.items():
            found = [loop for loop in loops if all(loop[i] == n for i, n in signs.items())]
            assert found, f"{name}: {[dict(loop) for loop in loops]}"
            per_point[name] = max(loop.total() for loop in found) * WARP / points
        assert sum(per_point.values()) <= budget.most, per_point


# ---- the check itself ------------------------------------------------------------------------------------------------

LISTING = """
Fatbin elf code:
================
arch = sm_80
identifier = kernels/unit.cu

Resource usage:
 Common:
  GLOBAL:0
 Function kernel:
  REG:108 STACK:0 SHARED:0 LOCAL:0 CONSTANT[2]:48 CONSTANT[0]:1352 TEXTURE:0 SURFACE:0 SAMPLER:0
Fatbin elf code:
================
arch = sm_90a
identifier = kernels/unit.cu
 Function kernel:
  REG:120 STACK:0 SHARED:16 LOCAL:0 CONSTANT[0]:1352 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function other:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:364 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_the_check_accepts_a_good_listing() -> None:
    first, *others = functions(LISTING)
    assert first == Function("unit", "80", "kernel", 108, 0)
    assert others == [Function("unit", "90a", "kernel", 120, 0), Function("unit", "90a", "other", 8, 0)]
    assert problems([first, others[0]], ("80", "90a"), 256) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("REG:108 STACK:0", "REG:108 STACK:296", "sm_80: kernel has 296 bytes in local memory"),
        ("STACK:0 SHARED:0 LOCAL:0", "STACK:0 SHARED:0 LOCAL:8", "sm_80: kernel has 8 bytes in local memory"),
        ("REG:120 STACK:0", "REG:120 STACK:UNKNOWN", "sm_90a: kernel has -1 bytes in local memory"),
        ("REG:120", "REG:256", "sm_90a: kernel needs 256 registers, 255 are there"),
        ("REG:108", "REG:108", "sm_80: no other"),
    ],
)
def test_the_check_can_fail(old: str, new: str, problem: str) -> None:
    assert old in LISTING
    assert problem in problems(functions(LISTING.replace(old, new)), ("80", "90a"), 256)
    assert problems([], ("80", "90a"), 256) == ["no kernel"]
    assert "sm_90a: kernel needs 120 registers, 64 are there" in problems(functions(LISTING), ("80", "90a"), 1024)


@pytest.mark.parametrize(("block", "counted"), [(["LDG.E.128"] * FILTER_LOADS + ["FMUL"], 5),
                                                (["LDG.E.128"] * 2 + ["FMUL"], 8),
                                                (["LDG.E.128"] * FILTER_LOADS + ["HMMA.16816.F32"], 10)])  # fmt: skip
def test_only_the_filter_is_left_out_of_a_loop(block: list[str], counted: int) -> None:
    loop = [".L_x_1:", "LDS", "BRA(.L_x_2)", *block, ".L_x_2:", "HMMA.16816.F32", "FFMA", "BRA(.L_x_1)"]
    assert [found.total() for found in inner_loops(["MOV", *loop, "EXIT"])] == [counted]


def test_what_a_warp_does_not_carry_out_is_left_out_of_a_loop() -> None:
    """On sm_80 a barrier of a warp has a call for threads that have parted; on sm_120 NOPs come between products."""
    parted = ["MOV", "CALL.REL.NOINC"]
    loop = [".L_x_1:", "HMMA.16816.F32", "NOP", f"{UNPARTED}.L_x_2)", *parted, ".L_x_2:", "NOP", "STS", "BRA(.L_x_1)"]
    [found] = inner_loops(["MOV", *loop, "EXIT"])
    assert found == Counter(["HMMA.16816.F32", UNPARTED[:-1], "STS", "BRA"])
    assembly = "        /*0010*/              BRA.CONV ~URZ, `(.L_x_2) ;"
    assert machine_code(f"_kernel:\n{assembly}") == {"_kernel": [f"{UNPARTED}.L_x_2)"]}


def test_spills_are_seen(tmp_path: Path) -> None:
    """A kernel that cannot but spill is found out in what the real compiler makes of it; so is one that calls it."""
    if shutil.which("nvcc") is None and "CUDACXX" not in os.environ:
        pytest.skip("nvcc is not installed")
    source = tmp_path / "spill.cu"
    source.write_text(
        "__device__ __noinline__ float pick(float* x, int j) {\n"
        "  float v[40];\n"
        "  for (int i = 0; i < 40; ++i) v[i] = x[3 * i];\n"
        "  return v[j];\n"
        "}\n"
        "__global__ void caller(float* x, int j) { x[0] = pick(x, j); }\n"
        "__global__ __launch_bounds__(1024) void spiller(float* x) {\n"
        "  float v[128];\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 128; ++i) v[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "#pragma unroll\n"
        "  for (int i = 0; i < 128; ++i) x[threadIdx.x * 128 + i] = v[i] * v[127 - i];\n"
        "}\n"
    )
    compiled, nvcc = tmp_path / "spill.o", os.environ.get("CUDACXX", "nvcc")
    subprocess.run([nvcc, "-O3", "-arch=sm_80", "-c", "-o", compiled, source], check=True)
    wrong = problems(functions(tool("cuobjdump", "-res-usage", compiled)), ("80",), 1024)
    for name in ("caller", "spiller"):
        assert any(name in line and "local memory" in line for line in wrong), wrong
