"""Sample inputs of every op: the one list behind the value, gradient, gradcheck, opcheck, compile and stride tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import monarch_ops as mo
from monarch_ops import reference


@dataclass(frozen=True)
class Case:
    """Tensors by name and shape, options by value; `lengths` becomes an int64 tensor."""

    op: str
    label: str
    shapes: dict[str, tuple[int, ...]]
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        """Fresh values: unit normal, weights and taps scaled so that results stay of order one."""
        generator = torch.Generator().manual_seed(seed)
        out = {}
        for name, shape in self.shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name in SCALED and shape:
                value = value / math.sqrt(max(1, shape[-1]))
            out[name] = value.to(dtype)
        return out

    def extra(self, tensors: dict[str, Tensor]) -> dict:
        """The options, for calls with these tensors."""
        options = dict(self.options)
        if "lengths" in options:
            options["lengths"] = torch.tensor(options["lengths"], device=next(iter(tensors.values())).device)
        return options


SCALED = ("k", "k_rev", "k2", "k2_rev", "weight", "w_in", "w_out", "w1", "w2", "short_weight")


# ---- ops whose filters are prepared: adapters with plain tensors as arguments, so that gradients reach the taps ------


def prepared_conv(
    u, k, k_rev=None, skip=None, pre_gate=None, post_gate=None, lengths=None, circular=False, variant=None
):
    spectrum = mo.fft_filter(k, u.shape[-1], k_rev=k_rev, skip=skip, circular=circular, dtype=u.dtype, variant=variant)
    return mo.fft_conv(u, spectrum, pre_gate=pre_gate, post_gate=post_gate, lengths=lengths)


def mixer(
    a, short_weight, short_bias, k, k_rev, skip, u=None, k2=None, k2_rev=None, skip2=None, lengths=None, variant=None
):
    seqlen = a.shape[-1]
    main = mo.fft_filter(k, seqlen, k_rev=k_rev, skip=skip, dtype=a.dtype, variant=variant)
    rest = None
    if k2 is not None:
        rest = mo.fft_filter(k2, seqlen, k_rev=k2_rev, skip=skip2, dtype=a.dtype, variant=variant)
    return mo.m2_mixer(a, u, short_weight, short_bias, main, rest, lengths)


def mixer_reference(
    a, short_weight, short_bias, k, k_rev, skip, u=None, k2=None, k2_rev=None, skip2=None, lengths=None
):
    rest = None if k2 is None else {"k": k2, "k_rev": k2_rev, "skip": skip2}
    return reference.m2_mixer(a, u, short_weight, short_bias, {"k": k, "k_rev": k_rev, "skip": skip}, rest, lengths)


# ---- products of rows as long convolutions have them: tensors of the case are (..., features, L) --------------------


def of_rows(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, on transposed tensors."""

    def call(x: Tensor, *, residual: Tensor | None = None, **others: Any) -> Tensor:
        if residual is not None:
            others["residual"] = residual.transpose(-2, -1)
        return function(x.transpose(-2, -1), **others)

    return call


@dataclass(frozen=True)
class Op:
    """How to call an op and its reference, and the kernel family whose variants it can be forced to."""

    call: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    family: str | None = None


OPS = {
    "fft_conv": Op(mo.fft_conv, reference.fft_conv, "fft_conv"),
    "prepared_conv": Op(prepared_conv, reference.fft_conv, "fft_conv"),
    "m2_mixer": Op(mixer, mixer_reference, "fft_conv"),
    "depthwise_conv1d": Op(mo.depthwise_conv1d, reference.depthwise_conv1d, "depthwise_conv1d"),
    "blockdiag_matmul": Op(mo.blockdiag_matmul, reference.blockdiag_matmul, "mlp"),
    "blockdiag_matmul_of_rows": Op(of_rows(mo.blockdiag_matmul), of_rows(reference.blockdiag_matmul), "mlp"),
    "monarch_matmul": Op(mo.monarch_matmul, reference.monarch_matmul, "mlp"),
    "blockdiag_glu_mlp": Op(mo.blockdiag_glu_mlp, reference.blockdiag_glu_mlp, "mlp"),
    "blockdiag_glu_mlp_of_rows": Op(of_rows(mo.blockdiag_glu_mlp), of_rows(reference.blockdiag_glu_mlp), "mlp"),
}


def _conv(
    label: str,
    shape: tuple[int, int, int],
    taps: int | None = None,
    rev: int | None = None,
    gates: str = "",
    skip: bool = False,
    **options,
) -> list[Case]:
    _, H, L = shape
    shapes: dict[str, tuple[int, ...]] = {"u": shape, "k": (H, L if taps is None else taps)}
    if rev is not None:
        shapes["k_rev"] = (H, rev)
    if skip:
        shapes["skip"] = (H,)
    if "pre" in gates:
        shapes["pre_gate"] = shape
    if "post" in gates:
        shapes["post_gate"] = shape
    return [Case(op, label, shapes, options) for op in ("fft_conv", "prepared_conv")]


def _depthwise(label: str, shape: tuple[int, int, int], taps: int, bias: bool = True, **options) -> Case:
    channels = shape[2] if options.get("layout") == "blh" else shape[1]
    shapes: dict[str, tuple[int, ...]] = {"x": shape, "weight": (channels, taps)}
    if bias:
        shapes["bias"] = (channels,)
    return Case("depthwise_conv1d", label, shapes, options)


def _mixer(label: str, B: int, H: int, L: int, residual: bool = True, **options) -> Case:
    shapes: dict[str, tuple[int, ...]] = {
        "a": (B, 3 * H, L),
        "short_weight": (3 * H, 3),
        "short_bias": (3 * H,),
        "k": (H, L),
        "k_rev": (H, L),
        "skip": (H,),
    }
    if residual:
        shapes |= {"u": (B, H, L), "k2": (H, L), "k2_rev": (H, L), "skip2": (H,)}
    return Case("m2_mixer", label, shapes, options)


def _mlp(label: str, lead: tuple[int, ...], blocks: int, features: int, inner: int, parts: str) -> Case:
    shapes: dict[str, tuple[int, ...]] = {
        "x": (*lead, features),
        "w_in": (blocks, 2 * inner // blocks, features // blocks),
        "w_out": (blocks, features // blocks, inner // blocks),
    }
    if "bias" in parts:
        shapes["b_out"] = (features,)
    if "residual" in parts:
        shapes["residual"] = (*lead, features)
    if "norm" in parts:
        shapes |= {"norm_weight": (features,), "norm_bias": (features,)}
    return Case("blockdiag_glu_mlp", label, shapes, {"eps": 1e-5})


def _of_rows(case: Case) -> Case:
    """The same case with features before positions."""
    turned = {n: (*s[:-2], s[-1], s[-2]) if n in ("x", "residual") else s for n, s in case.shapes.items()}
    return Case(f"{case.op}_of_rows", case.label, turned, case.options)


# Small: also differentiated numerically (gradcheck), so a few dozen elements at most.
SMALL: list[Case] = [
    *_conv("one", (1, 1, 1)),
    *_conv("causal", (2, 2, 7)),
    *_conv("two-sided", (2, 2, 6), rev=6, skip=True),
    *_conv("short-taps", (1, 2, 9), taps=3, rev=2),
    *_conv("long-taps", (1, 1, 4), taps=9, rev=8),
    *_conv("gated", (2, 2, 5), rev=5, gates="pre post", skip=True, lengths=(5, 3)),
    *_conv("pre-gate", (2, 1, 5), gates="pre"),
    *_conv("post-gate", (2, 1, 5), gates="post", lengths=(0, 5)),
    *_conv("circular", (2, 2, 6), circular=True),
    *_conv("circular-short", (1, 2, 7), taps=4, circular=True, skip=True, gates="pre post"),
    _mixer("mixer", 2, 2, 5, lengths=(5, 2)),
    _mixer("mixer-plain", 1, 2, 4, residual=False),
    _depthwise("causal", (2, 3, 6), 3),
    _depthwise("causal-silu", (2, 3, 6), 4, activation="silu"),
    _depthwise("same-even", (1, 2, 5), 4, padding="same"),
    _depthwise("padded", (2, 2, 4), 3, bias=False, padding=3),
    _depthwise("valid-blh", (2, 6, 3), 3, padding=0, layout="blh"),
    _depthwise("blh-silu", (2, 5, 3), 2, layout="blh", activation="silu"),
    Case("blockdiag_matmul", "bias", {"x": (2, 3, 8), "weight": (4, 3, 2), "bias": (12,)}),
    Case("blockdiag_matmul", "plain", {"x": (5, 6), "weight": (3, 1, 2)}),
    Case("monarch_matmul", "square", {"x": (3, 16), "w1": (4, 4, 4), "w2": (4, 4, 4), "bias": (16,)}),
    Case("monarch_matmul", "ragged", {"x": (2, 2, 6), "w1": (3, 4, 2), "w2": (2, 5, 6)}),
    _mlp("full", (2, 3), 2, 4, 4, "bias residual norm"),
    _mlp("plain", (3,), 2, 4, 6, ""),
    _mlp("residual", (3,), 1, 4, 4, "bias residual"),
    _mlp("one-tile", (1, 17), 1, 3, 2, "bias residual norm"),
    _of_rows(_mlp("rows", (2, 3), 2, 4, 4, "bias residual norm")),
    _of_rows(_mlp("one-tile", (1, 17), 1, 2, 2, "bias")),
    _of_rows(Case("blockdiag_matmul", "rows", {"x": (2, 3, 8), "weight": (4, 3, 2), "bias": (12,)})),
    _of_rows(Case("blockdiag_matmul", "one-tile", {"x": (1, 18, 4), "weight": (2, 1, 2)})),
]

# Larger: values and first derivatives on every dtype and kernel variant.
LARGE: list[Case] = [
    *[c for L in (2, 3, 16, 17, 127, 128, 129, 257, 1000, 1024, 1031, 2500) for c in _conv(f"L{L}", (2, 3, L))],
    *[
        c
        for L in (33, 640, 1536, 2049, 4096, 8190)
        for c in _conv(f"two-sided-L{L}", (3, 2, L), rev=L, gates="pre post", skip=True, lengths=(L, L // 2, 0))
    ],
    *[  # on the CPU one codelet of some instruction set, for a whole row and for one that is cut
        c
        for L in (32, 64, 128)
        for c in _conv(f"codelet-{L}", (2, 3, L), gates="pre post", skip=True, lengths=(L, L - 3))
    ],
    *_conv("batch-slices", (9, 2, 200), rev=50, gates="post"),
    *_conv("few-taps", (2, 3, 4096), taps=5, rev=3),
    *_conv("long", (1, 2, 14113), rev=14113, skip=True),
    *_conv("in-three", (1, 1, 32769), gates="pre"),
    *_conv("longest", (2, 2, 65537), rev=65537, gates="pre post", skip=True, lengths=(65537, 700)),
    *_conv("circular-1024", (2, 3, 1024), circular=True),
    *_conv("circular-1000", (2, 3, 1000), taps=700, circular=True, gates="pre post", skip=True),
    _mixer("mixer-128", 2, 3, 128, lengths=(128, 77)),
    _mixer("mixer-130", 2, 5, 130, lengths=(130, 77)),
    _mixer("mixer-512", 1, 3, 512, residual=False),
    _depthwise("L1000", (2, 5, 1000), 3),
    _depthwise("L257-silu", (3, 4, 257), 7, activation="silu", padding="same"),
    _depthwise("blh", (2, 300, 37), 4, layout="blh", activation="silu"),
    _depthwise("pad-9", (1, 20, 50), 5, padding=9),
    Case("blockdiag_matmul", "m2bert", {"x": (2, 50, 96), "weight": (4, 48, 24), "bias": (192,)}),
    Case("blockdiag_matmul", "tiles", {"x": (300, 39), "weight": (3, 205, 13)}),
    _of_rows(Case("blockdiag_matmul", "tiles", {"x": (2, 150, 96), "weight": (4, 48, 24), "bias": (192,)})),
    _of_rows(Case("blockdiag_matmul", "deep", {"x": (1, 33, 500), "weight": (1, 25, 500), "bias": (25,)})),
    Case("monarch_matmul", "n64", {"x": (2, 30, 64), "w1": (8, 8, 8), "w2": (8, 8, 8), "bias": (64,)}),
    Case("monarch_matmul", "expand", {"x": (40, 24), "w1": (4, 12, 6), "w2": (6, 10, 8)}),
    Case("monarch_matmul", "shrink", {"x": (300, 70), "w1": (5, 21, 14), "w2": (7, 3, 15), "bias": (21,)}),
    _mlp("m2bert", (2, 40), 4, 96, 192, "bias residual norm"),
    _mlp("odd", (37,), 3, 33, 45, "bias norm"),
    _mlp("tiles", (300,), 3, 30, 66, "residual norm"),
    _mlp("wide", (250,), 2, 8, 8192, "bias residual norm"),
    _of_rows(_mlp("tiles", (2, 150), 3, 30, 66, "bias residual norm")),
    _of_rows(_mlp("wide", (2, 250), 2, 8, 8192, "bias residual norm")),
    _of_rows(_mlp("plain", (3, 20), 2, 24, 50, "")),
]


def call(case: Case, tensors: dict[str, Tensor], variant: str | None = None) -> Tensor:
    op = OPS[case.op]
    forced = {} if variant is None else {"variant": variant}
    return op.call(**tensors, **case.extra(tensors), **forced)


def call_reference(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    return OPS[case.op].reference(**tensors, **case.extra(tensors))


def oracle(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    return call_reference(case, {name: t.double() for name, t in tensors.items()})


def gradients(function: Callable[[dict], Tensor], tensors: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """Of the sum of the function's result times the weight."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    out = function(leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), weight.to(out.dtype))
    return dict(zip(leaves, grads, strict=True))
