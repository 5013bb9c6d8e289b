"""``monarch-ops bench``: what is correct first, then what fits into the time, recorded; then the tables, anew."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import checks
import watch
from checks import Check
from measure import DEVICES
from probes import rates
from record import BENCH, Record, new_path
from tables import write_tables

# On a GPU, of the rows that come before all but the first checks, and of any row, which may compile first.
FIRST_ROWS_SECONDS, ROW_SECONDS = 45, 60


def run_rows(
    deadline: float, select: str | None, path: Path, number: int, options: list[str], each: float = 0
) -> watch.Outcomes:
    """The benchmarks in one process, the number of which it is for the record; none starts after the deadline."""
    left = max(0.0, deadline - time.monotonic())
    minutes = None if left == float("inf") else left / 60
    given = {"--record": path, "--processes": number, "--minutes": minutes}
    # with "=", else pytest takes the file for tests of its own until it knows the option, and loads what lies above it
    named = [f"{name}={value}" for name, value in given.items() if value is not None]
    named += [] if select is None else ["-k", select]
    arguments = [str(BENCH), "-q", "--benchmark-disable-gc", "--continue-on-collection-errors", *options, *named]
    return watch.run(arguments, left + each if each else float("inf"), each)


def measure(minutes: float | None, select: str | None, path: Path | None, processes: int, options: list[str]) -> int:
    """Runs the benchmarks, so many times, each time in a new process; the exit status of the first that fails."""
    deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        kept = path or Path(folder) / "record.json"
        for number in range(1, processes + 1):
            if status := run_rows(deadline, select, kept, number, options).status:
                return status
    return 0


@dataclass
class Report:
    """A recorded run, and the moment at which it should be at its end."""

    path: Path
    deadline: float
    log: IO[str]
    select: str
    processes: int
    options: list[str]
    each: float  # seconds that a row may take

    def hold(self, *wanted: Check) -> bool:
        """Whether checks hold. Those that did before for the same sources are not run again."""
        record = Record(self.path)
        for check in wanted:
            earlier = {c["name"]: c for c in record.content.get("checks", [])}
            if check.name in earlier and earlier[check.name]["exit"] == 0:
                continue
            print(f"{check.name}: ", end="", flush=True)
            found = checks.run(check, self.deadline, self.log)
            print(found["summary"], flush=True)
            if "seconds" in found or check.name not in earlier:  # it ran, or else what it said before stands
                record.update(checks=list((earlier | {check.name: found}).values()))
        return not any(c["exit"] for c in record.content["checks"])

    def rows(self, until: float, select: str) -> int:
        """Records rows, and which of them failed: those are not tried again in this report."""
        for number in range(1, self.processes + 1):
            came = run_rows(until, select, self.path, number, self.options, self.each)
            record = Record(self.path)
            failed = {name.partition("::")[2]: why for name, why in came.failed.items()}
            record.update(failed=record.content["failed"] | failed)
            if came.status:
                break
        return came.status

    def on_cpu(self) -> int:
        if not self.hold(checks.VALUES):
            print("a check failed: nothing is measured")
            return 1
        return self.rows(self.deadline, self.select)

    def on_gpu(self) -> int:
        """It is lent for minutes: every step is taken, whatever came of those before it, and says what it can."""
        self.hold(checks.WRAPPERS, checks.SMOKE)
        record = Record(self.path)
        if "probes" not in record.content:
            record.update(probes=rates())
        self.rows(min(self.deadline, time.monotonic() + FIRST_ROWS_SECONDS), f"({self.select}) and quick")
        holds = self.hold(checks.OPS)
        until = self.deadline - sum(check.seconds for check in checks.SANITIZED)
        if holds and until > time.monotonic():  # else the sanitizers come first: they may say why
            self.rows(until, self.select)
        holds = self.hold(*checks.SANITIZED)
        return self.rows(self.deadline, self.select) or int(not holds)


def report(
    minutes: float,
    select: str | None,
    processes: int,
    options: list[str],
    output: Path | None = None,
    commit: str | None = None,
) -> int:
    """Checks, benchmarks as far as the minutes reach, tables. Stopped at any point, it keeps what it has."""
    deadline = time.monotonic() + 60 * minutes
    path = new_path(output, commit)
    try:
        record = Record(path, commit)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    record.update(failed={})
    print(f"recording to {path}, what tests say to {path.with_suffix('.log').name} beside it")
    if newer := record.content.get("newer than the library"):
        print(f"{len(newer)} sources changed after the library was built, {newer[0]} among them")
    with path.with_suffix(".log").open("a") as log:
        on_gpu = DEVICES[-1] == "cuda"
        run = Report(path, deadline, log, select or DEVICES[-1], processes, options, ROW_SECONDS if on_gpu else 0)
        try:
            return run.on_gpu() if on_gpu else run.on_cpu()
        finally:
            if output is None:
                print(f"tables: {write_tables()}")
