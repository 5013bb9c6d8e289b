"""Arrays of other libraries go in and out through DLPack, without a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerance import assert_matches

import monarch_ops as mo
from monarch_ops import _C, reference


def test_numpy() -> None:
    u, k = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(np.float32), np.ones((3, 40), np.float32)
    rows, taps = torch.from_dlpack(u), torch.from_dlpack(k)
    assert rows.data_ptr() == u.ctypes.data
    y = mo.fft_conv(rows, taps)
    array = np.from_dlpack(y)
    assert array.ctypes.data == y.data_ptr()
    exact = np.cumsum(u.astype(np.float64), -1)  # what a filter of ones computes
    np.testing.assert_allclose(array, exact, atol=1e-5)


def test_strided_numpy() -> None:
    """A view that NumPy made: every second channel, time in steps."""
    base = np.random.default_rng(0).standard_normal((2, 6, 80)).astype(np.float32)
    u, k = torch.from_dlpack(base[:, ::2, ::2]), torch.randn(3, 40)
    assert u.stride() == (480, 160, 2)
    exact = reference.fft_conv(u.double(), k.double())
    assert_matches(mo.fft_conv(u, k), exact, reference.fft_conv(u, k))


def test_dlpack_capsules() -> None:
    u, k = torch.randn(2, 3, 40), torch.randn(3, 40)
    capsule = torch.utils.dlpack.to_dlpack(u)
    torch.testing.assert_close(mo.fft_conv(torch.from_dlpack(capsule), k), mo.fft_conv(u, k), rtol=0, atol=0)


@pytest.mark.skipif(not _C.cuda_devices(), reason="needs a GPU")
def test_cupy() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    u, k = cupy.random.standard_normal((2, 3, 40), dtype=cupy.float32), cupy.ones((3, 40), cupy.float32)
    rows = torch.from_dlpack(u)
    assert rows.data_ptr() == u.data.ptr
    y = mo.fft_conv(rows, torch.from_dlpack(k))
    array = cupy.from_dlpack(y)
    assert array.data.ptr == y.data_ptr()
    cupy.testing.assert_allclose(array, cupy.cumsum(u.astype(cupy.float64), -1), atol=1e-5)
