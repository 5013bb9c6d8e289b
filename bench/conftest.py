"""Devices, what is measured first, and the comparison that every benchmark here makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ceilings import ceilings
from measure import DEVICES, block_seconds, free_memory, host_seconds, peak_mib
from record import Record, gpu_state, summary
from torch import Tensor

# What matters most is measured first, and is there when time runs out; what compiles first comes last.
IMPORTANCE = (
    "test_prepared_filter_and_gates",
    "test_filter_in_every_call",
    "test_backward",
    "test_mlp",
    "test_encoder",
    "test_encoder_in_bfloat16",
    "test_m2_mixer",
    "test_depthwise_conv1d",
    "test_blockdiag_matmul",
    "test_monarch_matmul",
    "test_other_forms",
    "test_embed_document",
    "test_mixed_lengths",
    "test_training_step",
    "test_overhead",
    "test_against_flashfftconv",
    "test_peers",
)
MEASURED: list[dict] = []  # the rows of this run
DEADLINE, RECORD = pytest.StashKey[float](), pytest.StashKey[Record]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the rows that take minutes each")
    parser.addoption("--record", type=Path, help="JSON file for the rows, rewritten after each")
    parser.addoption("--minutes", type=float, help="start no row after so many minutes")
    parser.addoption("--processes", type=int, default=1, help="measure what the record has from fewer processes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: what is measured in five minutes, on two cores (-k 'cpu and quick')")
    minutes = config.getoption("--minutes")
    config.stash[DEADLINE] = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    try:
        config.stash[RECORD] = Record(config.getoption("--record"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def rank(item: pytest.Item) -> tuple[int, bool]:
    """Among those that are equally important on a GPU every second length first, and so long ones not last."""
    name = item.originalname  # type: ignore[attr-defined]
    indices = item.callspec.indices if hasattr(item, "callspec") else {}
    length = next((indices[n] for n in ("shape", "length") if n in indices), 1)
    return IMPORTANCE.index(name) if name in IMPORTANCE else len(IMPORTANCE), "cuda" in item.name and length % 2 == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    record = item.config.stash[RECORD]
    if len(record.blocks(item.name)) >= item.config.getoption("--processes"):
        pytest.skip("recorded before")
    if item.name in record.content.get("failed", {}):
        pytest.skip("failed before")
    left_out, late = record.content["left out"], time.monotonic() > item.config.stash[DEADLINE]
    if late != (item.name in left_out):
        record.update(**{"left out": [name for name in left_out if name != item.name] + [item.name] * late})
    if late:
        pytest.skip("out of time")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    torch.manual_seed(0)
    yield torch.device(request.param)
    if request.param == "cuda":
        free_memory()


@pytest.fixture(scope="session")
def ceilings_of(request: pytest.FixtureRequest) -> Iterator[Callable[[torch.device], dict[str, float]]]:
    """Of a device, measured once in a run, however often that is stopped."""
    record = request.config.stash[RECORD]
    found: dict[str, dict[str, float]] = record.content.get("ceilings", {})

    def measured(device: torch.device) -> dict[str, float]:
        if device.type not in found:
            found[device.type] = ceilings(device)
            record.update(ceilings=found)
            note_gpu(record)
        return found[device.type]

    yield measured
    note_gpu(record)


def note_gpu(record: Record) -> None:
    """Its clocks after a load, and after the last row."""
    if "cuda" in DEVICES:
        record.update(**{"gpu states": [*record.content.get("gpu states", []), gpu_state()]})


def share_of_floor(cost: dict, seconds: float, ceilings: dict[str, float]) -> tuple[float, str]:
    """Which part of a time the device's ceilings explain, and which ceiling that is."""
    fastest = max(ceilings["copy"], ceilings.get("triad", 0))
    memory, arithmetic = cost["bytes"] / fastest, cost["flops"] / ceilings[cost.get("dtype", "float32")]
    return max(memory, arithmetic) / seconds, "memory" if memory > arithmetic else "arithmetic"


def why_not(function: Callable[[], object], device: torch.device) -> str | None:
    """What a call fails with, if it does; unless that is a GPU that cannot be used any more, which is an error here."""
    try:
        function()
    except Exception as error:
        out_of_memory = "OutOfMemory" in type(error).__name__  # PyTorch's and CuPy's
        why = "out of memory" if out_of_memory else f"{type(error).__name__}: {error}".partition("\n")[0][:80]
    else:
        return None
    if device.type == "cuda":
        torch.cuda.synchronize()
        free_memory()
    return why


def number_of_pairs(once: float, device: torch.device) -> int:
    """Of blocks, by the seconds of a call."""
    if device.type == "cuda":
        return 5 if once < 0.2 else 3
    return 7 if once < 1 else 3 if once < 20 else 2


@pytest.fixture
def compare(request: pytest.FixtureRequest, device: torch.device, ceilings_of) -> Callable[..., None]:
    """compare(problem, ours, theirs, baseline): blocks in turns; a ratio per pair, errors, memory, share of the floor.

    ``exact`` may have the first rows of a batch only. ``cost`` has the bytes that must move and the operations that
    must be done, and on a GPU the "dtype" whose dense products are the ceiling. ``dtype`` is that of the rows, and part
    of the problem's name when it is bfloat16. Calls that ``wait`` for a GPU are timed by the host's clock; the memory
    of ``foreign`` baselines is not PyTorch's.
    """

    def run(
        problem: str,
        ours: Callable[[], object],
        theirs: Callable[[], object],
        baseline: str,
        exact: Tensor | None = None,
        cost: dict | None = None,
        seconds: float = 0.15,
        dtype: torch.dtype = torch.float32,
        wait: bool = False,
        foreign: bool = False,
    ) -> None:
        ceiling, record, on_gpu = ceilings_of(device), request.config.stash[RECORD], device.type == "cuda"
        clock = torch.device("cpu") if wait else device
        failure = why_not(theirs, device)
        both = (ours, theirs) if failure is None else (ours,)
        if on_gpu:
            ours()  # what its first call makes and keeps is not what a call needs
            seconds = min(seconds, 0.15)  # in which a GPU has done more than enough
        errors = []
        if exact is not None:
            errors = [((f()[: len(exact)] - exact).norm() / exact.norm()).item() for f in both]
        peaks = [peak_mib(f, device) for f in (both[:1] if foreign else both)]
        once = max(block_seconds(f, clock, 0) for f in both)
        blocks = [[block_seconds(f, clock, seconds) for f in both] for _ in range(number_of_pairs(once, device))]
        problem += " bf16" if dtype == torch.bfloat16 else ""
        row = {"test": request.node.name, "device": device.type, "problem": problem, "baseline": baseline}
        row |= {"dtype": str(dtype).removeprefix("torch.")}
        row |= summary([*record.blocks(request.node.name), blocks])
        if failure is not None:
            row["baseline"] += f": {failure}"
        row |= {"errors": errors, "peak MiB": [] if None in peaks else peaks}
        if cost is not None:
            share, limit = share_of_floor(cost, row["seconds"], ceiling)
            row |= {"bytes": cost["bytes"], "flops": cost["flops"], "share of floor": share, "limit": limit}
        if on_gpu:
            row["host seconds"] = [host_seconds(f) for f in both]
        MEASURED.append(row)
        record.keep(row)
        if not on_gpu:  # pytest-benchmark's clock does not wait for one
            benchmark = request.getfixturevalue("benchmark")
            benchmark.group = f"{device.type} {problem}"
            benchmark.extra_info |= row
            benchmark.pedantic(ours, rounds=3 if once < 20 else 1)

    return run


def _line(row: dict) -> str:
    ratio = f"x{row['ratio']:5.2f} ({row['quartiles'][0]:.2f} .. {row['quartiles'][1]:.2f})" if "ratio" in row else ""
    milliseconds = row["seconds"] * 1e3
    digits = 2 if milliseconds >= 0.1 else 4
    line = f"{row['device']}  {row['problem']:44} {milliseconds:9.{digits}f} ms  {ratio:23} {row['baseline']:22}"
    if "limit" in row:
        line += f"  {row['share of floor']:4.0%} of {row['limit']}"
    if row["peak MiB"]:
        line += "  peak " + ", theirs ".join(f"{peak:.0f} MiB" for peak in row["peak MiB"])
    if row["errors"]:
        line += "  error " + ", theirs ".join(f"{error:.1e}" for error in row["errors"])
    return line


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MEASURED:
        return
    terminalreporter.section("our time, times faster than the baseline: median (quartiles), share of the floor")
    for row in MEASURED:
        terminalreporter.line(_line(row))
