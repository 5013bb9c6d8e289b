"""Options, fixtures and the line that says which data the tests use."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulator import build
from emulator.driver import Emulator

import monarch_ops as mo

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
BENCH = ("measure", "ceilings", "record", "watch", "checks", "probes", "tables", "report")  # modules of bench/


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-dir", type=Path, help="folder of M2-BERT parity cases (default: ../shared/parity, else tests/data)"
    )
    parser.addoption("--data-dir", type=Path, help="folder with folders of retrieval data (default: ../shared/data)")
    parser.addoption("--device", default="cuda", help="where tests/test_cuda.py runs: cuda, or cpu to try the tests")


def pytest_configure(config: pytest.Config) -> None:
    """Code that torch.compile has cached knows the sizes of our results, not which build they are from."""
    built = Path(mo._C.__file__).with_name("libmonarch_ops.so").stat().st_mtime_ns
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/inductor-monarch_ops-{built}")
    if hasattr(config, "workerinput"):  # of pytest-xdist: the other cores have workers too
        os.environ["OMP_NUM_THREADS"] = "1"  # of child processes
        torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("emulated") and not build.runs_here():
        pytest.skip("the emulator runs on an x86-64 CPU with F16C only")


def parity_dir(config: pytest.Config) -> Path:
    chosen = config.getoption("--parity-dir")
    if chosen is not None:
        return chosen
    return SHARED / "parity" if (SHARED / "parity").is_dir() else HERE / "data" / "parity"


def data_dir(config: pytest.Config) -> Path:
    return config.getoption("--data-dir") or SHARED / "data"


def pytest_report_header(config: pytest.Config) -> list[str]:
    devices = "cpu" + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")
    isa = [
        v["name"] for v in mo.variants() if v["family"] == "fft_conv" and v["available"] and v["compute"] == "float32"
    ]
    return [
        f"monarch_ops {mo.__version__}: devices {devices}; kernels {', '.join(isa)}; parity cases {parity_dir(config)}"
    ]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def emulator_files() -> dict[str, Path]:
    return build.build()


@pytest.fixture(scope="session")
def emulator(emulator_files: dict[str, Path]) -> Emulator:
    return Emulator(build.load("monarch_emulator", emulator_files["monarch_emulator"]))


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tiny models: on a busy machine, threads that wait for each other make them a hundred times slower."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("one_thread"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of bench/, which is no package, for one test."""
    monkeypatch.syspath_prepend(str(HERE.parent / "bench"))
    for name in BENCH:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name: importlib.import_module(name) for name in BENCH}
    for name in BENCH:
        monkeypatch.setitem(sys.modules, name, found[name])
    return found


@pytest.fixture
def results(bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for recorded runs and for docs/."""
    folder = tmp_path / "bench" / "results"
    folder.mkdir(parents=True)
    for module, name, path in (
        ("record", "RESULTS", folder),
        ("tables", "RESULTS", folder),
        ("tables", "BENCH", tmp_path / "bench"),
        ("tables", "DOCS", tmp_path / "docs"),
        ("tables", "README", tmp_path / "README.md"),
    ):
        monkeypatch.setattr(bench[module], name, path)
    (tmp_path / "README.md").write_text("before\n" + "old\n".join(bench["tables"].MARKS) + "after\n")
    return folder
