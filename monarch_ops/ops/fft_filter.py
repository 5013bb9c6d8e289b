"""Filter spectra: the filter side of a long convolution, prepared once and used for many calls."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor

from .._library import _C, OPS, constant, variant_index, variants
from ._registration import Tensors, compute_dtype, refusing, register_fake, require_tensors


@constant
def _plan(channels: int, seqlen: int, dtype: torch.dtype, device: torch.device, precise: bool, variant: int) -> dict:
    """On the device or, for tensors without data, as on the CPU."""
    name, kind = str(dtype).removeprefix("torch."), "cpu" if device.type == "meta" else device.type
    return _C.explain_fft_conv(1, channels, seqlen, 0, name, kind, device.index or 0, precise, variant)


_planned_on_cpu = functools.cache(lambda dtype: _plan(1, 1, dtype, torch.device("cpu"), False, -1)["variant"])


@constant
def _cpu_kernel(dtype: torch.dtype) -> int:
    """The kernel that the planner chooses on this CPU, for any length."""
    return _planned_on_cpu(dtype)


@constant
def _is_exporting() -> bool:
    """Asked as ordinary code: torch.compile, where it looks into the question, answers always yes in torch 2.11."""
    return torch.compiler.is_exporting()


class FilterSpectrum:
    """The spectrum of a filter, in the order the kernels read it.

    Made by :func:`fft_filter`, passed to :func:`fft_conv` and :func:`m2_mixer` in place of the taps. It serves every
    row that is not longer than the length it was prepared for, at the cost of that length; :func:`fft_length` gives the
    longest one that costs no more.

    On the CPU the order is that of one instruction set, which copies, pickles and exported programs keep: another
    machine uses it as it is, or refuses what it cannot run with a ValueError. All CUDA kernels read one order.

    Attributes:
        data: (H, n) float32 or float64 tensor; its layout belongs to the kernel named by `variant`.
        seqlen: the length it was prepared for. Longer rows are refused; with `circular` so are shorter ones.
        dtype: the dtype of the rows it was prepared for.
    """

    def __init__(
        self,
        data: Tensor,
        num_k: int,
        num_rev: int,
        seqlen: int,
        circular: bool,
        dtype: torch.dtype,
        precise: bool,
        variant_index: int,
    ) -> None:
        self.data = data
        self.num_k, self.num_rev = num_k, num_rev
        self.seqlen = seqlen
        self.circular = circular
        self.dtype = dtype
        self.precise = precise
        self.variant_index = variant_index

    def __getstate__(self) -> dict[str, Any]:
        """The kernel by name: its index belongs to one build, and what the planner chooses to one machine."""
        return self.__dict__ | {"variant": self.variant}

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state.get("variant")
        self.__dict__.update({key: value for key, value in state.items() if key != "variant"})
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        rows = [v for v in variants(ask_cuda=kind == "cuda") if v["family"] == "fft_conv" and v["device"] == kind]
        here = sorted({v["name"] for v in rows if v["available"]})
        if name not in here:
            raise ValueError(
                f"FilterSpectrum: argument 'variant' must be one of {here}, the kernels this machine has for data on "
                f"{self.device}, got a spectrum prepared for {name!r}; prepare it here, with fft_filter"
            )
        if kind == "cpu" or self.variant_index >= 0:
            self.variant_index = variant_index("fft_conv", name, self.dtype)

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def variant(self) -> str:
        """Name of the kernel whose order `data` is in."""
        plan = _plan(self.data.shape[0], self.seqlen, self.dtype, self.device, self.precise, self.variant_index)
        return plan["name"]

    def taps(self) -> tuple[Tensor, Tensor | None]:
        """The filter in time: k (H, Lk) with the skip weight added to lag 0, and k_rev (H, Lr) or None."""
        k, k_rev, _ = OPS.fft_filter_backward(
            self.data,
            self.num_k,
            self.num_rev,
            False,
            self.seqlen,
            self.circular,
            self.dtype,
            self.precise,
            self.variant_index,
        )
        # the transform and its adjoint differ from the identity by 1/M, M the number of complex bins; a cyclic
        # filter has every tap but the first twice
        scale = self.data.shape[1] // 2
        if self.circular:
            k = torch.cat([k[:, :1], k[:, 1:] / 2], dim=1)
        return k * scale, k_rev * scale if self.num_rev else None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FilterSpectrum:
        """The same filter for rows on `device` and of `dtype`: prepared again where the kernels differ."""
        target = self.device if device is None else torch.device(device)
        rows = self.dtype if dtype is None else dtype
        if target.type == self.device.type and compute_dtype(rows) == self.data.dtype:
            return FilterSpectrum(
                self.data.to(target),
                self.num_k,
                self.num_rev,
                self.seqlen,
                self.circular,
                rows,
                self.precise,
                self.variant_index,
            )
        k, k_rev = self.taps()
        return fft_filter(
            k.to(target),
            self.seqlen,
            k_rev=None if k_rev is None else k_rev.to(target),
            circular=self.circular,
            dtype=rows,
            precision="precise" if self.precise else "fast",
        )

    def __repr__(self) -> str:
        return (
            f"FilterSpectrum(channels={self.data.shape[0]}, seqlen={self.seqlen}, circular={self.circular}, "
            f"dtype={self.dtype}, device={self.device}, variant={self.variant!r})"
        )


def require_prepared(op: str, name: str, spectrum: FilterSpectrum, rows_name: str, rows: Tensor) -> None:
    """Raise ValueError where the argument `name` was prepared for rows of a dtype that another kernel takes."""
    if compute_dtype(rows.dtype) != spectrum.data.dtype and rows.is_floating_point():
        raise ValueError(
            f"{op}: argument {name!r} must be prepared for the dtype of {rows_name!r}, {rows.dtype}, "
            f"got a spectrum prepared for {spectrum.dtype}"
        )


def _whole(op: str, seqlen: Any) -> int:
    """`seqlen` as an int; where it is symbolic, the compiled program is for that length."""
    try:
        return operator.index(seqlen)
    except TypeError:
        raise TypeError(f"{op}: argument 'seqlen' must be an int, got {seqlen!r}") from None


def fft_length(seqlen: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> int:
    """Points of the transform that rows of length `seqlen` take: as few of the form {1, 3, 5} 2^n as hold them, of
    which CUDA has those that are {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24} 16^n.

    All lengths with the same number of points cost about the same, and a filter prepared for that number serves them
    all: of the lengths up to L, at most 3 log2(L) filters need to be prepared.

    Args:
        seqlen: length L >= 1 of the rows.
        dtype, device: of the rows; they decide which kernel runs, and with it how small a transform can be.
    """
    seqlen = _whole("fft_length", seqlen)
    if seqlen < 1:
        raise ValueError(f"fft_length: argument 'seqlen' must be at least 1, got {seqlen}")
    return _plan(1, seqlen, dtype, torch.device(device), False, -1)["points"]


@refusing
def fft_filter(
    k: Tensor,
    seqlen: int,
    *,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    circular: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    precision: str = "fast",
    variant: str | None = None,
) -> FilterSpectrum:
    """Prepare the filter of :func:`fft_conv` for rows of length `seqlen`; differentiable twice in the taps.

    Args:
        k: (H, Lk) taps at lags 0, 1, ...; any floating dtype.
        seqlen: length L of the longest rows it will be used on (of all of them with `circular`).
        k_rev: (H, Lr) taps at lags -1, -2, ...; not with `circular`.
        skip: (H,) weight of the input itself.
        circular: indices modulo `seqlen`, Lk <= seqlen.
        dtype: dtype of the rows (default: that of `k`).
        device: device of the rows (default: that of `k`).
        precision, variant: as for :func:`fft_conv`.

    Returns:
        A :class:`FilterSpectrum`. Its tensor takes 2 M floats per channel, M >= seqlen the transform length.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`fft_conv`, naming the argument.
    """
    require_tensors("fft_filter", ("k",), k=k, k_rev=k_rev, skip=skip)
    seqlen = _whole("fft_filter", seqlen)
    if precision not in ("fast", "precise"):
        raise ValueError(f"fft_filter: argument 'precision' must be 'fast' or 'precise', got {precision!r}")
    if device is not None:
        k = k.to(device)
        k_rev, skip = (t if t is None else t.to(device) for t in (k_rev, skip))
    rows = k.dtype if dtype is None else dtype
    precise, index = precision == "precise", variant_index("fft_conv", variant, rows)
    data = OPS.fft_filter(k, k_rev, skip, seqlen, circular, rows, precise, index)
    # in an exported program both ops stay free, so that it runs on any machine; what lives longer names its kernel
    if index < 0 and data.device.type != "cuda" and not _is_exporting():
        index = _cpu_kernel(rows)
    num_rev = 0 if k_rev is None else k_rev.shape[1]
    return FilterSpectrum(data, k.shape[1], num_rev, seqlen, circular, rows, precise, index)


@register_fake("fft_filter")
def _(
    k: Tensor,
    k_rev: Any,
    skip: Any,
    seqlen: int,
    circular: bool,
    dtype: torch.dtype,
    precise: bool = False,
    variant: int = -1,
) -> Tensor:
    plan = _plan(1, seqlen, dtype, k.device, precise, variant)
    return k.new_empty((k.shape[0], plan["spectrum_scalars"]), dtype=compute_dtype(dtype))


@register_fake("fft_filter_backward")
def _(grad: Tensor, num_k: int, num_rev: int, with_skip: bool, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    channels = grad.shape[0]
    return (
        grad.new_empty((channels, num_k)),
        grad.new_empty((channels, num_rev) if num_rev else (0,)),
        grad.new_empty((channels,) if with_skip else (0,)),
    )


# ---- autograd: both ops are linear, and each is the other's derivative -----------------------------------------------


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    k, k_rev, skip, *ctx.options = inputs
    ctx.dtypes = [None if t is None else t.dtype for t in (k, k_rev, skip)]
    ctx.sizes = k.shape[1], 0 if k_rev is None else k_rev.shape[1], skip is not None


def _backward(ctx: Any, grad: Tensor) -> Tensors:
    grads = OPS.fft_filter_backward(grad, *ctx.sizes, *ctx.options)
    cast = [None if d is None else g.to(d) for g, d in zip(grads, ctx.dtypes, strict=True)]
    return (*cast, *(None,) * len(ctx.options))


def _save_backward(ctx: Any, inputs: tuple, output: Any) -> None:
    _, _, num_rev, with_skip, *ctx.options = inputs
    ctx.present = True, bool(num_rev), with_skip


def _double_backward(ctx: Any, *cotangents: Tensor | None) -> Tensors:
    taps = [c if there else None for c, there in zip(cotangents, ctx.present, strict=True)]
    return (OPS.fft_filter(*taps, *ctx.options), *(None,) * (3 + len(ctx.options)))


torch.library.register_autograd("monarch_ops::fft_filter", _backward, setup_context=_save)
torch.library.register_autograd("monarch_ops::fft_filter_backward", _double_backward, setup_context=_save_backward)
