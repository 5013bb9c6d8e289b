"""``monarch-ops bench``: what is correct first, then what fits into the time, recorded; then the tables, anew."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import DEVICES
from probes import rates
from record import BENCH, Record, new_path
from tables import write_tables

ROOT = BENCH.parent
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZED = ["tests/test_cuda.py", "-k", "test_every_engine or test_gradient"]
# What must hold before a time means anything: pytest's arguments, by device.
CHECKS: dict[str, dict[str, list[str]]] = {
    "cpu": {"values": ["tests/test_ops.py", "-k", "test_value or test_variant"]},
    "cuda": {
        "wrappers": ["tests/test_conformance.py"],
        "ops": ["tests/test_cuda.py"],
        **dict.fromkeys(SANITIZERS, SANITIZED),
    },
}
FOUND = 86  # the exit status of compute-sanitizer when it has found something; others mean that it does not work here


def check(name: str, arguments: list[str], deadline: float) -> dict:
    """Runs tests, some under a tool of compute-sanitizer; what came out, as it is recorded."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    if name in SANITIZERS:
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            return {"name": name, "exit": None, "summary": "compute-sanitizer is not on this machine"}
        command = [tool, "--tool", name, "--error-exitcode", str(FOUND), "--target-processes", "all", *command]
    print(f"{name}: {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=deadline - start
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "exit": None, "summary": "out of time", "seconds": time.monotonic() - start}
    lines = done.stdout.strip().splitlines() or [""]
    if done.returncode:
        print("\n".join(lines[-40:]))
    summary = next((line for line in reversed(lines) if " passed" in line or " failed" in line), lines[-1])
    print(f"  {summary}", flush=True)
    works = name not in SANITIZERS or done.returncode in (0, FOUND)
    found = done.returncode if works else None
    return {"name": name, "exit": found, "summary": summary, "seconds": time.monotonic() - start}


def run_checks(record: Record, deadline: float) -> bool:
    """False when one failed. Those that passed before for the same sources are not run again."""
    for name, arguments in CHECKS[DEVICES[-1]].items():
        earlier = record.content.get("checks", [])
        if any(c["name"] == name and c["exit"] == 0 for c in earlier):
            continue
        found = check(name, arguments, deadline)
        record.update(checks=[c for c in earlier if c["name"] != name] + [found])
        if found["exit"]:
            return False
    return True


def measure(minutes: float | None, select: str | None, path: Path | None, processes: int, options: list[str]) -> int:
    """Runs the benchmarks, so many times, each time in a new process; the exit status of the first that fails."""
    deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    command = [sys.executable, "-m", "pytest", str(BENCH), "-q", "--benchmark-disable-gc", *options]
    with tempfile.TemporaryDirectory() as folder:
        kept = path or Path(folder) / "record.json"
        for number in range(1, processes + 1):
            given = [("--record", kept), ("--processes", number), ("-k", select)]
            if minutes is not None:
                given.append(("--minutes", max(0.0, (deadline - time.monotonic()) / 60)))
            named = [str(part) for name, value in given if value is not None for part in (name, value)]
            if status := subprocess.run([*command, *named], cwd=ROOT, check=False).returncode:
                return status
    return 0


def report(minutes: float, select: str | None, processes: int, options: list[str]) -> int:
    """Checks, benchmarks as far as the minutes reach, tables. Stopped at any point, it keeps what it has."""
    deadline = time.monotonic() + 60 * minutes
    path = new_path()
    record = Record(path)
    record.update()
    print(f"recording to {path}", flush=True)
    try:
        if not run_checks(record, deadline):
            print("a check failed: nothing is measured")
            return 1
        if DEVICES[-1] == "cuda" and "probes" not in record.content:
            record.update(probes=rates())
        left = (deadline - time.monotonic()) / 60
        return measure(left, select or DEVICES[-1], path, processes, options)
    finally:
        print(f"tables: {write_tables()}")
