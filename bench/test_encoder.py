"""Forward pass of M2-BERT-80M, one text, random weights: against the published arithmetic and against BERT-base."""

from __future__ import annotations

import pytest
import torch
from baselines import dense_product, published_forward

from monarch_ops.demo.speed import models

LENGTHS = (512, 2048, 8192, 32768)


@pytest.fixture(scope="module")
def encoders() -> tuple[torch.nn.Module, torch.nn.Module]:
    return models(max(LENGTHS), torch.device("cpu"))


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
    compare(f"M2-BERT-80M forward (1, {length})", lambda: m2(ids).last_hidden_state, theirs, baseline, seconds=0.5)
    benchmark.extra_info["tokens/s"] = length / benchmark.stats["median"]


@pytest.mark.parametrize("length", LENGTHS[:3])
@torch.no_grad()
def test_encoder_against_its_arithmetic(compare, device, encoders, length):
    """How near the whole encoder is to the time of the multiplications of its matrices alone."""
    m2 = encoders[0].to(device)
    ids = torch.randint(5, 30000, (1, length), device=device)
    layers = [
        [w.numel() for name, w in layer.named_parameters() if w.dim() > 1 and "filter" not in name]
        for layer in m2.encoder.layer
    ]
    products = [dense_product(length, length * sum(sizes), device) for sizes in layers]
    compare(
        f"M2-BERT-80M forward (1, {length})",
        lambda: m2(ids).last_hidden_state,
        lambda: [product() for product in products],
        "x @ w, same FLOPs",
        seconds=0.5,
    )


def test_baseline_computes_the_same(encoders):
    m2, _ = encoders
    ids = torch.randint(5, 30000, (2, 100))
    with torch.no_grad():
        torch.testing.assert_close(published_forward(m2, ids), m2(ids).last_hidden_state, rtol=1e-4, atol=1e-4)
