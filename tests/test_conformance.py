"""The instructions of csrc/kernels/cuda/ptx.cuh by their definition: in the emulator, and on a GPU where there is one.

What the emulator accepts is worth as much as its instructions are those of a GPU; run this first on one.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from emulator import build
from torch.utils.cpp_extension import CUDA_HOME

ROOT = Path(__file__).resolve().parents[1]
LANES, WORDS = 32, 8
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(CUDA_HOME or "") / "bin"))
QUARTER, GROUP = np.arange(LANES) % 4, np.arange(LANES) // 4  # q and g of ptx.cuh

# runs a function of conformance.cuh on words (WORDS, LANES)
Run = Callable[[str, np.ndarray], np.ndarray]


def compiled(arch: str, folder: Path) -> Path:
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    cubin = folder / "conformance.cubin"
    source = ROOT / "tests" / "emulator" / "conformance.cu"
    command = [NVCC, "-std=c++20", "-O3", f"-arch={arch}", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-cubin"]
    subprocess.run([*command, "-o", str(cubin), str(source)], check=True)
    return cubin


def on_gpu(folder: Path) -> Run:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    cupy = pytest.importorskip("cupy")
    major, minor = torch.cuda.get_device_capability()
    module = cupy.RawModule(path=str(compiled(f"sm_{major}{minor}", folder)))

    def run(name: str, words: np.ndarray) -> np.ndarray:
        out = cupy.zeros_like(cupy.asarray(words))
        module.get_function(name)((1,), (LANES,), (cupy.asarray(words), out), shared_mem=LANES * 16)
        return cupy.asnumpy(out)

    return run


def in_emulator(files: dict[str, Path]) -> Run:
    if platform.machine() != "x86_64":
        pytest.skip("the emulator switches stacks on x86-64 only")
    module = build.load("monarch_emulator_selftest", files["monarch_emulator_selftest"])
    module.set_schedule("random", 1)

    def run(name: str, words: np.ndarray) -> np.ndarray:
        x = words.view(np.float32).reshape(1, WORDS * LANES)
        return getattr(module, name)(x=x, outputs=["y"])["y"].view(np.uint32).reshape(WORDS, LANES)

    return run


@pytest.fixture(params=[pytest.param("emulator", marks=pytest.mark.emulated), "gpu"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    if request.param == "gpu":
        return on_gpu(tmp_path)
    return in_emulator(request.getfixturevalue("emulator_files"))


def halves(values: np.ndarray) -> np.ndarray:
    """Words of neighbouring halves (..., 2)."""
    return np.ascontiguousarray(values.astype(np.float16)).view(np.uint32)[..., 0]


def random_words() -> np.ndarray:
    """Pairs of halves of every size that is finite."""
    patterns = np.random.default_rng(0).integers(0, 1 << 16, (WORDS, LANES, 2), dtype=np.uint16)
    patterns[(patterns & 0x7C00) == 0x7C00] &= 0x83FF
    return patterns.view(np.uint32)[..., 0]


def test_product(run):
    generator = np.random.default_rng(1)
    a, b = (generator.standard_normal((16, n)).astype(np.float16).astype(np.float64) for n in (16, 8))
    row, column = GROUP, 2 * QUARTER
    words = np.empty((WORDS, LANES), np.uint32)
    for i, (r, k) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
        words[i] = halves(np.stack([a[row + r, column + k], a[row + r, column + k + 1]], -1))
    for i, k in enumerate((0, 8)):
        words[4 + i] = halves(np.stack([b[column + k, GROUP], b[column + k + 1, GROUP]], -1))
    words[6:8] = generator.standard_normal((2, LANES)).astype(np.float32).view(np.uint32)
    start = words[[6, 7, 7, 6]].view(np.float32)
    exact = np.stack([(a @ b)[row + r, column + j] for r, j in ((0, 0), (0, 1), (8, 0), (8, 1))])
    got = run("product", words)[:4].view(np.float32)
    np.testing.assert_allclose(got, exact + start, rtol=0, atol=1e-5)


def test_matrices(run):
    words = random_words()
    rows = words[4] % 32
    quads = np.ascontiguousarray(words[:4].T[rows]).view(np.uint16)  # row l of eight halves is lane l's
    matrices = quads.reshape(4, 8, 8)
    expected = np.stack(
        [m[2 * QUARTER, GROUP].astype(np.uint32) | m[2 * QUARTER + 1, GROUP].astype(np.uint32) << 16 for m in matrices]
    )
    np.testing.assert_array_equal(run("matrices", words)[:4], expected)


def test_words(run):
    words = random_words()
    pairs = [np.ascontiguousarray(w).view(np.uint16).reshape(-1, 2).astype(np.uint32) for w in words[:4]]
    floats = np.stack([words[0].view(np.float32), words[1].view(np.float32)], -1)
    with np.errstate(over="ignore"):
        packed = halves(floats)
    unpacked = np.ascontiguousarray(words[2]).view(np.float16).reshape(-1, 2).astype(np.float32).view(np.uint32)
    expected = [
        np.full(LANES, words[0].max()),
        packed,
        unpacked[:, 0],
        unpacked[:, 1],
        pairs[2][:, 0] | pairs[3][:, 0] << 16,
        pairs[2][:, 1] | pairs[3][:, 1] << 16,
        words[2] ^ 0x80008000,
        np.arange(LANES),
    ]
    np.testing.assert_array_equal(run("words", words), np.stack(expected))


def test_products(run):
    words = random_words()
    pairs = np.ascontiguousarray(words[:5]).view(np.float16).reshape(5, LANES, 2).astype(np.float64)
    with np.errstate(over="ignore"):
        expected = halves(pairs[:4] * pairs[4])
    np.testing.assert_array_equal(run("products", words)[:4], expected)


def test_roots(run):
    generator = np.random.default_rng(2)
    words = np.zeros((WORDS, LANES), np.int32)
    words[1], words[3] = generator.integers(1, 1 << 24, LANES), 4 * np.arange(1, LANES + 1)
    words[0] = words[1] * generator.uniform(-16, 16, LANES)
    words[2] = np.arange(-LANES, LANES, 2) * np.arange(LANES)
    words[5::2] = np.array([1, 3, 5])[np.arange(LANES) % 3] << generator.integers(2, 26, (2, LANES))
    words[4], words[6] = words[5] * generator.uniform(0, 1, LANES), words[7] * np.arange(LANES) / (LANES - 1.0)
    angles = 2 * np.pi * words[0::2] / words[1::2]
    exact = np.stack([np.cos(angles), np.sin(angles)], 1).reshape(WORDS, LANES)
    got = run("roots", words.view(np.uint32)).view(np.float32)
    np.testing.assert_allclose(got[:4], exact[:4], rtol=0, atol=2e-6)
    np.testing.assert_allclose(got[4:], exact[4:], rtol=0, atol=5e-8)  # 3e-8: each number rounded once


def test_copies(run):
    words = random_words()
    quads, sizes = words[:4].reshape(LANES, 4).copy(), words[4] % 17
    taken = quads.view(np.uint8) * (np.arange(16) < sizes[:, None]).astype(np.uint8)
    expected = np.ascontiguousarray(taken).view(np.uint32)[np.arange(LANES) ^ 1].T
    np.testing.assert_array_equal(run("copies", words)[:4], expected)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a", "sm_120"])
def test_the_kernels_for_a_gpu_compile(arch, tmp_path):
    assert compiled(arch, tmp_path).stat().st_size > 0
