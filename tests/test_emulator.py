"""The emulator of tests/emulator: it finds planted faults, and its conversions are those of a GPU."""

from __future__ import annotations

import re
from types import ModuleType

import numpy as np
import pytest
import torch
from emulator import build
from emulator.driver import SCHEDULES, Emulator

pytestmark = pytest.mark.emulated


@pytest.fixture(scope="session")
def selftest(emulator_files) -> ModuleType:
    return build.load("monarch_emulator_selftest", emulator_files["monarch_emulator_selftest"])


def shifted(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, :1], x[:, :-1]], axis=1)


def squared(x: np.ndarray) -> np.ndarray:
    """Rows as 16 x 16 matrices of halves, times themselves."""
    halves = x.reshape(-1, 16, 16).astype(np.float16).astype(np.float32)
    return (halves @ halves).reshape(x.shape)


def outcomes(selftest: ModuleType, kernel: str, expected) -> list[str]:
    """What each schedule finds: an error message, "wrong result" or "right"."""
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    found = []
    for schedule in SCHEDULES:
        selftest.set_schedule(*schedule)
        try:
            y = getattr(selftest, kernel)(x=x, outputs=["y"])["y"]
            found.append("right" if np.allclose(y, expected(x), atol=1e-4) else "wrong result")
        except RuntimeError as error:
            found.append(str(error))
    return found


def test_right_kernels_pass(selftest):
    assert set(outcomes(selftest, "shift", shifted)) == {"right"}
    assert set(outcomes(selftest, "sum", lambda x: x.sum(1, keepdims=True).repeat(256, 1))) == {"right"}
    assert set(outcomes(selftest, "copy", shifted)) == {"right"}
    assert set(outcomes(selftest, "square", squared)) == {"right"}
    greatest = outcomes(selftest, "greatest", lambda x: abs(x).reshape(3, 8, 32).max(2).repeat(32, axis=1))
    assert set(greatest) == {"right"}


def test_missing_barriers_show(selftest):
    """Threads that happen to run in the lucky order hide the fault; that is why there are several schedules."""
    assert [o != "right" for o in outcomes(selftest, "missing_barrier", shifted)] == [False, True, True, True]
    assert [o != "right" for o in outcomes(selftest, "missing_second_barrier", shifted)] == [True, False, True, True]


def test_copies_that_nobody_has_waited_for_show(selftest):
    """In every schedule: a copy arrives as late as it may. What comes after the wait is up to barriers."""
    for found in outcomes(selftest, "missing_wait", shifted):
        assert re.match(r"element \d+ of 'y' was not written, or is made of such", found)
    assert "right" not in outcomes(selftest, "missing_barrier_after_wait", shifted)
    assert [o != "right" for o in outcomes(selftest, "copy_too_early", shifted)] == [True, False, True, True]


def test_missing_warp_barriers_show(selftest):
    """All lanes meet at the instruction that reads for all of them, but that orders nothing."""
    assert "right" not in outcomes(selftest, "missing_warp_barrier", squared)
    assert "right" not in outcomes(selftest, "missing_second_warp_barrier", squared)


@pytest.mark.parametrize("kernel", ["wrong_fragment", "fragment_off_by_one", "matrix_after_shared"])
def test_wrong_operands_show(selftest, kernel):
    assert set(outcomes(selftest, kernel, squared)) == {"wrong result"}


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("early_exit", r"divergent barrier: thread \d+ of block 1 waits at selftest.cpp:\d+, thread 7 has exited"),
        ("two_barriers", r"divergent barrier: thread \d+ of block \d waits at .*, others wait at selftest.cpp:\d+"),
        ("write_after_shared", r"block \d wrote outside of its 1024 bytes of shared memory, at byte 1024"),
        ("write_before_shared", r"block \d wrote outside of its 1024 bytes of shared memory, at byte -4"),
        ("read_unwritten_shared", r"element \d+ of 'y' was not written, or is made of such"),
        ("trap", r"__trap: thread 5 of block 1 at selftest.cpp:\d+"),
        ("write_after_output", r"wrote outside of 'y', at byte 3072"),
        ("unwritten_output", r"element 259 of 'y' was not written"),
        ("changed_input", r"changed the input 'x'"),
        ("read_after_input", r"element 767 of 'y' was not written, or is made of such"),
        ("misaligned_matrix", r"misaligned row of a matrix: thread \d+ of block \d at selftest.cpp:\d+"),
        ("copy_without_end", r"copies on their way: thread \d+ of block \d has not waited for them"),
        ("misaligned_copy", r"bad asynchronous copy: thread 0 of block \d at selftest.cpp:\d+"),
        ("copy_after_input", r"element \d+ of 'y' was not written, or is made of such"),
        ("half_a_warp", r"divergent warp: thread \d+ of block \d waits at selftest.cpp:\d+, others .* are elsewhere"),
        ("lanes_apart", r"divergent warp: thread \d+ of block \d waits at .*, others of its warp wait at .*:\d+"),
    ],
)
def test_planted_faults_are_found(selftest, kernel, message):
    for found in outcomes(selftest, kernel, lambda x: x):
        assert re.match(message, found)
    assert set(outcomes(selftest, "shift", shifted)) == {"right"}  # a failed launch leaves nothing behind


def test_bad_launches_and_arguments_are_refused(selftest, emulator_files):
    emulator = Emulator(build.load("monarch_emulator", emulator_files["monarch_emulator"]))
    with pytest.raises(RuntimeError, match="launch refused: 0 blocks"):
        selftest.shift(x=np.zeros((0, 256), np.float32), outputs=["y"])
    x = torch.zeros(1, 1, 4)
    with pytest.raises(TypeError, match="no argument lenghts"):
        emulator("conv", ["y"], u=x, k=x[0], lenghts=None)
    with pytest.raises(TypeError, match="no output grad_u"):
        emulator("conv", ["y", "grad_u"], u=x, k=x[0])
    with pytest.raises(TypeError, match="k must be float32, is float64"):
        emulator("conv", ["y"], u=x, k=x[0].double())


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("half", torch.float16)])
def test_conversions(selftest, name, dtype):
    """Every 16-bit pattern; floats of every size, and all those half-way between two 16-bit neighbours."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    widen, narrow = getattr(selftest, f"{name}_to_float"), getattr(selftest, f"float_to_{name}")
    exact = torch.from_numpy(bits).view(dtype).float().numpy()
    np.testing.assert_array_equal(widen(bits), exact)
    finite = np.sort(exact[np.isfinite(exact)].astype(np.float64))
    halfway = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 1 << 17, dtype=np.uint32).view(np.float32)
    values = np.concatenate([halfway, np.nextafter(halfway, np.float32(np.inf)), patterns[~np.isnan(patterns)]])
    np.testing.assert_array_equal(narrow(values), torch.from_numpy(values).to(dtype).view(torch.uint16).numpy())
    assert narrow(np.float32(np.nan)) == 0x7FFF
