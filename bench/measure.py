"""How a time, a peak of memory and the ceilings of a device are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from monarch_ops import _C

DEVICES = ["cpu", "cuda"] if _C.cuda_devices() else ["cpu"]


def block_seconds(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, over calls that take about so long together; on a GPU by events around each."""
    if device.type == "cuda":
        return _cuda_block_seconds(function, seconds)
    samples, end = [], time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return median(samples)


def _cuda_block_seconds(function: Callable[[], object], seconds: float, at_once: int = 50) -> float:
    """Calls are queued without waiting, so that the GPU is never waiting for the host."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        events = [torch.cuda.Event(enable_timing=True) for _ in range((at_once if samples else 1) + 1)]
        events[0].record()
        for event in events[1:]:
            function()
            event.record()
        torch.cuda.synchronize()
        samples += [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]
    return median(samples)


def _status_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak_mib(function: Callable[[], object], device: torch.device) -> float | None:
    """MiB that a call needs at its peak beyond what is there before it, its result included."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status_mib("VmRSS")
    except OSError:  # not Linux, or not allowed
        return None
    function()
    return max(0.0, _status_mib("VmHWM") - before)


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device reaches: bytes/s of a copy, read and written; multiplications and additions/s of dense products.

    The best of several blocks and sizes: a ceiling is what nothing exceeds.
    """
    cuda = device.type == "cuda"
    source = torch.randn((1 << 30 if cuda else 1 << 26), device=device)
    target = torch.empty_like(source)
    copy = min(block_seconds(lambda: target.copy_(source), device, 0.3) for _ in range(5))
    found = {"copy": 2 * source.nbytes / copy}
    for dtype in (torch.float32, torch.float16) if cuda else (torch.float32,):
        name, rates = str(dtype).removeprefix("torch."), []
        for n in (4096, 8192) if cuda else (768, 1536, 3072):
            a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(a)
            best = min(block_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, 0.3) for _ in range(3))
            rates.append(2 * n**3 / best)
        found[name] = max(rates)
    return found
