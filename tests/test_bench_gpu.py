"""How a GPU is measured, on one that is made up: its queue, its clock and what its libraries do."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
Bench = dict[str, ModuleType]


class Gpu:
    """One queue: what is launched takes `kernel` seconds behind what is there, and its launch `host` seconds."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, host: float, kernel: float) -> None:
        self.host, self.kernel, self.now, self.free = host, kernel, 0.0, 0.0
        self.log: list[str] = []
        measure = bench["measure"]
        monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: self.now))
        filler = SimpleNamespace(zero_=lambda: self.launch(60e-6, 5e-6, "fill"))
        monkeypatch.setattr(measure, "_cache_filler", lambda: filler)
        monkeypatch.setattr(measure.torch.cuda, "Event", lambda **_: Event(self))
        monkeypatch.setattr(measure.torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(measure.torch.cuda, "_sleep", lambda cycles: self.launch(cycles / 2e9, 5e-6, "sleep"))

    def launch(self, seconds: float, host: float, name: str) -> None:
        self.now += host
        self.free = max(self.free, self.now) + seconds
        self.log.append(name)

    def call(self) -> None:
        self.launch(self.kernel, self.host, "call")

    def synchronize(self) -> None:
        self.now = max(self.now, self.free)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.gpu.now += 2e-6
        self.at = self.gpu.free = max(self.gpu.free, self.gpu.now)

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.at - self.at)


@pytest.mark.parametrize(("host", "kernel"), [(40e-6, 12e-6), (8e-6, 3e-3), (200e-6, 20e-6), (5e-3, 1e-3)])
def test_the_gpu_is_timed_and_not_the_host(bench: Bench, monkeypatch, host: float, kernel: float) -> None:
    gpu = Gpu(bench, monkeypatch, host, kernel)
    assert bench["measure"]._cuda_block_seconds(gpu.call, 0.15) == pytest.approx(kernel)
    calls, batches = gpu.log.count("call"), gpu.log.count("sleep")
    assert 3 <= calls - 1 <= 50 * batches
    assert host * calls / batches < 3e-3 or calls == batches + 1, "so few launches as the queue holds"
    assert gpu.now < 0.15 * 1.5 + 20 * host
    assert all(gpu.log[i - 1] == "fill" for i, name in enumerate(gpu.log) if name == "call" and i), "a cold cache"


def test_slow_calls_take_about_the_seconds_of_a_block(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(bench, monkeypatch, 1e-5, 0.1)
    assert bench["measure"]._cuda_block_seconds(gpu.call, 0.15) == pytest.approx(0.1)
    assert gpu.log.count("call") == 1 + 2, "one for the host's time"
    assert bench["measure"]._cuda_block_seconds(gpu.call, 0) == pytest.approx(0.1)


def test_memory_is_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed row holds, which pytest keeps, and what CuPy's pool does."""
    freed: list[str] = []
    pool = SimpleNamespace(free_all_blocks=lambda: freed.append("pool"))
    plans = SimpleNamespace(clear=lambda: freed.append("plans"))
    config = SimpleNamespace(get_plan_cache=lambda: plans)
    cupy = SimpleNamespace(fft=SimpleNamespace(config=config), get_default_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    sys.last_value = ValueError()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("torch"))
    bench["measure"].free_memory()
    assert freed == ["plans", "pool", "torch"]
    assert not hasattr(sys, "last_value")


@pytest.fixture
def conftest(bench: Bench) -> ModuleType:
    """That of bench/."""
    spec = importlib.util.spec_from_file_location("conftest_of_bench", ROOT / "bench" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_keeps_a_baseline_from_running(conftest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Any:
        def call() -> None:
            raise error

        return call

    class OutOfMemoryError(Exception):  # as CuPy's is called, too
        pass

    cpu, cuda, freed = torch.device("cpu"), torch.device("cuda"), []
    monkeypatch.setattr(conftest, "free_memory", lambda: freed.append(sys.exc_info()[1]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    why_not = conftest.why_not
    assert why_not(lambda: None, cuda) is None
    assert why_not(fails(torch.cuda.OutOfMemoryError()), cuda) == why_not(fails(OutOfMemoryError()), cuda)
    assert why_not(fails(torch.cuda.OutOfMemoryError()), cpu) == "out of memory"
    assert why_not(fails(RuntimeError("cuFFT error: CUFFT_INTERNAL_ERROR\n...")), cuda) == (
        "RuntimeError: cuFFT error: CUFFT_INTERNAL_ERROR"
    )
    assert freed == [None] * 3, "when nothing holds the frames of the failure any more"
    monkeypatch.setattr(torch.cuda, "synchronize", fails(RuntimeError("CUDA error: an illegal memory access")))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        why_not(fails(RuntimeError("CUDA error: an illegal memory access")), cuda)


def test_what_matters_comes_first_and_long_rows_not_last(conftest: ModuleType) -> None:
    def item(test: str, on: str, **indices: int) -> Any:
        name = f"{test}[{on}-{indices}]"
        return SimpleNamespace(originalname=test, name=name, callspec=SimpleNamespace(indices=indices))

    shapes = [item("test_backward", "cuda", device=n, shape=n) for n in range(8, 14)]
    on_cpu = [item("test_backward", "cpu", device=n, shape=n) for n in range(4)]
    lengths = [item("test_encoder", "cuda", length=n) for n in range(5)]
    others = [item(name, "cuda") for name in ("test_peers", "test_unknown", "test_mlp")]
    found = sorted([*others, *lengths, *shapes], key=conftest.rank)
    order = [(i.originalname, i.callspec.indices.get("shape", i.callspec.indices.get("length"))) for i in found]
    assert order == [
        *(("test_backward", n) for n in (9, 11, 13, 8, 10, 12)),
        ("test_mlp", None),
        *(("test_encoder", n) for n in (1, 3, 0, 2, 4)),
        *(("test_peers", None), ("test_unknown", None)),
    ]
    assert sorted(on_cpu, key=conftest.rank) == on_cpu


FAKE = """
import measure, torch, pytest
measure.DEVICES[:] = ["cuda"]
calls = []
measure.peak_mib = lambda function, device: float(calls.append("peak") or len(calls))
measure.block_seconds = lambda function, device, seconds: calls.append((device.type, seconds)) or 0.01
measure.host_seconds = lambda function: 4e-5
measure.free_memory = lambda: None
torch.cuda.synchronize = lambda: None
torch.cuda.get_device_name = lambda: "a GPU"
import ceilings
ceilings.ceilings = lambda device: {"copy": 1e12, "float32": 1e13, "float16": 1e14}
"""
ROWS = """
import fake, torch, pytest

def ours():
    fake.calls.append("ours")
    return torch.ones(8)

def fails():
    raise RuntimeError("cuFFT error")

def test_plain(compare):
    fake.calls.clear()
    compare("sum (1, 8)", ours, lambda: torch.ones(8), "theirs", dtype=torch.bfloat16, foreign=True, seconds=0.5)
    assert fake.calls[:3] == ["ours", "peak", ("cuda", 0)]
    assert fake.calls.count(("cuda", 0.15)) == 10

def test_waits(compare):
    fake.calls.clear()
    compare("sum (1, 8)", ours, fails, "theirs", torch.ones(8).double(), wait=True)
    assert fake.calls.count(("cpu", 0.15)) == 5

def test_fails(compare): assert False

def test_mlp(compare): ours()
"""


def test_rows_of_a_gpu(tmp_path: Path) -> None:
    for name in ("conftest.py", "measure.py", "ceilings.py", "record.py"):
        shutil.copy(ROOT / "bench" / name, tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)
    (tmp_path / "test_it.py").write_text(ROWS)

    def run() -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "fake", "--record", "run.json"]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        ).stdout

    said = run()
    recorded = json.loads((tmp_path / "run.json").read_text())
    plain, waits = recorded["rows"]
    assert (plain["problem"], plain["dtype"], plain["peak MiB"]) == ("sum (1, 8) bf16", "bfloat16", [2.0])
    assert plain["host seconds"] == [4e-5, 4e-5]
    assert (waits["baseline"], len(waits["errors"])) == ("theirs: RuntimeError: cuFFT error", 1)
    assert len(recorded["gpu states"]) == 2
    assert "1 failed, 3 passed" in said
    assert "Name (time" not in said, "pytest-benchmark's clock does not wait for a GPU"
    (tmp_path / "run.json").write_text(json.dumps(recorded | {"failed": {"test_fails[cuda]": "it did"}}))
    said = run()
    assert said.count("failed before") == 1
    assert "1 passed, 3 skipped" in said
