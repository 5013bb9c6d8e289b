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

# One length per kind of tile, with the tile's head, parts and whether it has a level. 253 and 4093 are lengths at which
# the rows lie at multiples of 16 bytes.
NODES_BELOW_HEAD = {
    253: (1, 1, False),
    512: (2, 1, False),
    700: (3, 1, False),
    1000: (4, 1, False),
    1277: (5, 1, False),
    1500: (6, 1, False),
    2045: (8, 1, False),
    2500: (10, 1, False),
    3001: (12, 1, False),
    5000: (20, 1, False),
    6144: (24, 1, False),
}
LEVEL_AT_ROOT = {4093: (1, 1, True), 4096: (1, 1, True), 8189: (1, 2, True), 7000: (1, 2, True)}
LEVEL_AND_HEAD = {
    12001: (3, 1, True),
    16384: (4, 1, True),
    20000: (5, 1, True),
    24573: (6, 1, True),
    32765: (8, 1, True),
}
TILES = NODES_BELOW_HEAD | LEVEL_AT_ROOT | LEVEL_AND_HEAD
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
