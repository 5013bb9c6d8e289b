"""Sample inputs for kernels in the emulator."""

from __future__ import annotations

import torch
from emulator.driver import Emulator
from torch import Tensor

from monarch_ops import reference

BATCH = 3

# filter taps as functions of L, gates, lengths given
CASES = {
    "causal": (lambda n: {"k": n}, (), False),
    "short": (lambda n: {"k": (n + 2) // 3, "skip": True}, ("pre_gate",), True),
    "long": (lambda n: {"k": n + 3, "k_rev": (n + 1) // 2}, ("post_gate",), False),
    "two-sided": (lambda n: {"k": n, "k_rev": n + 2, "skip": True}, ("pre_gate", "post_gate"), True),
    "circular": (lambda n: {"k": max(n - 1, 1), "circular": True}, ("pre_gate", "post_gate"), False),
}


def double(tensors: dict) -> dict:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in tensors.items()}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def channels_for(seqlen: int) -> int:
    """An odd number, so that two blocks share a channel; more for short rows, or errors are ratios of a few numbers."""
    return 31 if seqlen <= 5 else 7 if seqlen < 1000 else 3


def method_for(seqlen: int) -> str:
    """How the reference computes in float64: by the definition, where that does not take too long."""
    return "direct" if seqlen < 1000 else "fft"


def make_lengths(batch: int, seqlen: int) -> Tensor:
    """No position, all of them, half of them, ..."""
    return torch.tensor([0, seqlen, (seqlen + 1) // 2])[:batch]


def make_taps(case: str, seqlen: int, decay: float = 0) -> dict:
    """Taps fall off by exp(-decay) over the length of the rows."""
    sizes, channels = CASES[case][0](seqlen), channels_for(seqlen)

    def envelope(taps: int) -> Tensor:
        return torch.exp(-decay * torch.arange(taps) / seqlen)

    taps = {name: random(channels, sizes[name]) * envelope(sizes[name]) for name in ("k", "k_rev") if name in sizes}
    if "skip" in sizes:
        taps["skip"] = random(channels)
    return taps | {"circular": "circular" in sizes}


def make_rows(case: str, seqlen: int, dtype: torch.dtype) -> dict:
    _, gates, with_lengths = CASES[case]
    rows = {name: random(BATCH, channels_for(seqlen), seqlen, dtype=dtype) for name in ("u", *gates)}
    return rows | ({"lengths": make_lengths(BATCH, seqlen)} if with_lengths else {})


def reference_gradients(rows: dict, taps: dict, grad: Tensor, method: str) -> dict[str, Tensor]:
    named = {k: v.clone() if isinstance(v, Tensor) else v for k, v in (rows | taps).items()}
    leaves = {k: v.requires_grad_() for k, v in named.items() if isinstance(v, Tensor) and v.is_floating_point()}
    y = reference.fft_conv(**named, method=method)
    return dict(zip((f"grad_{k}" for k in leaves), torch.autograd.grad(y, leaves.values(), grad), strict=True))


def make_mixer(
    seqlen: int, dtype: torch.dtype, bias: bool, residual: bool, with_lengths: bool, decay: float = 0
) -> tuple[dict, dict]:
    """Arguments of the reference, the filters apart."""
    channels = channels_for(seqlen)
    case = {
        "a": random(BATCH, 3 * channels, seqlen, dtype=dtype),
        "u": random(BATCH, channels, seqlen, dtype=dtype) if residual else None,
        "short_weight": random(3 * channels, 3),
        "short_bias": random(3 * channels) if bias else None,
        "lengths": make_lengths(BATCH, seqlen) if with_lengths else None,
    }
    filters = {
        "taps": make_taps("two-sided", seqlen, decay),
        "residual_taps": make_taps("short", seqlen, decay) if residual else None,
    }
    return case, filters


def make_spectrum(emulator: Emulator, seqlen: int, taps: dict, machine: dict) -> Tensor:
    return emulator("filter", ["spectrum"], seqlen=seqlen, **taps, **machine)["spectrum"]


# taps, padding left and right: causal, same, none, wide, cropping, more than all taps
PADDINGS = ((1, 0, 0), (4, 3, 0), (4, 1, 2), (4, 0, 0), (4, -1, -2), (3, 5, -4), (7, 8, 9))


def make_depthwise(
    layout: str, taps: int, length: int, dtype: torch.dtype, channels: int = 37
) -> tuple[Tensor, Tensor]:
    """Rows (2, H, length) in the layout, and a weight; more channels than a block takes where they are innermost."""
    x = random(2, channels, length, dtype=dtype)
    return (x if layout == "bhl" else x.transpose(1, 2).contiguous()), random(channels, taps)
