"""The causal long convolution by other libraries, each set up as one would for repeated calls.

Every entry takes `u` (B, H, L), taps `k` (H, L) and `skip` (H,) and gives a function of none, which transforms
the filter in every call, as ours beside it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from monarch_ops.demo.speed import torch_fft_conv

Convolution = Callable[[], Tensor]


def compiled(u: Tensor, k: Tensor, skip: Tensor) -> Convolution:
    torch._dynamo.reset()  # a fresh compilation for each shape, not one for all of them
    function = torch.compile(torch_fft_conv, dynamic=False)
    return lambda: function(u, k, skip)


def scipy_fft(u: Tensor, k: Tensor, skip: Tensor) -> Convolution:
    """SciPy's real transforms, in float32, on as many threads as PyTorch has."""
    fft = pytest.importorskip("scipy.fft")
    L, workers = u.shape[-1], torch.get_num_threads()
    rows, taps, weight = u.numpy(), k.numpy(), skip.numpy()[:, None]

    def run() -> Tensor:
        spectrum = fft.rfft(rows, 2 * L, workers=workers) * fft.rfft(taps, 2 * L, workers=workers)
        return torch.from_numpy(fft.irfft(spectrum, 2 * L, workers=workers)[..., :L] + rows * weight)

    return run


def pyfftw(u: Tensor, k: Tensor, skip: Tensor) -> Convolution:
    """FFTW with plans that were measured, buffers that are there already, and padding that is zero already."""
    fftw = pytest.importorskip("pyfftw")
    L, threads = u.shape[-1], torch.get_num_threads()

    def planned(*shape: int) -> tuple:
        real = fftw.zeros_aligned((*shape, 2 * L), "float32")
        bins = fftw.empty_aligned((*shape, L + 1), "complex64")
        options = {"threads": threads, "flags": ["FFTW_MEASURE"]}
        forward = fftw.FFTW(real, bins, **options)
        inverse = fftw.FFTW(bins, fftw.empty_aligned(real.shape, "float32"), direction="FFTW_BACKWARD", **options)
        real[:] = 0  # planning writes into its arrays
        return real, bins, forward, inverse

    rows, row_bins, transform_rows, back = planned(*u.shape[:2])
    taps, tap_bins, transform_taps, _ = planned(k.shape[0])
    source, filter, weight = u.numpy(), k.numpy(), skip.numpy()[:, None]

    def run() -> Tensor:
        rows[..., :L], taps[..., :L] = source, filter
        transform_rows.execute()
        transform_taps.execute()
        row_bins[...] *= tap_bins
        return torch.from_numpy(back()[..., :L] + source * weight)  # a call divides by 2 L, execute() does not

    return run


def cupy_fft(u: Tensor, k: Tensor, skip: Tensor) -> Convolution:
    """cuFFT through CuPy, which has no bfloat16: in float32."""
    cupy = pytest.importorskip("cupy")
    L = u.shape[-1]
    rows, taps, weight = (cupy.from_dlpack(t.float().contiguous()) for t in (u, k, skip))

    def run() -> Tensor:
        spectrum = cupy.fft.rfft(rows, 2 * L) * cupy.fft.rfft(taps, 2 * L)
        return torch.from_dlpack(cupy.fft.irfft(spectrum, 2 * L)[..., :L] + rows * weight[:, None])

    return run


def subquadratic_ops(u: Tensor, k: Tensor, skip: Tensor) -> Convolution:
    """NVIDIA's subquadratic-ops-torch, which has no skip: it lies in the first tap."""
    ops = pytest.importorskip("subquadratic_ops_torch.fft_causal_conv1d")
    taps = with_skip(k, skip).to(u.dtype)
    return lambda: ops.fft_causal_conv1d(u, taps)


def cudnn(u: Tensor, k: Tensor, skip: Tensor) -> Convolution:
    """cuDNN >= 9.26 through its Python frontend, which has no skip: it lies in the first tap."""
    ops = pytest.importorskip("cudnn.ops")
    if not hasattr(ops, "fft_causal_conv1d"):
        pytest.skip("cuDNN's frontend is older than fft_causal_conv1d")
    taps = with_skip(k, skip).to(u.dtype)
    return lambda: ops.fft_causal_conv1d(u, taps)


def with_skip(k: Tensor, skip: Tensor) -> Tensor:
    """Taps whose convolution is that of `k` plus `skip` times the row."""
    return torch.cat([k[:, :1] + skip[:, None], k[:, 1:]], 1)


@dataclass(frozen=True)
class Peer:
    """A library, the devices that it runs on, and whether its memory is not PyTorch's."""

    name: str
    devices: tuple[str, ...]
    make: Callable[[Tensor, Tensor, Tensor], Convolution]
    foreign: bool = False


PEERS = (
    Peer("torch.compile", ("cpu", "cuda"), compiled),
    Peer("SciPy", ("cpu",), scipy_fft),
    Peer("pyFFTW", ("cpu",), pyfftw),
    Peer("CuPy, float32", ("cuda",), cupy_fft, foreign=True),
    Peer("subquadratic-ops", ("cuda",), subquadratic_ops),
    Peer("cuDNN", ("cuda",), cudnn),
)
