"""FFT long convolution, from filter taps or from a prepared spectrum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import OPS, variant_index
from ._registration import (
    compute_dtype,
    refusing,
    register_autocast,
    register_fake,
    register_multilinear_autograd,
    require_tensors,
)
from .fft_filter import FilterSpectrum, require_prepared


@refusing
def fft_conv(
    u: Tensor,
    k: Tensor | FilterSpectrum,
    *,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    lengths: Tensor | None = None,
    circular: bool | None = None,
    precision: str | None = None,
    variant: str | None = None,
) -> Tensor:
    r"""Long convolution of every row of `u` with the filter of its channel, by one FFT per row.

    With ``x = u * pre_gate`` (or ``u``),

    .. math::
        y[t] = \mathrm{post\_gate}[t] \Big( \sum_{s \le t} k[t-s]\, x[s] + \sum_{s > t} k_{rev}[s-t-1]\, x[s]
               + \mathrm{skip}\; x[t] \Big)

    so `k` holds lags 0, 1, 2, ... and `k_rev` lags -1, -2, ... (``k_rev[0]`` is lag -1, the M2-BERT convention,
    arXiv 2310.12109). Differentiable twice in every floating-point argument.

    Args:
        u: (B, H, L) float32, bfloat16, float16 or (on the CPU) float64; any strides, any L >= 1.
        k: (H, Lk) real taps of any floating dtype, or a :class:`FilterSpectrum` from :func:`fft_filter`, which then
            already contains `k_rev` and `skip`, and decides `circular`, `precision` and `variant`. Taps at lags >= L
            reach no output and are ignored.
        k_rev: (H, Lr) anti-causal taps.
        skip: (H,) weight of the input itself.
        pre_gate, post_gate: (B, H, L), dtype of `u`.
        lengths: (B,) int32 or int64: positions >= lengths[b] count as zero in the input and are zero in the output.
            On CUDA the values are not checked on the host; one outside [0, L] stops the kernel.
        circular: indices modulo L (a cyclic convolution, Lk <= L, no `k_rev`): FlashFFTConv's "fft size = L". None is
            false or, with a spectrum, as that was prepared, from which an explicit value must not differ.
        precision: "fast" or "precise"; None is "fast" or, again, that of the spectrum. "fast" lets 16-bit tensors on
            CUDA run on tensor cores, in half precision with float32 sums: a relative error of about 4e-4 besides the
            rounding of results, 5e-4 in gradients of filters, and a third more for rows of a million points. "precise"
            is float32 throughout, for filters whose results are small differences of large numbers.
        variant: name of a kernel of :func:`monarch_ops.variants` to force, for tests and benchmarks.

    Returns:
        (B, H, L) in the dtype of `u`. Arithmetic is float32 (float64 for float64).

    Raises:
        TypeError: an argument is not a tensor.
        NotImplementedError: derivatives by torch.func or in forward mode; torch.autograd has those of both orders.
        ValueError: a shape, dtype, device, length or option does not fit; the message names the argument.
    """
    if precision not in (None, "fast", "precise"):
        raise ValueError(f"fft_conv: argument 'precision' must be 'fast' or 'precise', got {precision!r}")
    require_tensors(
        "fft_conv",
        ("u", "k"),
        u=u,
        k=k.data if isinstance(k, FilterSpectrum) else k,
        k_rev=k_rev,
        skip=skip,
        pre_gate=pre_gate,
        post_gate=post_gate,
        lengths=lengths,
    )
    if isinstance(k, FilterSpectrum):
        return _with_spectrum(u, k, k_rev, skip, pre_gate, post_gate, lengths, circular, precision, variant)
    index = variant_index("fft_conv", variant, u.dtype)
    precise = precision == "precise"
    return OPS.fft_conv(u, k, k_rev, skip, pre_gate, post_gate, lengths, bool(circular), precise, index)


def _with_spectrum(
    u: Tensor,
    spectrum: FilterSpectrum,
    k_rev: Tensor | None,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    lengths: Tensor | None,
    circular: bool | None,
    precision: str | None,
    variant: str | None,
) -> Tensor:
    if spectrum.circular and u.shape[-1] != spectrum.seqlen:
        raise ValueError(
            f"fft_conv: argument 'k' must be prepared for the length of 'u', L={u.shape[-1]}, as it is circular, "
            f"got a spectrum prepared for {spectrum.seqlen}"
        )
    require_prepared("fft_conv", "k", spectrum, "u", u)
    if u.dim() == 3 and u.shape[1] != spectrum.data.shape[0]:
        raise ValueError(
            f"fft_conv: argument 'k' must be prepared for the channels of 'u', H={u.shape[1]}, "
            f"got a spectrum of H={spectrum.data.shape[0]}"
        )
    for name, refused in (
        ("k_rev", k_rev is not None),
        ("skip", skip is not None),
        ("circular", circular is not None and circular != spectrum.circular),
        ("precision", precision is not None and (precision == "precise") != spectrum.precise),
        ("variant", variant is not None),
    ):
        if refused:
            raise ValueError(f"fft_conv: argument {name!r} belongs to fft_filter when 'k' is a FilterSpectrum")
    return OPS.fft_conv_spectrum(
        u,
        spectrum.data,
        pre_gate,
        post_gate,
        lengths,
        spectrum.seqlen,
        spectrum.precise,
        spectrum.variant_index,
    )


# ---- fake kernels: shapes only --------------------------------------------------------------------------------------


@register_fake("fft_conv")
def _(u: Tensor, *_: Any) -> Tensor:
    return u.new_empty(u.shape)


@register_fake("fft_conv_spectrum")
def _(u: Tensor, *_: Any) -> Tensor:
    return u.new_empty(u.shape)


def _results(u: Tensor, filters: tuple[Tensor | None, ...], mask: int) -> tuple[Tensor, ...]:
    """Gradients of u, the filter tensors and two gates; empty where the mask or the argument says so."""
    rows, wide = (u.shape, u.dtype), compute_dtype(u.dtype)
    like = [rows, *((torch.Size([0]) if f is None else f.shape, wide) for f in filters), rows, rows]
    return tuple(u.new_empty(s if mask >> i & 1 else (0,), dtype=d) for i, (s, d) in enumerate(like))


@register_fake("fft_conv_backward")
def _(grad: Tensor, u: Tensor, k: Tensor, k_rev: Tensor | None, skip: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return _results(u, (k, k_rev, skip), rest[-1])


@register_fake("fft_conv_spectrum_backward")
def _(grad: Tensor, u: Tensor, spectrum: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _results(u, (spectrum,), rest[-1])


# ---- autograd: <grad, y> is linear in u, in either gate, and jointly in the tensors of the filter --------------------

register_multilinear_autograd("fft_conv", slots=(1, 3, 1, 1), constants=1)
register_multilinear_autograd("fft_conv_spectrum", slots=(1, 1, 1, 1), constants=1)

register_autocast("fft_conv", lowered=(0, 4, 5))
register_autocast("fft_conv_spectrum", lowered=(0, 2, 3))
