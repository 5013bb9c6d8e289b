"""The one tolerance policy of the tests.

Let e be our relative L2 error against the float64 oracle and r the error of the same PyTorch reference evaluated in the
same dtype (float32 arithmetic for 16-bit tensors). A result passes when ``e <= 2 r + floor``: no number appears in a
test, the tolerance follows the data. The floor covers results whose reference is exact by luck: half an ulp for 16-bit
results, which are rounded once; one ulp for float32, where every operation rounds; 16 for float64, where the oracle has
the same roundoff as the result. A tolerance is worth something only if wrong results fail it, so every check also
asserts that an all-zero result and one shifted by an element would not pass.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(value: Tensor, oracle: Tensor) -> float:
    """Relative L2 distance; 0 for an empty or all-zero pair, infinite where only the oracle is zero or NaN appears."""
    value, oracle = value.detach().double(), oracle.detach().double()
    distance, norm = (value - oracle).norm().item(), oracle.norm().item()
    if distance == 0:
        return 0.0
    return distance / norm if norm > 0 and distance == distance else float("inf")


FLOOR_IN_ULPS = {torch.bfloat16: 0.5, torch.float16: 0.5, torch.float32: 1, torch.float64: 16}


def bound(baseline: Tensor, oracle: Tensor) -> float:
    """The error that a result of the dtype of `baseline` may have."""
    floor = FLOOR_IN_ULPS[baseline.dtype] * torch.finfo(baseline.dtype).eps
    return 2 * relative_error(baseline, oracle) + floor


def assert_matches(ours: Tensor, oracle: Tensor, baseline: Tensor, what: str = "result") -> None:
    """`ours` is as good as `baseline`, and the check would notice if it were not."""
    assert ours.shape == oracle.shape == baseline.shape, f"{what}: shape {tuple(ours.shape)}, not {tuple(oracle.shape)}"
    assert ours.dtype == baseline.dtype, f"{what}: dtype {ours.dtype}, not {baseline.dtype}"
    if oracle.numel() == 0:
        return
    limit, error = bound(baseline, oracle), relative_error(ours, oracle)
    assert error <= limit, f"{what}: relative error {error:.3e} exceeds {limit:.3e}"
    if oracle.norm() == 0:
        return
    assert relative_error(torch.zeros_like(oracle), oracle) > limit, f"{what}: an all-zero result would pass"
    shifted = oracle.flatten().roll(1).reshape(oracle.shape)
    if oracle.numel() > 1 and not torch.equal(shifted, oracle):
        assert relative_error(shifted, oracle) > limit, f"{what}: a shifted result would pass"
