"""Recorded runs: one JSON file each, under ``results/<device>/``, whole at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from measure import DEVICES

from monarch_ops import _C

BENCH = Path(__file__).parent
RESULTS = BENCH / "results"
UNKNOWN = "unknown"  # a commit, where there is no repository
MALLOC = os.environ.get("GLIBC_TUNABLES", "default")


def source_hash(device: str) -> str:
    """Of the code that decides what runs on "cpu" or "cuda": ``csrc/`` without what is for the other device.

    Comments and white space do not count.
    """
    root = BENCH.parent / "csrc"
    other = {"cpu": ("kernels/cuda/", "plan/tiles."), "cuda": ("kernels/cpu/",)}[device]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and path.suffix != ".md" and not name.startswith(other):
            code = re.sub(rb"//[^\n]*|/\*.*?\*/", b"", path.read_bytes(), flags=re.DOTALL)
            digest.update(name.encode() + b"\0" + b"".join(code.split()) + b"\0")
    return digest.hexdigest()[:16]


def device_name(device: str) -> str:
    """For instance nvidia-h100-80gb-hbm3, or cpu-amd-epyc-avx512-2-cores."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        try:
            text = Path("/proc/cpuinfo").read_text()
            model = re.search(r"model name\s*: (.*)", text)
        except OSError:
            model = None
        processor = re.sub(r"\(\w+\)", "", model[1]) if model else platform.processor() or platform.machine()
        name = f"cpu {processor} {_C.build_info()['cpu_isa']} {torch.get_num_threads()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit(otherwise: str | None = None) -> str:
    """Of the working tree, "-dirty" when files changed other than what recorded runs and reports write.

    Where there is no repository, `otherwise`.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=BENCH.parent)
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    written = (":!bench/results", ":!docs", ":!README.md")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return (git("rev-parse", "--short", "HEAD") or otherwise or UNKNOWN) + ("-dirty" if changed else "")


def newer_than_the_library() -> list[str]:
    """Sources that changed after the library was built, which so is not of them."""
    root, library = BENCH.parent, Path(_C.__file__).with_name("libmonarch_ops.so")
    sources = [*root.glob("CMakeLists.txt"), *(root / "csrc").rglob("*.[chd]*")]
    built = library.stat().st_mtime
    return sorted(path.relative_to(root).as_posix() for path in sources if path.stat().st_mtime > built)


def gpu_state() -> dict[str, str]:
    """What nvidia-smi says of the driver and of the moment's clocks; nothing where it is not there."""
    fields = ["driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"]
    try:
        command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {}
    return dict(zip(fields, done.stdout.strip().split(", "), strict=False))


def new_path(output: Path | None = None, otherwise: str | None = None) -> Path:
    """For a run on this machine, of these sources; in a folder `output` the one that began there, whatever the date."""
    folder = (output or RESULTS) / device_name(DEVICES[-1])
    name = f"{commit(otherwise)}{'-tuned-malloc' if MALLOC != 'default' else ''}.json"
    begun = sorted(folder.glob(f"????-??-??-{name}")) if output else []
    return begun[-1] if begun else folder / f"{time.strftime('%Y-%m-%d')}-{name}"


def summary(blocks: list[list[list[float]]]) -> dict[str, Any]:
    """What a row says of its blocks: by process, seconds of ours and, if there is one, of the baseline after it.

    Seconds are medians; the ratio and its quartiles are over the medians of the processes, or over the pairs of
    blocks if there is one process.
    """
    times = [[median(side) for side in zip(*pairs, strict=True)] for pairs in blocks]
    ours, *theirs = (median(side) for side in zip(*times, strict=True))
    row: dict[str, Any] = {"seconds": ours}
    if theirs:
        ratios = [[their / our for our, their in pairs] for pairs in blocks]
        low, ratio, high = quantiles(ratios[0] if len(ratios) == 1 else map(median, ratios), n=4)
        row |= {"baseline seconds": theirs[0], "ratio": ratio, "quartiles": [low, high]}
    return row | {"blocks": blocks}


class Record:
    """A results file that is written anew after every change, or, without a path, none.

    Goes on with a file that is there when it is of the same sources; raises ValueError when it is not. Where there is
    no repository, their commit is `otherwise`, or what the file says.
    """

    def __init__(self, path: Path | None, otherwise: str | None = None) -> None:
        self.path = path
        build = _C.build_info()
        self.content: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "commit": commit(otherwise),
            "csrc": {device: source_hash(device) for device in DEVICES},
            "newer than the library": newer_than_the_library(),
            "torch": torch.__version__,
            "instruction set": build["cpu_isa"],
            "gpu": torch.cuda.get_device_name() if "cuda" in DEVICES else None,
            "threads": torch.get_num_threads(),
            "malloc": MALLOC,
            "rows": [],
            "left out": [],
        }
        if "cuda" in DEVICES:
            self.content["cuda"] = {"torch": torch.version.cuda, "nvcc": build["cuda"], "sm": build["cuda_archs"]}
        if path is not None and path.is_file():
            before = json.loads(path.read_text())
            for name in ("commit", "csrc", "malloc"):
                if before.get(name) != self.content[name] and self.content[name] != UNKNOWN:
                    raise ValueError(f"{path} records a run of {name} {before.get(name)}, not {self.content[name]}")
            self.content |= before

    def blocks(self, test: str) -> list[list[list[float]]]:
        """By process, what is recorded of a test."""
        return next((row["blocks"] for row in self.content["rows"] if row["test"] == test), [])

    def keep(self, row: dict[str, Any]) -> None:
        """In the place of an earlier row of its test, if there is one."""
        rows = self.content["rows"]
        where = next((i for i, other in enumerate(rows) if other["test"] == row["test"]), len(rows))
        self.update(rows=[*rows[:where], row, *rows[where + 1 :]])

    def update(self, **entries: Any) -> None:
        self.content |= entries
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        part.replace(self.path)
