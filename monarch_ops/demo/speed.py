"""Two short comparisons: our long convolution with PyTorch's FFT, and M2-BERT with a BERT of the same size class."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import monarch_ops as mo

from ..m2bert import M2BertConfig, M2BertModel


@dataclass(frozen=True)
class Row:
    """Seconds of one call, ours and theirs, and the relative L2 difference of the results where they should agree."""

    length: int
    ours: float
    theirs: float
    difference: float | None = None

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def time_pair(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float, cuda: bool
) -> tuple[float, float]:
    """Median seconds of a call of each, called in turns for about `seconds`, after one call to warm up."""

    def timed(function: Callable[[], object]) -> float:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    end = time.perf_counter() + seconds
    timed(ours), timed(theirs)
    samples = [(timed(ours), timed(theirs))]
    while time.perf_counter() < end:
        samples.append((timed(ours), timed(theirs)))
    return median(s[0] for s in samples), median(s[1] for s in samples)


def torch_fft_conv(u: Tensor, k: Tensor, skip: Tensor) -> Tensor:
    """The causal convolution as state-space models write it in PyTorch: real FFTs of twice the length."""
    n = 2 * u.shape[-1]
    spectrum = torch.fft.rfft(u.to(k.dtype), n=n) * torch.fft.rfft(k, n=n)
    y = torch.fft.irfft(spectrum, n=n)[..., : u.shape[-1]] + skip[:, None] * u
    return y.to(u.dtype)


@torch.no_grad()
def convolution_rows(device: torch.device, lengths: tuple[int, ...], seconds: float) -> Iterator[Row]:
    """Causal convolution with skip, 768 channels, batch 1 (16 on a GPU); filters are transformed in every call."""
    cuda = device.type == "cuda"
    batch, channels, dtype = (16 if cuda else 1), 768, (torch.bfloat16 if cuda else torch.float32)
    for length in lengths:
        u = torch.randn(batch, channels, length, device=device, dtype=dtype)
        k = torch.randn(channels, length, device=device) / length**0.5
        skip = torch.randn(channels, device=device)
        ours, theirs = mo.fft_conv(u, k, skip=skip).float(), torch_fft_conv(u, k, skip).float()
        difference = ((ours - theirs).norm() / theirs.norm()).item()
        times = time_pair(partial(mo.fft_conv, u, k, skip=skip), partial(torch_fft_conv, u, k, skip), seconds, cuda)
        yield Row(length, *times, difference)


def models(longest: int, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """M2-BERT-80M and BERT-base (SDPA attention) with random weights, positions up to `longest`."""
    m2: nn.Module = M2BertModel(M2BertConfig.preset("m2-bert-80m-2k", max_position_embeddings=longest))
    bert: nn.Module = BertModel._from_config(BertConfig(max_position_embeddings=longest), attn_implementation="sdpa")
    return m2.to(device).eval(), bert.to(device).eval()


@torch.no_grad()
def encoder_rows(device: torch.device, lengths: tuple[int, ...], seconds: float) -> Iterator[Row]:
    """One forward pass of one text (of 16,384 tokens on a GPU, bfloat16) through each encoder."""
    cuda = device.type == "cuda"
    m2, bert = models(max(lengths), device)
    for length in lengths:
        ids = torch.randint(5, 30000, (max(1, 16384 // length) if cuda else 1, length), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            ours, theirs = time_pair(partial(m2, ids), partial(bert, ids), seconds, cuda)
        yield Row(length, ours / len(ids), theirs / len(ids))
