"""Runs recorded calls of the emulator's modules once more, in a process of their own, with the sanitizers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from emulator import build

# One call: module, function, its keyword arguments.
Call = tuple[str, str, dict[str, Any]]


def run_sanitized(calls: list[Call], files: dict[str, Path], schedule: tuple[str, int]) -> subprocess.CompletedProcess:
    """Make the calls with the modules of ``build(sanitize=True)``; a fault ends the process with a report on stderr."""
    # a program that was not linked with the sanitizers has to load them first, and the C++ library they watch
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    # Python itself leaks by the standards of LeakSanitizer
    environment = os.environ | {"LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [sys.executable, "-m", "emulator.replay"],
        cwd=build.HERE.parent,
        env=environment,
        input=pickle.dumps((calls, files, schedule)),
        capture_output=True,
    )


def main() -> None:
    """Read what :func:`run_sanitized` wrote, and do it."""
    calls, files, (order, seed) = pickle.load(sys.stdin.buffer)
    modules = {name: build.load(name, file) for name, file in files.items()}
    for module in modules.values():
        module.set_schedule(order, seed)
    for module, function, arguments in calls:
        getattr(modules[module], function)(**arguments)


if __name__ == "__main__":
    main()
