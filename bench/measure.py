"""How a time and a peak of memory are measured."""

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
