"""Devices, and the comparison that every benchmark here makes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import pytest
import torch
from torch import Tensor

from monarch_ops import _C

DEVICES = ["cpu", "cuda"] if _C.cuda_devices() else ["cpu"]
ROWS: list[dict] = []  # what was measured


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the rows that take minutes each")
    parser.addoption("--record", type=Path, help="JSON file for the rows, rewritten after each")


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
def compare(request: pytest.FixtureRequest, benchmark, device: torch.device) -> Callable[..., None]:
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
        row = {"device": device.type, "problem": problem, "seconds": our_time, "baseline": baseline}
        row |= {"baseline seconds": their_time, "ratio": ratio, "quartiles": [low, high]}
        row |= {"errors": errors, "peak MiB": [] if None in peaks else peaks}
        ROWS.append(row)
        _record(request.config)
        benchmark.group = f"{device.type} {problem}"
        benchmark.extra_info |= row
        benchmark.pedantic(ours, rounds=3 if once < 20 else 1)

    return run


def _record(config: pytest.Config) -> None:
    """Write what has been measured so far, whole at any moment."""
    path = config.getoption("--record")
    if path is None:
        return
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    info = _C.build_info()
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "instruction set": info["cpu_isa"],
        "gpu": torch.cuda.get_device_name() if "cuda" in DEVICES else None,
        "threads": torch.get_num_threads(),
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
        "rows": ROWS,
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def _line(row: dict) -> str:
    low, high = row["quartiles"]
    spread = f"({low:.2f} .. {high:.2f})"
    line = f"{row['device']}  {row['problem']:44} {row['seconds'] * 1e3:8.2f} ms  x{row['ratio']:5.2f} {spread:16} "
    line += f"{row['baseline']:22}"
    if row["peak MiB"]:
        line += "  memory {:.0f}, theirs {:.0f} MiB".format(*row["peak MiB"])
    if row["errors"]:
        line += "  error {:.1e}, theirs {:.1e}".format(*row["errors"])
    return line


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("our time, and how many times faster than the baseline: median (quartiles) of pairs")
        for row in ROWS:
            terminalreporter.line(_line(row))
