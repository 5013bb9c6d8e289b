"""What a device reaches, measured in the run that is compared with it: the best of several blocks."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from measure import block_seconds


def ceilings(device: torch.device) -> dict[str, float]:
    """Bytes/s of a copy, read and written, and multiplications and additions/s of dense products, by dtype.

    Of a CPU also bytes/s of STREAM's "triad", and "fma", the operations/s of multiply-adds in registers.
    """
    found = {"copy": _copy(device)}
    for dtype in (torch.float32, torch.float16) if device.type == "cuda" else (torch.float32,):
        found[str(dtype).removeprefix("torch.")] = _products(device, dtype)
    if device.type == "cpu":
        found["triad"] = _triad()
        fma = _fma()
        found |= {} if fma is None else {"fma": fma}
    return found


def _best(function: Callable[[], object], device: torch.device, blocks: int) -> float:
    return min(block_seconds(function, device, 0.3) for _ in range(blocks))


def _copy(device: torch.device) -> float:
    source = torch.randn((1 << 30 if device.type == "cuda" else 1 << 26), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device, 5)


def _products(device: torch.device, dtype: torch.dtype) -> float:
    rates = []
    for n in (4096, 8192) if device.type == "cuda" else (768, 1536, 3072):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        rates.append(2 * n**3 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, 3))
    return max(rates)


def _triad() -> float:
    """a = b + q c: two arrays read, one written."""
    a, b, c = (torch.randn(1 << 25) for _ in range(3))
    return 3 * a.nbytes / _best(lambda: torch.add(b, c, alpha=3.0, out=a), a.device, 5)


def _fma(rounds: int = 1_000_000) -> float | None:
    """On all threads of torch; None without a C compiler that takes the flags of GCC."""
    compiler, source = shutil.which("cc"), Path(__file__).with_name("peak.c")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        if subprocess.run([compiler, *flags, source, "-o", library], check=False).returncode:
            return None
        peak = ctypes.CDLL(str(library))
    peak.multiply_add.argtypes, peak.multiply_add.restype = (ctypes.c_int64, *[ctypes.c_float] * 2), ctypes.c_float
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:

        def run() -> list[float]:
            return list(pool.map(peak.multiply_add, *([value] * threads for value in (rounds, 0.5, 1.0))))

        seconds = _best(run, torch.device("cpu"), 5)
    return threads * rounds * ctypes.c_int64.in_dll(peak, "flops_per_round").value / seconds
