"""Forward pass of M2-BERT-80M and of BERT-base with SDPA attention, one text, random weights."""

from __future__ import annotations

import pytest
import torch
from conftest import synchronize

from monarch_ops.demo.speed import models

LENGTHS = (128, 512, 2048, 4096)


@pytest.fixture(scope="module")
def encoders() -> dict[str, torch.nn.Module]:
    return dict(zip(("M2-BERT-80M", "BERT-base"), models(max(LENGTHS), torch.device("cpu")), strict=True))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["M2-BERT-80M", "BERT-base"])
@torch.no_grad()
def test_encoder(benchmark, device, encoders, length, name):
    model = encoders[name].to(device)
    ids = torch.randint(5, 30000, (1, length), device=device)
    benchmark.group = f"encoder {device.type} float32 B=1 L={length}"

    def call() -> None:
        model(ids)
        synchronize(device)

    benchmark.pedantic(call, rounds=3, warmup_rounds=1)
    benchmark.extra_info["tokens/s"] = length / benchmark.stats["median"]
