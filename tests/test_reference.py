"""The references against independent definitions: SciPy, dense matrices, torch's own convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import signal
from torch.nn import functional as F

from monarch_ops import reference

torch_double = torch.float64


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch_double)


@pytest.mark.parametrize("L", [1, 2, 7, 64, 100])
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_convolution_against_scipy(L: int, method: str) -> None:
    u, k, k_rev, skip = randn(2, 3, L), randn(3, L), randn(3, L), randn(3)
    y = reference.fft_conv(u, k, k_rev=k_rev, skip=skip, method=method)
    for b in range(2):
        for h in range(3):
            causal = signal.convolve(u[b, h], k[h], method="direct")[:L]
            # reverse taps act on the flipped row, one lag later
            flipped = signal.convolve(u[b, h].flip(0), np.concatenate([[0.0], k_rev[h]]), method="direct")[:L]
            expected = causal + flipped[::-1] + (skip[h] * u[b, h]).numpy()
            np.testing.assert_allclose(y[b, h], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("L", "Lk"), [(1, 1), (8, 8), (9, 4), (30, 29)])
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_circular_convolution(L: int, Lk: int, method: str) -> None:
    u, k = randn(2, 3, L), randn(3, Lk)
    expected = np.fft.ifft(np.fft.fft(u) * np.fft.fft(k, n=L)).real
    np.testing.assert_allclose(reference.fft_conv(u, k, circular=True, method=method), expected, rtol=1e-11, atol=1e-12)


def test_gates_and_lengths() -> None:
    u, pre, post, k = randn(3, 2, 9), randn(3, 2, 9), randn(3, 2, 9), randn(2, 9)
    lengths = torch.tensor([9, 4, 0])
    y = reference.fft_conv(u, k, pre_gate=pre, post_gate=post, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        assert not y[b, :, n:].any()
        if n:
            short = reference.fft_conv((u * pre)[b : b + 1, :, :n], k) * post[b : b + 1, :, :n]
            torch.testing.assert_close(y[b : b + 1, :, :n], short)


def test_matrix_products_against_dense_matrices() -> None:
    x, weight, bias = randn(5, 12), randn(3, 2, 4), randn(6)
    dense = torch.zeros(6, 12, dtype=torch_double)
    for g in range(3):
        dense[2 * g : 2 * g + 2, 4 * g : 4 * g + 4] = weight[g]
    torch.testing.assert_close(reference.blockdiag_matmul(x, weight, bias), x @ dense.T + bias)
    w1, w2 = randn(3, 4, 4), randn(2, 5, 6)
    torch.testing.assert_close(reference.monarch_matmul(x, w1, w2), x @ reference.monarch_dense(w1, w2).T)


def test_monarch_matrices_contain_the_fourier_transform() -> None:
    """The reason for the name: with the right blocks the product is a DFT (here of 4 = 2 x 2 points, real part)."""
    n = 2
    dft = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.complex128)
    twiddle = torch.exp(-2j * torch.pi * torch.outer(torch.arange(n), torch.arange(n)) / n**2).to(torch.complex128)
    x = torch.randn(1, n * n, dtype=torch.complex128)
    # columns first: x is read as a matrix with the slow index first, so its transpose enters
    by_column = x.reshape(n, n).T.reshape(1, -1)
    w1 = torch.stack([torch.diag(twiddle[j]) @ dft for j in range(n)])
    y = reference.monarch_matmul(by_column, w1, torch.stack([dft] * n))
    torch.testing.assert_close(y.flatten(), torch.fft.fft(x).flatten())


def test_short_convolution_against_torch() -> None:
    x, weight, bias = randn(2, 3, 10), randn(3, 4), randn(3)
    same = F.conv1d(x, weight[:, None], bias, padding="same", groups=3)
    torch.testing.assert_close(reference.depthwise_conv1d(x, weight, bias, padding="same"), same)
    causal = F.conv1d(x, weight[:, None], bias, padding=3, groups=3)[..., :10]
    torch.testing.assert_close(reference.depthwise_conv1d(x, weight, bias), causal)
    last = reference.depthwise_conv1d(x.transpose(1, 2), weight, bias, padding=2, layout="blh", activation="silu")
    torch.testing.assert_close(last.transpose(1, 2), F.silu(F.conv1d(x, weight[:, None], bias, padding=2, groups=3)))
