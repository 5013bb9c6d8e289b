"""Runs recorded calls of the emulator's modules once more, in a process of their own, with the sanitizers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

from emulator import build

# One call: module, function, its keyword arguments.
Call = tuple[str, str, dict[str, Any]]


# A program that was not linked with a sanitizer has to load it first, and the C++ library it watches.
LIBRARIES = {"address": ("libasan.so", "libubsan.so", "libstdc++.so"), "thread": ("libtsan.so", "libstdc++.so")}
# Python itself leaks by the standards of LeakSanitizer.
OPTIONS = {"address": {"ASAN_OPTIONS": "detect_leaks=0"}, "thread": {"TSAN_OPTIONS": "halt_on_error=1"}}


def run_sanitized(calls: list[Call], sanitizer: str, schedule: tuple[str, int]) -> subprocess.CompletedProcess:
    """Make the calls with the modules of ``build(sanitize=...)``; a fault ends the process with a report on stderr."""
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in LIBRARIES[sanitizer]
    ]
    environment = os.environ | {"LD_PRELOAD": ":".join(libraries)} | OPTIONS[sanitizer]
    return subprocess.run(
        # ThreadSanitizer wants memory to lie where it expects it
        ["setarch", "-R", sys.executable, "-m", "emulator.replay"],
        cwd=build.HERE.parent,
        env=environment,
        input=pickle.dumps((calls, build.build(sanitize=sanitizer), schedule)),
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
