"""Forward pass of M2-BERT-80M, one text, random weights: against the published arithmetic and against BERT-base."""

from __future__ import annotations

import pytest
import torch
from baselines import published_forward

from monarch_ops import _C
from monarch_ops.demo.speed import models
from monarch_ops.m2bert import M2BertModel

LENGTHS = (512, 2048, 8192, 32768)


@pytest.fixture(scope="module")
def encoders() -> tuple[torch.nn.Module, torch.nn.Module]:
    return models(max(LENGTHS), torch.device("cpu"))


def cost(m2: M2BertModel, length: int, device: torch.device) -> dict:
    """Products with all matrices of the layers, which must be read, and two long convolutions per layer."""
    weights = sum(w.numel() for name, w in m2.encoder.named_parameters() if w.dim() > 1 and "filter" not in name)
    convolution = _C.explain_fft_conv(1, m2.config.hidden_size, length, device=device.type)["prepared"]
    count = 2 * m2.config.num_hidden_layers
    return {
        "bytes": 4 * weights + count * convolution["bytes"],
        "flops": 2 * length * weights + count * convolution["flops"],
    }


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("baseline", ["published arithmetic", "BERT-base, SDPA"])
@torch.no_grad()
def test_encoder(request, compare, benchmark, device, encoders, length, baseline):
    if length > 8192 and device.type == "cpu" and not request.config.getoption("--long"):
        pytest.skip("takes minutes: --long")
    m2, bert = (model.to(device) for model in encoders)
    ids = torch.randint(5, 30000, (1, length), device=device)
    theirs = {
        "published arithmetic": lambda: published_forward(m2, ids),
        "BERT-base, SDPA": lambda: bert(ids).last_hidden_state,
    }[baseline]
    compare(
        f"M2-BERT-80M forward (1, {length})",
        lambda: m2(ids).last_hidden_state,
        theirs,
        baseline,
        cost=cost(m2, length, device),
        seconds=0.5,
    )
    benchmark.extra_info["tokens/s"] = length / benchmark.stats["median"]


def test_baseline_computes_the_same(encoders):
    m2, _ = encoders
    ids = torch.randint(5, 30000, (2, 100))
    with torch.no_grad():
        torch.testing.assert_close(published_forward(m2, ids), m2(ids).last_hidden_state, rtol=1e-4, atol=1e-4)
