"""Find and load the compiled library; on failure, say what to run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch  # before the library: it brings libtorch into the process

_HERE = Path(__file__).parent
_REBUILD = "`pip install --no-build-isolation .` in the source tree (README, section Install)"


def _load() -> None:
    library = _HERE / "libmonarch_ops.so"
    if not library.exists():
        raise ImportError(f"monarch_ops: the compiled library {library} does not exist. Build it with {_REBUILD}.")
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"monarch_ops: the compiled library {library} does not load with torch {torch.__version__} "
            f"(2.11 or newer is needed): {error}. Rebuild it with {_REBUILD}."
        ) from error


_load()

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"monarch_ops: the extension module _C does not load: {error}. Build it with {_REBUILD}."
    ) from error

OPS = torch.ops.monarch_ops


def variants(*, ask_cuda: bool = True) -> list[dict]:
    """Every compiled kernel, in the order in which the planner prefers them.

    Each entry holds ``family`` (``fft_conv``, ``depthwise_conv1d``, ``mlp``), ``index`` within the family, ``name``
    (the instruction set, or ``cuda``), ``device``, ``compute`` (dtype of the arithmetic), ``precise`` and
    ``available`` (whether this machine can run it). To ask for CUDA devices is to begin to use CUDA, after which no
    child process can; where `ask_cuda` is false, no kernel for CUDA counts as available.
    """
    return list(_C.variants(ask_cuda))


@functools.cache
def _variant_index() -> dict[tuple[str, str, str], int]:
    return {(v["family"], v["name"], v["compute"]): v["index"] for v in variants(ask_cuda=False)}


Function = TypeVar("Function", bound=Callable)


def constant(function: Function) -> Function:
    """``torch.compiler.assume_constant_result`` without the seconds that its import takes: compiled code, which cannot
    look into the extension module, calls the function once, with arguments that are constants."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


@constant
def variant_index(family: str, name: str | None, dtype: torch.dtype) -> int:
    """Index of a kernel by name for tensors of `dtype`; -1 (the planner chooses) for None."""
    if name is None:
        return -1
    computes = {torch.float64: ["float64"], torch.float32: ["float32"]}.get(dtype, ["float32", "float16"])
    known = {n: index for (f, n, c), index in _variant_index().items() if f == family and c in computes}
    if name not in known:
        raise ValueError(f"{family}: argument 'variant' must be one of {sorted(known)} for {dtype}, got {name!r}")
    return known[name]
