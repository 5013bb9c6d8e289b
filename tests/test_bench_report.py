"""A report on a machine that is lent for minutes: whatever fails, hangs or breaks costs itself and no more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cases
import pytest
import torch

ROOT = Path(__file__).parent.parent
Bench = dict[str, ModuleType]


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def outcomes(bench: Bench, passed: int = 0, failed: int = 0, late: bool = False, status: int = 0) -> Any:
    names = [{f"test_it.py::test_{i}": "AssertionError: wrong value" for i in range(n)} for n in (passed, failed, 0)]
    return bench["watch"].Outcomes(*names, [status], late)


# ---- pytest that goes on ---------------------------------------------------------------------------------------------

TESTS = """
import os, time, pytest
def test_passes(): pass
def test_fails(): assert False, "wrong value"
def test_crashes(): os._exit(3)
def test_hangs(): time.sleep(100)
def test_skips(): pytest.skip("not here")
def test_passes_too(): pass
"""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_test_that_takes_its_process_along_costs_itself(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    monkeypatch.setattr(bench["watch"], "BENCH", ROOT / "bench")
    arguments = [str(tmp_path / "test_it.py"), "-v", "--tb=short", "--no-summary", f"--rootdir={tmp_path}"]
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")
    with (tmp_path / "log").open("w") as log:
        found = bench["watch"].run(arguments, 60, 2, log)
    assert [name.rpartition("::")[2] for name in found.passed] == ["test_passes", "test_passes_too"]
    assert list(found.failed.values()) == ["AssertionError: wrong value", *[bench["watch"].GONE] * 2]
    assert str(found) == "2 passed, 3 failed, 1 skipped"
    text = (tmp_path / "log").read_text()
    assert "wrong value" in text, "though its process never came to the summary"
    assert "in test_hangs" in text, "where it hung"
    assert found.status == 3


def test_at_the_limit_nothing_stays_behind(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    tests = "import subprocess, time\ndef test_passes(): pass\ndef test_hangs():\n"
    tests += f"    open({str(tmp_path / 'child')!r}, 'w').write(str(subprocess.Popen(['sleep', '100']).pid))\n"
    (tmp_path / "test_it.py").write_text(tests + "    time.sleep(100)\n")
    found = bench["watch"].run([str(tmp_path / "test_it.py"), "-q", "-p", "no:cacheprovider"], 6)
    assert str(found) == "1 passed, out of time", "what the limit stops has not failed"
    assert not alive(int((tmp_path / "child").read_text()))


def test_behind_an_error_that_stays_there_is_another_process(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "conftest.py").write_text(
        "import torch\n"
        "broken = []\n"
        "def synchronize():\n"
        "    if broken: raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize\n"
        "import pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def device(): yield; synchronize()\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import torch\n"
        "def broken(): return torch.cuda.synchronize.__globals__['broken']\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert not broken() and False\n"
        "def test_breaks(): broken().append(1); torch.cuda.synchronize()\n"
        "def test_is_well(): torch.cuda.synchronize()\n"
    )
    found = bench["watch"].run([str(tmp_path / "test_it.py"), "-q", "-p", "no:cacheprovider"], 60)
    assert [name.rpartition("::")[2] for name in found.passed] == ["test_passes", "test_is_well"]
    assert [name.rpartition("::")[2] for name in found.failed] == ["test_fails", "test_breaks"]
    assert len(found.statuses) == 2, "the failure before did not need one"
    assert found.failed["test_it.py::test_breaks"] == "CUDA error: an illegal memory access was encountered"


# ---- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "came", "exit"),
    [
        (False, {"passed": 24}, 0),
        (False, {"passed": 23}, 5),
        (False, {"passed": 24, "failed": 1}, 1),
        (False, {"passed": 23, "late": True}, 124),
        (False, {}, 5),
        (True, {"passed": 24}, 0),
        (True, {"passed": 24, "status": 86}, 86),
        (True, {"passed": 20, "failed": 4, "status": 1}, 1),  # under a tool only, and without a word of it
        (True, {"failed": 15, "status": 1}, None),  # the tool does not work here
        (True, {"passed": 20, "late": True}, None),
        (True, {"status": 4}, None),
    ],
)
def test_what_a_check_says(bench: Bench, tool: bool, came: dict, exit: int | None) -> None:
    check = bench["checks"].Check("memcheck" if tool else "small", (), 24)
    assert bench["checks"].verdict(check, outcomes(bench, **came)) == exit


def test_a_check_that_skips_or_has_no_time_does_not_hold(bench: Bench, tmp_path: Path, capsys) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\ndef test_it(): pytest.skip('CuPy is not here')\n")
    check = bench["checks"].Check("wrappers", (str(tmp_path), "-p", "no:cacheprovider"), seconds=30)
    with (tmp_path / "log").open("w") as log:
        found = bench["checks"].run(check, time.monotonic() + 60, log)
        late = bench["checks"].run(check, time.monotonic() + 10, log)
    assert found["exit"] == 5
    assert found["summary"].startswith("1 skipped in ")
    assert late == {"name": "wrappers", "exit": 124, "summary": "not run: 10 s left of the 30 that it may take"}
    assert "SKIPPED" in (tmp_path / "log").read_text()


def test_small_tests_are_there_and_small(bench: Bench) -> None:
    checks = bench["checks"]
    assert len(set(checks.SMALL)) == len(checks.SMALL) == checks.SMOKE.least == 28
    by_name = {str(case): case for case in cases.LARGE}
    for name in checks.SMALL:
        case = by_name[name.partition("[")[2].partition("-torch.")[0]]
        assert sum(torch.Size(shape).numel() for shape in case.shapes.values()) < 100_000, name
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    for check in (checks.SMOKE, checks.OPS, checks.WRAPPERS):
        done = subprocess.run([*command, *check.arguments], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout
        found = len([line for line in done.stdout.splitlines() if "::" in line])
        assert check.least <= found <= 1.3 * check.least


@pytest.mark.parametrize("spelling", ["--kernel-name", "--kernel-regex"])
@pytest.mark.parametrize("status", [0, 86])
def test_compute_sanitizer_looks_at_our_kernels(bench, tmp_path, monkeypatch, spelling, status) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os\ndef test_it(): assert os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] == '1'\n"
    )
    script(
        tmp_path / "compute-sanitizer",
        f'if [ $1 = --help ]; then echo " {spelling} arg"; exit; fi; echo "$@"\n'
        f'while [ "$1" != {sys.executable} ]; do shift; done; "$@"; exit {status}',
    )
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "bin").symlink_to(tmp_path)
    check = bench["checks"].Check("racecheck", (str(tmp_path / "test_it.py"), "-p", "no:cacheprovider"), 1, 45)
    with (tmp_path / "log").open("w") as log:
        found = bench["checks"].run(check, time.monotonic() + 60, log)
    assert found["exit"] == status
    assert ("found errors" in found["summary"]) == bool(status)
    text = (tmp_path / "log").read_text()
    assert f"--tool racecheck --error-exitcode 86 --target-processes all {spelling} kns=_ZN7monarch" in text
    assert "--report-api-errors no --print-limit 20 --racecheck-detect-level error" in text


def test_without_compute_sanitizer_the_report_says_so(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench["checks"], "find_program", lambda _: None)
    found = bench["checks"].run(bench["checks"].SANITIZED[0], time.monotonic() + 60, sys.stderr)
    assert found == {"name": "memcheck", "exit": None, "summary": "compute-sanitizer is not on this machine"}


# ---- the report ------------------------------------------------------------------------------------------------------


def test_nothing_is_measured_when_a_check_fails_on_a_cpu(bench, results, tmp_path, monkeypatch, capsys) -> None:
    report, tests = bench["report"], tmp_path / "test_it.py"
    tests.write_text("def test_it():\n    assert False, 'wrong value'\n")
    monkeypatch.setattr(report, "DEVICES", ["cpu"])
    check = bench["checks"].Check("values", (str(tests), "-p", "no:cacheprovider"))
    monkeypatch.setattr(bench["checks"], "VALUES", check)
    monkeypatch.setattr(report, "run_rows", lambda *_: pytest.fail("measured"))
    assert report.report(1.0, None, 1, []) == 1
    assert "wrong value" in capsys.readouterr().out
    (path,) = results.glob("*/*.json")
    (found,) = json.loads(path.read_text())["checks"]
    assert found["exit"] == 1
    assert "1 failed" in found["summary"]
    assert "wrong value" in path.with_suffix(".log").read_text()

    tests.write_text("def test_it():\n    pass\n")
    monkeypatch.setattr(report, "run_rows", lambda *_: outcomes(bench, 1))
    assert report.report(1.0, None, 1, []) == 0
    tests.write_text("def test_it():\n    assert False\n")
    assert report.report(1.0, None, 1, []) == 0, "what passed for the same sources is not run again"
    with path.with_suffix(".log").open("a") as log:
        late = bench["checks"].run(check, time.monotonic(), log)
    assert (late["exit"], late["summary"][:27]) == (124, "no test ended, out of time ")


@pytest.fixture
def on_gpu(bench: Bench, results: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], set[str]]:
    """A GPU on which a clock runs by a second with each step: the steps that a report takes, and what of them fails."""
    steps, failing = [], set()

    def check(check: Any, deadline: float, log: Any) -> dict[str, Any]:
        steps.append(check.name)
        ran = {} if "time" in failing else {"seconds": 1.0}
        return {"name": check.name, "exit": int(check.name in failing), "summary": f"at {deadline}"} | ran

    def rows(until: float, select: str, path: Path, number: int, options: list[str], each: float) -> Any:
        steps.append((select, round(until), each))
        return outcomes(bench, 1, int("rows" in failing), status=int("rows" in failing))

    clock = count()
    monkeypatch.setattr(bench["report"], "DEVICES", ["cpu", "cuda"])
    monkeypatch.setattr(bench["report"], "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(bench["checks"], "run", check)
    monkeypatch.setattr(bench["report"], "run_rows", rows)
    monkeypatch.setattr(bench["report"], "rates", lambda: steps.append("probes") or {"mma": "nothing"})
    return steps, failing


def test_a_report_on_a_gpu_takes_every_step(bench: Bench, results: Path, on_gpu, capsys) -> None:
    steps, failing = on_gpu
    sanitizers = ["memcheck", "racecheck", "synccheck"]
    assert bench["report"].report(8.0, None, 1, []) == 0
    first = ["wrappers", "small", "probes", ("(cuda) and quick", 1 + 45, 60), "ops"]
    assert steps == [*first, ("cuda", 480 - 3 * 45, 60), *sanitizers, ("cuda", 480, 60)]
    (path,) = results.glob("*/*.json")
    assert json.loads(path.read_text())["failed"] == {}
    steps.clear()
    assert bench["report"].report(8.0, None, 1, []) == 0
    assert [step for step in steps if isinstance(step, str)] == [], "what holds is not run again"
    path.unlink()

    steps.clear()
    failing |= {"small", "ops", "rows"}
    assert bench["report"].report(8.0, "fft", 1, []) == 1
    first[3] = ("(fft) and quick", steps[3][1], 60)
    assert steps == [*first, *sanitizers, ("fft", steps[-1][1], 60)], "sanitizers first: they may say why"
    assert json.loads(path.read_text())["failed"] == {"test_0": "AssertionError: wrong value"}
    before = path.read_text()
    failing.add("time")
    assert bench["report"].report(2.0, None, 1, []) == 1
    assert path.read_text() == before, "what could not be run says nothing new"
    steps.clear()
    failing.clear()
    assert bench["report"].report(2.0, None, 1, []) == 0
    assert steps[:2] == ["small", steps[1]], "and what failed is"
    assert json.loads(path.read_text())["failed"] == {}


def test_what_a_report_leaves_goes_into_a_folder(bench: Bench, results: Path, on_gpu, tmp_path, monkeypatch) -> None:
    """Without a repository, and on another day."""

    def no_git(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    record, output = bench["record"], tmp_path / "output"
    monkeypatch.setattr(record.subprocess, "run", no_git)
    monkeypatch.setattr(bench["report"], "write_tables", lambda: pytest.fail("tables of other runs"))
    assert bench["report"].report(8.0, None, 1, [], output, "abc1234") == 0
    (path,) = output.glob("*/*.json")
    assert path.name.endswith("-abc1234.json")
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.with_suffix(".log").name]
    assert record.Record(path).content["commit"] == "abc1234", "and so for every process that goes on with it"
    assert record.Record(None).content["commit"] == "unknown"
    yesterday = path.rename(path.with_name(f"2020-01-01-{path.name[11:]}"))
    steps, _ = on_gpu
    steps.clear()
    assert bench["report"].report(8.0, None, 1, [], output, "abc1234") == 0
    assert list(output.glob("*/*.json")) == [yesterday]
    assert "ops" not in steps
    yesterday.write_text(json.dumps(json.loads(yesterday.read_text()) | {"csrc": {"cpu": "0"}}))
    with pytest.raises(SystemExit, match="records a run of csrc"):
        bench["report"].report(8.0, None, 1, [], output, "abc1234")


# ---- probes, and what the record says of the machine -----------------------------------------------------------------


def test_probes_of_a_gpu(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They compile for every architecture; each runs on a GPU, or says why not."""
    probes = bench["probes"]
    if bench["checks"].find_program("nvcc") is None:
        pytest.skip("nvcc is not installed")
    monkeypatch.setattr(probes, "FOLDER", tmp_path)
    found = probes.rates()
    assert list(found) == list(probes.PROBES)
    if torch.cuda.is_available():
        assert min(rate for rate in found.values() if isinstance(rate, float)) > 1e10
        assert all(isinstance(found[name], float) for name in ("mma", "pack", "l2"))
    else:
        assert all(why.startswith(("CUDA driver", "no CUDA")) for why in found.values())
    assert "built" not in str(probes.rate(probes.build(), "nothing"))


def test_a_probe_spoils_no_other(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = bench["probes"]
    program = 'case "$1" in mma) echo 4.5e14;; pack) echo no CUDA; exit 1;; l2) exec sleep 30;; *) kill -9 $$;; esac'
    monkeypatch.setattr(probes, "build", lambda: script(tmp_path / "probes", program))
    monkeypatch.setattr(probes, "SECONDS", 1)
    found = probes.rates()
    assert (found["mma"], found["pack"], found["cluster of 2"]) == (4.5e14, "no CUDA", "exit status -9")
    assert "timed out" in found["l2"]
    text = bench["tables"]._probes({"probes": {"mma": 4e14, "cluster of 2": "operation not supported"}})
    assert text == "\nProbes (bench/probes.py), 10⁹ per second: mma 400,000, cluster of 2 operation not supported.\n"
    assert bench["tables"]._probes({}) == ""


def test_probes_without_a_compiler(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built elsewhere of the same sources is used; if nothing was, the record says so."""
    probes = bench["probes"]
    monkeypatch.setattr(probes, "FOLDER", tmp_path)
    monkeypatch.setattr(probes, "find_program", lambda _: None)
    monkeypatch.setattr(probes, "source_hash", lambda _: "of these sources")
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(FileNotFoundError, match=r"nvcc is not here, and .* has not been built elsewhere") as error:
        probes.build()
    program = tmp_path / re.search(r"probes-\w+", str(error.value))[0]
    program.touch()
    assert probes.build() == program
    monkeypatch.setattr(probes, "source_hash", lambda _: "of other sources")
    assert set(probes.rates()) == set(probes.PROBES)
    assert "has not been built" in probes.rates()["mma"]


def test_programs_of_cuda_are_found_where_it_is(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bin").mkdir()
    tool = script(tmp_path / "bin" / "some-cuda-tool", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert bench["checks"].find_program("some-cuda-tool") is None
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert bench["checks"].find_program("some-cuda-tool") == str(tool)


def test_a_library_that_is_older_than_its_sources_is_known(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    record, library = bench["record"], tmp_path / "libmonarch_ops.so"
    monkeypatch.setattr(record, "BENCH", tmp_path / "bench")
    monkeypatch.setattr(record._C, "__file__", str(tmp_path / "_C.so"))
    (tmp_path / "csrc").mkdir()
    for path in (tmp_path / "CMakeLists.txt", tmp_path / "csrc" / "a.cuh", tmp_path / "csrc" / "README.md", library):
        path.touch()
    os.utime(tmp_path / "csrc" / "a.cuh", (1, 1))
    os.utime(tmp_path / "CMakeLists.txt", (1, 1))
    assert record.newer_than_the_library() == []
    os.utime(tmp_path / "csrc" / "a.cuh", (2**40, 2**40))
    assert record.newer_than_the_library() == ["csrc/a.cuh"]


def test_the_state_of_a_gpu(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench["record"].gpu_state() == {}
    script(tmp_path / "nvidia-smi", "echo 580.159.04, 1980 MHz, 3201 MHz, 45, 310.00 W")
    found = bench["record"].gpu_state()
    assert (found["driver_version"], found["clocks.sm"]) == ("580.159.04", "1980 MHz")
    script(tmp_path / "nvidia-smi", "exit 9")
    assert bench["record"].gpu_state() == {}


def test_a_run_without_rows_has_its_place(bench: Bench, results: Path) -> None:
    content = bench["record"].Record(None).content
    content |= {"checks": [{"name": "small", "exit": 1, "summary": "3 failed"}], "probes": {"mma": 4e14}, "rows": []}
    content |= {"newer than the library": ["csrc/a.cuh"], "failed": {"test_mlp[cuda-128]": "RuntimeError: no"}}
    path = results / "nvidia-x" / "2026-01-01-abc.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    text = bench["tables"].write_tables().read_text()
    assert "## nvidia-x" in text
    assert "mma 400,000" in text
    assert "* small: 3 failed\n* failed to measure test_mlp[cuda-128]: RuntimeError: no\n" in text
    assert "* 1 sources changed after the library was built, csrc/a.cuh among them" in text
    row = {"test": "a", "device": "cpu", "problem": "fft_conv (4, 768, 1024) bf16", "baseline": "torch.fft"}
    row |= {
        "ratio": 4.0,
        "seconds": 2e-3,
        "baseline seconds": 8e-3,
        "quartiles": [3.9, 4.1],
        "errors": [],
        "peak MiB": [3.0],
    }
    path.write_text(json.dumps(content | {"rows": [row]}))
    assert " unverified |" in bench["tables"].write_tables().read_text()
    readme = (results.parent.parent / "README.md").read_text()
    assert "| fft_conv (4, 768, 1024) bf16 | 2 | torch.fft: 4.0 (unverified) |" in readme
