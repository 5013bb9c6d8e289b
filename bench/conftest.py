"""Devices, and the comparison that every benchmark here makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles

import pytest
import torch
from torch import Tensor

from monarch_ops import _C

DEVICES = ["cpu", "cuda"] if _C.cuda_devices() else ["cpu"]
RATIOS: list[str] = []  # printed when all is done


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


@pytest.fixture
def compare(benchmark, device: torch.device) -> Callable[..., None]:
    """compare(problem, ours, theirs, baseline): blocks of calls in turns, ratio per pair of blocks, both errors."""

    @torch.no_grad()
    def run(
        problem: str,
        ours: Callable[[], Tensor],
        theirs: Callable[[], Tensor],
        baseline: str,
        exact: Tensor | None = None,
        pairs: int = 7,
        seconds: float = 0.15,
    ) -> None:
        results = [ours(), theirs()]
        blocks = [(_block(ours, device, seconds), _block(theirs, device, seconds)) for _ in range(pairs)]
        low, ratio, high = quantiles([their / our for our, their in blocks], n=4)
        line = f"{device.type}  {problem:44} vs {baseline:22} x{ratio:5.2f}  ({low:.2f} .. {high:.2f})"
        if exact is not None:
            errors = [((r - exact).norm() / exact.norm()).item() for r in results]
            line += f"  error {errors[0]:.1e}, theirs {errors[1]:.1e}"
            benchmark.extra_info["errors"] = errors
        RATIOS.append(line)
        benchmark.group = f"{device.type} {problem}"
        benchmark.extra_info |= {"baseline": baseline, "ratio": ratio, "baseline seconds": median(t for _, t in blocks)}
        benchmark.pedantic(ours, rounds=3)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RATIOS:
        terminalreporter.section("times faster than the baseline: median (quartiles) of pairs")
        for line in RATIOS:
            terminalreporter.line(line)
