"""pytest where a test may take its process along: it hangs, crashes, or leaves a GPU that cannot be used any more.

``run()`` starts pytest with this file as a plugin, which writes down each test as it begins and as it ends. When a
process is gone before its tests are through, another one goes on behind the test that it had begun.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
import torch

BENCH = Path(__file__).parent
STDERR, SEEN = pytest.StashKey[IO[str]](), pytest.StashKey[IO[str]]()
GONE = "its process ended: it crashed, or took longer than it may"


@dataclass
class Outcomes:
    """What came of tests: their names, by what came of them, with the error of those that failed."""

    passed: dict[str, str]
    failed: dict[str, str]
    skipped: dict[str, str]
    statuses: list[int]  # with which the processes ended
    late: bool  # stopped by the limit

    @property
    def status(self) -> int:
        """Of the first process that failed."""
        return next(filter(None, self.statuses), 0)

    def __str__(self) -> str:
        kinds = {"passed": self.passed, "failed": self.failed, "skipped": self.skipped}
        counts = [f"{len(names)} {kind}" for kind, names in kinds.items() if names] or ["no test ended"]
        return ", ".join(counts + ["out of time"] * self.late)


# ---- in pytest's process ---------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seen", type=Path, help="file of the tests that began; those that it has are left out")
    parser.addoption("--each", type=float, default=0, help="seconds after which a test ends the process; 0: never")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.fdopen(os.dup(2), "w")  # not the one that pytest keeps from a test
    config.stash[SEEN] = config.getoption("--seen").open("a")


def _write(config: pytest.Config, **entry: str) -> None:
    print(json.dumps(entry), file=config.stash[SEEN], flush=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    begun = _read(config.getoption("--seen"))
    items[:] = [item for item in items if item.nodeid not in begun]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _write(item.config, test=item.nodeid)
    if seconds := item.config.getoption("--each"):
        faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if report.when == "call" or not report.passed:
        why = call.excinfo.exconly().partition("\n")[0] if report.failed else ""
        if report.failed and item.config.getoption("--no-summary"):  # what comes at the end may never come
            print(f"\n{report.longreprtext}", file=item.config.stash[STDERR], flush=True)
        _write(item.config, test=item.nodeid, outcome=report.outcome, why=why)
    return report


def pytest_exception_interact(node: pytest.Item) -> None:
    """Behind a failure: after some errors nothing can be done on a GPU, and what failed next would say nothing."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        _write(node.config, test=node.nodeid, why=why)  # as of a test that took its process along
        pytest.exit(f"the GPU cannot be used in this process any more: {why}")


# ---- in the process that starts it -----------------------------------------------------------------------------------


def _read(seen: Path) -> dict[str, dict[str, str]]:
    """The last that is written down of each test that began, in that order."""
    return {entry["test"]: entry for entry in map(json.loads, seen.read_text().splitlines())}


def _wait(command: list[str], seconds: float, output: IO[str] | None) -> int | None:
    """The exit status; None when it was stopped. No process that it started stays behind."""
    folders = [str(BENCH), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    process = subprocess.Popen(
        command, cwd=BENCH.parent, env=environment, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return process.wait(None if seconds == float("inf") else max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:  # pytest shows what it has
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(
    arguments: Sequence[str],
    seconds: float = float("inf"),
    each: float = 0,
    output: IO[str] | None = None,
    under: Sequence[str] = (),
) -> Outcomes:
    """pytest with these arguments for so long, no test longer than `each`, `under` the command of a tool."""
    plugin, statuses = ["-m", "pytest", "-p", "watch", f"--each={each}"], []
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen"
        seen.touch()
        command = [*under, sys.executable, *plugin, f"--seen={seen}", *arguments]
        while True:
            before = len(_read(seen))
            status = _wait(command, end - time.monotonic(), output)
            found = _read(seen)
            through = not found or "outcome" in list(found.values())[-1]
            late = status is None
            statuses += [status] * (not late)
            if late or through or len(found) == before:
                break
    if late and not through and "why" not in list(found.values())[-1]:
        found.popitem()  # the limit ended it, and nothing that it did
    kinds: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}
    for name, entry in found.items():
        kinds[entry.get("outcome", "failed")][name] = entry.get("why", GONE)
    return Outcomes(**kinds, statuses=statuses, late=late)
