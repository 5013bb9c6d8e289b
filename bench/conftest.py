"""Devices, and the comparison that every benchmark here makes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import pytest
import torch
from torch import Tensor

from monarch_ops import _C

DEVICES = ["cpu", "cuda"] if _C.cuda_devices() else ["cpu"]
RATIOS: list[str] = []  # printed when all is done


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the rows that take minutes each")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.manual_seed(0)
    return torch.device(request.param)


def _block(function: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median seconds of a call, over calls that take about so long together."""
    samples, end = [], time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return median(samples)


def _status_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _peak_mib(function: Callable[[], object], device: torch.device) -> float | None:
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


@pytest.fixture
def compare(benchmark, device: torch.device) -> Callable[..., None]:
    """compare(problem, ours, theirs, baseline): blocks in turns; a ratio per pair, errors, memory."""

    def run(
        problem: str,
        ours: Callable[[], object],
        theirs: Callable[[], object],
        baseline: str,
        exact: Tensor | None = None,
        seconds: float = 0.15,
    ) -> None:
        both = (ours, theirs)
        errors = [] if exact is None else [((f() - exact).norm() / exact.norm()).item() for f in both]
        peaks = [_peak_mib(f, device) for f in both]
        once = max(_block(f, device, 0) for f in both)
        pairs = 7 if once < 1 else 3 if once < 20 else 2
        blocks = [(_block(ours, device, seconds), _block(theirs, device, seconds)) for _ in range(pairs)]
        low, ratio, high = quantiles([their / our for our, their in blocks], n=4)
        our_time, their_time = (median(times) for times in zip(*blocks, strict=True))
        spread = f"({low:.2f} .. {high:.2f})"
        line = f"{device.type}  {problem:44} {our_time * 1e3:8.2f} ms  x{ratio:5.2f} {spread:16} {baseline:22}"
        if None not in peaks:
            line += f"  memory {peaks[0]:.0f}, theirs {peaks[1]:.0f} MiB"
        if errors:
            line += f"  error {errors[0]:.1e}, theirs {errors[1]:.1e}"
        RATIOS.append(line)
        benchmark.group = f"{device.type} {problem}"
        benchmark.extra_info |= {"baseline": baseline, "ratio": ratio, "baseline seconds": their_time}
        benchmark.extra_info |= {"quartiles": [low, high], "errors": errors, "peak MiB": peaks}
        benchmark.pedantic(ours, rounds=3 if once < 20 else 1)

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """What a recorded file says of its machine: nothing that names it."""
    machine_info.pop("node", None)
    malloc = os.environ.get("GLIBC_TUNABLES", "default")
    machine_info |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "malloc": malloc}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RATIOS:
        terminalreporter.section("our time, and how many times faster than the baseline: median (quartiles) of pairs")
        for line in RATIOS:
            terminalreporter.line(line)
