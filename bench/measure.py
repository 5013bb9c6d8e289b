"""How a time and a peak of memory are measured."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median

import torch

from monarch_ops import _C

CYCLES_PER_SECOND = 3e9  # of a GPU, or more than it has
QUEUED_SECONDS = 2.5e-3  # of the host: a launch takes it 3 us or more, and about a thousand of them fit into the queue
DEVICES = ["cpu", "cuda"] if _C.cuda_devices() else ["cpu"]


def block_seconds(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, over calls that take about so long together."""
    if device.type == "cuda":
        return _cuda_block_seconds(function, seconds)
    samples, end = [], time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return median(samples)


def host_seconds(function: Callable[[], object]) -> float:
    """That a call keeps the host, by which a GPU that does less is bound."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    found = time.perf_counter() - start
    torch.cuda.synchronize()
    return found


def _cuda_block_seconds(function: Callable[[], object], seconds: float) -> float:
    """By events around each call, on a GPU whose L2 cache holds nothing of it and that does not wait for the host.

    As many calls as the queue surely holds follow a wait that is longer than the host takes to queue them. A call of
    more launches than that, or that waits for the GPU itself, has the rest of the host's work in its time.
    """
    samples: list[float] = []
    host, end, left = host_seconds(function), time.perf_counter() + seconds, seconds
    while not samples or left > 0:
        fitting = min(QUEUED_SECONDS / host, left / median(samples)) if samples else 1
        count = min(50, max(1, int(fitting)))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        torch.cuda._sleep(int(CYCLES_PER_SECOND * count * (host + 20e-6)))  # 20e-6: events, and emptying the cache
        for before, after in events:
            _cache_filler().zero_()
            before.record()
            function()
            after.record()
        torch.cuda.synchronize()
        samples += [before.elapsed_time(after) / 1e3 for before, after in events]
        left = end - time.perf_counter()
    return median(samples)


@cache
def _cache_filler() -> torch.Tensor:
    """Larger than the L2 cache of any GPU."""
    return torch.empty(256 << 20, dtype=torch.int8, device="cuda")


def free_memory() -> None:
    """Gives back what a test took on a GPU: also what CuPy keeps, and a failure, whose frames pytest keeps."""
    for name in ("last_exc", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    gc.collect()
    if "cupy" in sys.modules:
        cupy = sys.modules["cupy"]
        cupy.fft.config.get_plan_cache().clear()
        cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


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
