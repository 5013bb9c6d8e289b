"""Modules: parameters around the ops, no logic of their own."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .ops import FilterSpectrum, blockdiag_matmul, fft_conv, fft_filter, monarch_matmul

__all__ = ["BlockDiagLinear", "HyenaFilter", "LongConv", "MonarchLinear"]


def _require_sizes(module: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{module}: argument {name!r} must be at least 1, got {size}")


def _padded(module: str, x: Tensor, features: int, wide: int) -> Tensor:
    """x (..., features) extended with zeros to (..., wide)."""
    if x.shape[-1:] != (features,):
        raise ValueError(f"{module}: argument 'x' must have shape (..., {features}), got {tuple(x.shape)}")
    return F.pad(x, (0, wide - features))


class BlockDiagLinear(nn.Module):
    """Linear layer with a block-diagonal weight (the ``BlockdiagLinear`` of the Monarch Mixer code).

    Features that do not divide by `nblocks` are zero-extended on the way in and cut on the way out.

    Parameters: ``weight`` (nblocks, ceil(out/nblocks), ceil(in/nblocks)), ``bias`` (out,) or None.
    """

    def __init__(self, in_features: int, out_features: int, nblocks: int = 4, bias: bool = True) -> None:
        _require_sizes("BlockDiagLinear", in_features=in_features, out_features=out_features, nblocks=nblocks)
        super().__init__()
        self.in_features, self.out_features, self.nblocks = in_features, out_features, nblocks
        q, p = math.ceil(out_features / nblocks), math.ceil(in_features / nblocks)
        self.weight = nn.Parameter(torch.empty(nblocks, q, p))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-uniform as for the dense layer, scaled by sqrt(nblocks) so that the outputs keep their variance."""
        bound = math.sqrt(self.nblocks / self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.out_features), 1 / math.sqrt(self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        G, q, p = self.weight.shape
        if G * p == self.in_features and G * q == self.out_features:
            return blockdiag_matmul(x, self.weight, self.bias)
        padded = _padded("BlockDiagLinear", x, self.in_features, G * p)
        y = blockdiag_matmul(padded, self.weight)[..., : self.out_features]
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, nblocks={self.nblocks}, bias={self.bias is not None}"


class MonarchLinear(nn.Module):
    """Linear layer with a Monarch weight: two block-diagonal factors and a permutation (arXiv 2204.00595).

    Features that do not divide by `nblocks` are zero-extended on the way in and cut on the way out.

    Parameters: ``blkdiag1``, ``blkdiag2`` (nblocks, ., .), ``bias`` (out,) or None, as in the fly library.
    """

    def __init__(self, in_features: int, out_features: int, nblocks: int = 4, bias: bool = True) -> None:
        _require_sizes("MonarchLinear", in_features=in_features, out_features=out_features, nblocks=nblocks)
        super().__init__()
        self.in_features, self.out_features, self.nblocks = in_features, out_features, nblocks
        p, q = math.ceil(in_features / nblocks), math.ceil(out_features / nblocks)
        middle = min(p, q)
        self.blkdiag1 = nn.Parameter(torch.empty(nblocks, middle, p))
        self.blkdiag2 = nn.Parameter(torch.empty(nblocks, q, middle))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-uniform per block."""
        for weight in (self.blkdiag1, self.blkdiag2):
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.out_features), 1 / math.sqrt(self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        wide = self.nblocks * self.blkdiag1.shape[2]
        padded = x if wide == self.in_features else _padded("MonarchLinear", x, self.in_features, wide)
        if self.nblocks * self.blkdiag2.shape[1] == self.out_features:
            return monarch_matmul(padded, self.blkdiag1, self.blkdiag2, self.bias)
        y = monarch_matmul(padded, self.blkdiag1, self.blkdiag2)[..., : self.out_features]
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, nblocks={self.nblocks}, bias={self.bias is not None}"


class LongConv(nn.Module):
    """Long convolution with explicit taps for every lag.

    Parameters: ``k`` (H, seqlen), ``k_rev`` (H, seqlen - 1) when bidirectional, ``skip`` (H,).
    """

    def __init__(self, channels: int, seqlen: int, bidirectional: bool = False) -> None:
        _require_sizes("LongConv", channels=channels, seqlen=seqlen)
        super().__init__()
        self.k = nn.Parameter(torch.empty(channels, seqlen))
        self.k_rev = nn.Parameter(torch.empty(channels, seqlen - 1)) if bidirectional else None
        self.skip = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Taps whose sum of squares is about one, so that a white input keeps its variance; unit normal skip."""
        for taps in (self.k, self.k_rev):
            if taps is not None:
                nn.init.normal_(taps, std=1 / math.sqrt(self.k.shape[1]))
        nn.init.normal_(self.skip)

    def forward(self, u: Tensor, lengths: Tensor | None = None) -> Tensor:
        """u (B, H, L) with L <= seqlen -> (B, H, L)."""
        return fft_conv(u, self.k, k_rev=self.k_rev, skip=self.skip, lengths=lengths)


class HyenaFilter(nn.Module):
    r"""Implicit long-convolution filter of Hyena and M2-BERT (arXiv 2302.10866, 2310.12109).

    A small MLP with sine activations maps position features to one tap per channel, which a window then damps:

    .. math::
        s_1 = \sin(m f (z W_0 + b_0)),\; s_{2} = \sin(m f (s_1 W_1 + b_1)),\; s_3 = \ldots,\quad
        k[n] = (s_3 W_3)\, e^{-t_n |\delta|}

    Both directions share the features ``z``, the frequencies ``freq``, the times ``t`` and the decay rates ``deltas``.

    Args:
        channels: H.
        max_len: longest sequence; a shorter one uses the first taps.
        order: width of the MLP.
        emb_dim: number of position features, odd and at least 3.
        w: initial value of the frequencies; `w_mod` multiplies them without being trained.
        bidirectional: also make reverse taps.
        base_len: the length that the features are made for (default: `max_len`); see :meth:`extend`.
    """

    t: Tensor
    deltas: Tensor

    def __init__(
        self,
        channels: int,
        max_len: int,
        order: int = 128,
        emb_dim: int = 5,
        w: float = 10.0,
        w_mod: float = 1.0,
        bidirectional: bool = True,
        base_len: int | None = None,
    ) -> None:
        super().__init__()
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"HyenaFilter: argument 'emb_dim' must be odd and at least 3, got {emb_dim}")
        self.channels, self.max_len, self.w_mod = channels, max_len, w_mod
        self.base_len = max_len if base_len is None else base_len
        self.z = nn.Parameter(torch.empty(max_len, emb_dim))
        self.register_buffer("t", torch.empty(max_len))
        self.register_buffer("deltas", torch.empty(channels))
        self.freq = nn.Parameter(torch.empty(order))
        self.bias = nn.Parameter(torch.empty(channels))
        self.mlp = self._mlp(emb_dim, order, channels)
        self.mlp_rev = self._mlp(emb_dim, order, channels) if bidirectional else None
        self.reset_parameters(w)

    @staticmethod
    def _mlp(emb_dim: int, order: int, channels: int) -> nn.ModuleList:
        widths = [emb_dim, order, order, order]
        hidden = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        return nn.ModuleList([*hidden, nn.Linear(order, channels, bias=False)])

    def _features(self, n: Tensor) -> Tensor:
        """The published initial features of the positions `n` (float64), at any of which they are defined."""
        bands = (self.z.shape[1] - 1) // 2
        band = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=n.device)
        angle = (2 * math.pi / self.base_len) * n[:, None] * band
        time = n / max(1, self.base_len - 1)
        return torch.cat([time[:, None], angle.cos(), -angle.sin()], dim=1)

    @torch.no_grad()
    def reset_parameters(self, w: float) -> None:
        """The published initial values of everything but the linear layers."""
        # the device is named, because transformers builds models under torch.device("meta") and moves linspace off it
        device = self.z.device
        n = torch.arange(self.max_len, dtype=torch.float64, device=device)
        self.t.copy_(n / max(1, self.max_len - 1))
        self.z.copy_(self._features(n))
        self.deltas.copy_(torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, self.channels, device=device))
        self.freq.fill_(w)
        self.bias.normal_()

    @torch.no_grad()
    def extend(self, max_len: int, decay: str = "tokens", features: str = "continue") -> None:
        """Make taps for lags up to `max_len`, in place; the MLPs stay as they are.

        Args:
            max_len: the new length, larger than the old.
            decay: "tokens", where the times ``t`` go on as they were and all old taps keep their values, or "stretch",
                where their range is spread over `max_len`, so that the window decays more slowly.
            features: rows of ``z`` for the new lags. "continue": the initial features, functions of the position that
                are defined at every lag; "tile": the old rows again, from the first.
        """
        old, device = self.max_len, self.z.device
        if max_len <= old:
            raise ValueError(f"HyenaFilter.extend: argument 'max_len' must be larger than {old}, got {max_len}")
        for name, value, known in (
            ("decay", decay, ("tokens", "stretch")),
            ("features", features, ("continue", "tile")),
        ):
            if value not in known:
                raise ValueError(f"HyenaFilter.extend: argument {name!r} must be one of {known}, got {value!r}")
        n = torch.arange(max_len, dtype=torch.float64, device=device)
        rows = self._features(n[old:]) if features == "continue" else self.z[torch.arange(old, max_len) % old]
        z = torch.cat([self.z, rows.to(self.z.dtype)])
        self.z = nn.Parameter(z, requires_grad=self.z.requires_grad)
        first, last = self.t[0].double(), self.t[-1].double()
        if decay == "stretch":
            self.t = (first + (last - first) * n / (max_len - 1)).to(self.t.dtype)
        else:
            more = last + (last - first) / max(1, old - 1) * (n[old:] - (old - 1))
            self.t = torch.cat([self.t, more.to(self.t.dtype)])
        self.max_len = max_len

    def forward(self, seqlen: int) -> tuple[Tensor, Tensor | None]:
        """The first `seqlen` taps: k (H, seqlen) and k_rev (H, seqlen) or None."""
        if not 1 <= seqlen <= self.max_len:
            raise ValueError(f"HyenaFilter: argument 'seqlen' must be in [1, max_len={self.max_len}], got {seqlen}")
        device = self.z.device.type
        # sines of large angles: in the 16 bits of an autocast region the taps would carry most of a model's error
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            window = torch.exp(-self.t[:seqlen, None] * self.deltas.abs())

            def taps(mlp: nn.ModuleList) -> Tensor:
                s = self.z[:seqlen]
                for layer in mlp[:-1]:
                    s = torch.sin(self.w_mod * self.freq * layer(s))
                return (mlp[-1](s) * window).T

            return taps(self.mlp), None if self.mlp_rev is None else taps(self.mlp_rev)

    def spectrum(self, seqlen: int, dtype: torch.dtype | None = None) -> FilterSpectrum:
        """The prepared filter, skip weight included, for rows of length `seqlen` and dtype `dtype`."""
        k, k_rev = self(seqlen)
        return fft_filter(k, seqlen, k_rev=k_rev, skip=self.bias, dtype=dtype)
