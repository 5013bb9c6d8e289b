"""Builds the modules of the emulator with g++: ``python tests/emulator/build.py [--sanitize address|thread]``.

Only what is older than its sources is compiled again. Neither torch nor CUDA is needed.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import platform
import shlex
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "emulator"

RUNTIME = (
    HERE / "fiber.cpp",
    HERE / "runtime.cpp",
    HERE / "warp.cpp",
    HERE / "call.cpp",
    ROOT / "csrc" / "plan" / "plan.cpp",
    ROOT / "csrc" / "plan" / "tiles.cpp",
    ROOT / "csrc" / "plan" / "tree_shape.cpp",
)
MODULES = {
    "monarch_emulator": (HERE / "harness.cpp", *RUNTIME),
    "monarch_emulator_selftest": (HERE / "selftest.cpp", *RUNTIME),
}
# F16C converts halves in one instruction; the unknown pragma is nvcc's `unroll`
COMPILE = ["g++", "-std=c++20", "-O2", "-mf16c", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
           "-Wno-unknown-pragmas"]  # fmt: skip
# -Bsymbolic: the real library may be in the process too, and exports some functions of the same names
LINK = ["g++", "-shared", "-Wl,-Bsymbolic"]
SANITIZE = {
    None: [],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    "thread": ["-O1", "-fsanitize=thread"],
}
JOBS = 2


def runs_here() -> bool:
    """Whether this CPU can run the modules: fibers switch stacks on x86-64 only."""
    cpu = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpu.exists() and "f16c" in cpu.read_text().split()


def _includes() -> list[str]:
    system = (pybind11.get_include(), sysconfig.get_paths()["include"])
    return [f"-I{HERE}", f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in system)]


def _up_to_date(target: Path, command: str, sources: list[Path]) -> bool:
    """Whether `target` was made by this very command, after the last change of every source."""
    record = target.with_suffix(".cmd")
    if not target.exists() or not record.exists() or record.read_text() != command:
        return False
    return all(s.exists() and s.stat().st_mtime < target.stat().st_mtime for s in sources)


def _make(target: Path, command: list[str], sources: list[Path]) -> None:
    """Run the command unless the target is up to date."""
    text = shlex.join(command)
    if _up_to_date(target, text, sources):
        return
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{text}\n{done.stderr}")
    target.with_suffix(".cmd").write_text(text)


def _compile(source: Path, folder: Path, flags: list[str]) -> Path:
    target, listing = folder / f"{source.stem}.o", folder / f"{source.stem}.d"
    # the compiler writes the headers it has read: "target: source header header ..."
    headers = listing.read_text().replace("\\\n", " ").split()[1:] if listing.exists() else []
    command = [*COMPILE, *flags, *_includes(), "-MMD", "-MF", str(listing), "-c", str(source), "-o", str(target)]
    _make(target, command, [source, *map(Path, headers)])
    return target


def build(folder: Path = BUILD, sanitize: str | None = None) -> dict[str, Path]:
    """Bring the modules up to date; returns their files by name. Sanitized ones live in folders of their own.

    ThreadSanitizer watches the kernels only: runtime.cpp tells it which accesses are ordered.
    """
    flags = SANITIZE[sanitize]
    folder = folder / (sanitize or "plain")
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        return _compile(source, folder, [] if sanitize == "thread" and source in RUNTIME else flags)

    with open(folder / "lock", "w") as lock, ThreadPoolExecutor(JOBS) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = list(dict.fromkeys(s for group in MODULES.values() for s in group))
        objects = dict(zip(sources, pool.map(compile_one, sources), strict=True))
        files = {}
        for name, group in MODULES.items():
            files[name] = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
            parts = [objects[s] for s in group]
            _make(files[name], [*LINK, *flags, *map(str, parts), "-o", str(files[name])], parts)
    return files


def load(name: str, file: Path) -> ModuleType:
    """Import a built module from its file."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", choices=[s for s in SANITIZE if s])
    for path in build(sanitize=parser.parse_args().sanitize).values():
        print(path)
