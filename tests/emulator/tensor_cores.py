"""What the tests of the tensor-core engine share: lengths for every kind of tile, and how good results must be.

The tolerance is a number: the arithmetic is half precision in parts, and no other implementation rounds in the same
places. Every row is held to it by itself.
"""

from __future__ import annotations

import math

import pytest
import torch
from emulator.driver import dtype_name
from tolerance import relative_error
from torch import Tensor

# One length per kind of tile, with its nodes of 256 points, how many there is room for, and its head. 253 and 4093 are
# lengths at which the rows lie at multiples of 16 bytes.
LEVEL_OF_FEW = {
    253: (1, 1, 1),
    512: (2, 2, 1),
    700: (3, 4, 1),
    1000: (4, 4, 1),
    1277: (5, 8, 1),
    1500: (6, 8, 1),
    2045: (8, 8, 1),
}
LEVEL_AT_ROOT = {
    2500: (10, 16, 1),
    3001: (12, 16, 1),
    4093: (16, 16, 1),
    4096: (16, 16, 1),
    5000: (20, 32, 1),
    6144: (24, 32, 1),
    7000: (32, 32, 1),
    8189: (32, 32, 1),
}
LEVEL_AND_HEAD = {
    12001: (48, 48, 3),
    16384: (64, 64, 4),
    20000: (80, 80, 5),
    24573: (96, 96, 6),
    32765: (128, 128, 8),
}
TILES = LEVEL_OF_FEW | LEVEL_AT_ROOT | LEVEL_AND_HEAD
H100 = 232448  # bytes of shared memory
DTYPES = (torch.bfloat16, torch.float16)

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def over_machines(*lengths: int | tuple[int, int]) -> pytest.MarkDecorator:
    """Lengths of rows on an H100, or (length, bytes of shared memory)."""
    given = [(n, {}) if isinstance(n, int) else (n[0], {"shared_memory": n[1]}) for n in lengths]
    ids = [" in ".join(map(str, (n, *machine.values()))) for n, machine in given]
    return pytest.mark.parametrize(("seqlen", "machine"), given, ids=ids)


# Relative L2 errors: of the arithmetic, for filters that decay over a row, and of rounding results.
ARITHMETIC_ERROR = 4.1e-4
ROUNDING_ERROR = {torch.float16: 2.1e-4, torch.bfloat16: 1.67e-3}
# Filters that do not decay, and cyclic ones: the transform computes the product modulo x^n + i, and as much of it as is
# asked for has gone into the imaginary part.
HALF_OF_IT = math.sqrt(2)


def roundings(cut: tuple[int, ...]) -> int:
    """How often the outer part of a row rounds, given its head and its levels: a level once there and once back; a head
    on the sums of a level, which has more than 32 children, once more on the way back.
    """
    head, levels = cut[:2]
    return 2 * levels + (head > 32)


def limit_for(dtype: torch.dtype, factor: float = 1, outer_roundings: int = 0) -> float:
    """The error of results of this dtype. The transform of a row that fits into a block rounds up to seven times."""
    arithmetic = ARITHMETIC_ERROR * math.sqrt((7 + outer_roundings) / 7)
    return 1.03 * factor * math.hypot(ROUNDING_ERROR.get(dtype, 0), arithmetic)


def check(got: Tensor, exact: Tensor, factor: float = 1, outer_roundings: int = 0) -> None:
    """All rows together are right, each of them is nearly as good, and the check would notice if they were not."""
    assert got.shape == exact.shape
    limit = limit_for(got.dtype, factor, outer_roundings)
    assert relative_error(got, exact) <= limit
    for ours, oracle in zip(got.flatten(0, -2), exact.flatten(0, -2), strict=True):
        assert relative_error(ours, oracle) <= 1.5 * limit
        if oracle.any():
            assert relative_error(torch.zeros_like(oracle), oracle) > 1.5 * limit
            assert relative_error(oracle.roll(1), oracle) > 1.5 * limit
