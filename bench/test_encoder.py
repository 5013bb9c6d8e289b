"""M2-BERT-80M with random weights against the published arithmetic, BERT-base and ModernBERT-base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from baselines import published_forward
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertModel, ModernBertConfig, ModernBertModel

from monarch_ops import _C
from monarch_ops.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertModel

LENGTHS = (128, 512, 2048, 8192, 32768)
# The batches of the Monarch Mixer throughput table (arXiv 2310.12109; its M2-BERT's), by length.
HARNESS = {512: 32, 1024: 32, 2048: 16, 4096: 8, 8192: 4}
MIXED = (128, 512, 1024, 2048)


def m2_config() -> M2BertConfig:
    return M2BertConfig.preset("m2-bert-80m-2k", max_position_embeddings=max(LENGTHS))


def bert_config() -> BertConfig:
    return BertConfig(max_position_embeddings=max(LENGTHS))


# What each name builds; heads only where a benchmark needs them.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "M2-BERT-80M": lambda: M2BertModel(m2_config()),
    "M2-BERT-80M, MLM": lambda: M2BertForMaskedLM(m2_config()),
    "BERT-base": lambda: BertModel._from_config(bert_config(), attn_implementation="sdpa"),
    "BERT-base, flash-attn": lambda: BertModel._from_config(bert_config(), attn_implementation="flash_attention_2"),
    "BERT-base, MLM": lambda: BertForMaskedLM._from_config(bert_config(), attn_implementation="sdpa"),
    "ModernBERT-base": lambda: ModernBertModel._from_config(
        ModernBertConfig(max_position_embeddings=max(LENGTHS)), attn_implementation="sdpa"
    ),
}
BASELINES: dict[str, tuple[str, list[SDPBackend]]] = {
    "published arithmetic": ("M2-BERT-80M", []),
    "BERT-base, SDPA": ("BERT-base", []),
    "ModernBERT-base, SDPA": ("ModernBERT-base", []),
    "BERT-base, SDPA flash": ("BERT-base", [SDPBackend.FLASH_ATTENTION]),
    "BERT-base, SDPA cuDNN": ("BERT-base", [SDPBackend.CUDNN_ATTENTION]),
    "BERT-base, flash-attn": ("BERT-base, flash-attn", []),
}
ON_GPU = {"BERT-base, SDPA flash", "BERT-base, SDPA cuDNN", "BERT-base, flash-attn"}


@pytest.fixture(scope="module")
def model() -> Callable[[str, torch.device], nn.Module]:
    """model(name, device), each made once."""
    made: dict[str, nn.Module] = {}

    def get(name: str, device: torch.device) -> nn.Module:
        if name not in made:
            torch.manual_seed(0)
            made[name] = MODELS[name]().eval()
        return made[name].to(device)

    return get


def usual_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, as models run there."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def autocast(device: torch.device) -> AbstractContextManager:
    return torch.autocast("cuda", usual_dtype(device)) if device.type == "cuda" else nullcontext()


def cost(m2: nn.Module, batch: int, length: int, device: torch.device, passes: int = 1) -> dict:
    """Products with all matrices of the layers, which must be read, and two long convolutions per layer.

    A training step has three passes of each.
    """
    model = getattr(m2, m2.base_model_prefix, m2)
    weights = sum(w.numel() for name, w in model.encoder.named_parameters() if w.dim() > 1 and "filter" not in name)
    conv = _C.explain_fft_conv(batch, model.config.hidden_size, length, device=device.type)["prepared"]
    count = 2 * model.config.num_hidden_layers
    return {
        "bytes": passes * (4 * weights + count * conv["bytes"]),
        "flops": passes * (2 * batch * length * weights + count * conv["flops"]),
        "dtype": "float16" if device.type == "cuda" else "float32",
    }


def tokens(device: torch.device, batch: int, length: int) -> Tensor:
    return torch.randint(5, 30000, (batch, length), device=device)


def left_to_long(request: pytest.FixtureRequest, device: torch.device, slow: bool) -> None:
    if slow and device.type == "cpu" and not request.config.getoption("--long"):
        pytest.skip("takes minutes: --long")


@pytest.mark.parametrize("length", [pytest.param(n, marks=[pytest.mark.quick] * (n == 512)) for n in LENGTHS])
@pytest.mark.parametrize("baseline", BASELINES)
@torch.no_grad()
def test_encoder(request, compare, device, model, length, baseline):
    """One text."""
    if baseline in ON_GPU and device.type == "cpu":
        pytest.skip("needs a GPU")
    left_to_long(request, device, length > 8192)
    if baseline.endswith("flash-attn"):
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    m2, ids = model("M2-BERT-80M", device), tokens(device, 1, length)
    name, backends = BASELINES[baseline]
    other = model(name, device)

    def theirs() -> Tensor:
        with autocast(device), sdpa_kernel(backends) if backends else nullcontext():
            return published_forward(m2, ids) if other is m2 else other(ids).last_hidden_state

    def ours() -> Tensor:
        with autocast(device):
            return m2(ids).last_hidden_state

    compare(
        f"M2-BERT-80M forward (1, {length})",
        ours,
        theirs,
        baseline,
        cost=cost(m2, 1, length, device),
        seconds=0.5,
        dtype=usual_dtype(device),
    )


@pytest.mark.parametrize("length", [512, 2048, 8192])
@torch.no_grad()
def test_encoder_in_bfloat16(compare, device, length):
    """On a CPU, with weights in bfloat16, for which some have matrix units; on a GPU that is how all models run."""
    if device.type != "cpu":
        pytest.skip("test_encoder is in bfloat16 on a GPU")
    torch.manual_seed(0)
    m2, bert = (MODELS[name]().eval().bfloat16() for name in ("M2-BERT-80M", "BERT-base"))
    ids = tokens(device, 1, length)
    compare(
        f"M2-BERT-80M forward (1, {length})",
        lambda: m2(ids).last_hidden_state,
        lambda: bert(ids).last_hidden_state,
        "BERT-base, SDPA",
        seconds=0.5,
        dtype=torch.bfloat16,
    )


@torch.no_grad()
def test_mixed_lengths(compare, device, model):
    """A batch of texts of mixed lengths, padded to its longest."""
    m2, bert, ids = model("M2-BERT-80M", device), model("BERT-base", device), tokens(device, len(MIXED), max(MIXED))
    mask = (torch.arange(max(MIXED), device=device) < torch.tensor(MIXED, device=device)[:, None]).long()

    def forward(which: nn.Module) -> Tensor:
        with autocast(device):
            return which(ids, attention_mask=mask).last_hidden_state

    compare(
        f"M2-BERT-80M forward, lengths {', '.join(map(str, MIXED))}",
        lambda: forward(m2),
        lambda: forward(bert),
        "BERT-base, SDPA",
        cost=cost(m2, len(MIXED), max(MIXED), device),
        seconds=0.5,
        dtype=usual_dtype(device),
    )


@pytest.mark.parametrize(("batch", "length"), [(16, 128), (1, 2048), (1, 8192)])
def test_training_step(request, compare, device, model, batch, length):
    """Masked language modelling: forward, backward and AdamW."""
    left_to_long(request, device, length > 2048)
    ids = tokens(device, batch, length)

    def step(name: str) -> Callable[[], None]:
        trained = model(name, device)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5)

        def run() -> None:
            trained.train()
            with autocast(device):
                logits = trained(ids).logits
                loss = cross_entropy(logits.flatten(0, 1), ids.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    m2 = model("M2-BERT-80M, MLM", device)
    compare(
        f"M2-BERT-80M training step ({batch}, {length})",
        step("M2-BERT-80M, MLM"),
        step("BERT-base, MLM"),
        "BERT-base, SDPA",
        cost=cost(m2, batch, length, device, passes=3),
        seconds=0.5,
        dtype=usual_dtype(device),
    )


@pytest.mark.parametrize("length", HARNESS)
@torch.no_grad()
def test_published_harness(request, compare, device, model, length):
    """As the throughput table of Monarch Mixer was made: vectors in, all layers and the MLM head, its batches."""
    left_to_long(request, device, True)
    batch = HARNESS[length]
    hidden = torch.randn(batch, length, 768, device=device)
    m2, bert = model("M2-BERT-80M, MLM", device).eval(), model("BERT-base, MLM", device).eval()

    def logits(which: nn.Module) -> Tensor:
        with autocast(device):
            return which(inputs_embeds=hidden).logits

    compare(
        f"M2-BERT-80M layers and MLM head ({batch}, {length})",
        lambda: logits(m2),
        lambda: logits(bert),
        "BERT-base, SDPA",
        cost=cost(m2, batch, length, device),
        seconds=0.5,
        dtype=usual_dtype(device),
    )


@pytest.mark.parametrize("length", [pytest.param(n, marks=[pytest.mark.quick] * (n == 128)) for n in LENGTHS])
@torch.no_grad()
def test_embed_document(request, compare, device, model, length):
    """Seconds for the vector of one document, to its numbers on the host; a BERT needs chunks of 512 tokens."""
    left_to_long(request, device, length > 8192)
    ids = tokens(device, 1, length)
    chunks = ids.reshape(-1, min(512, length))
    m2, bert = model("M2-BERT-80M", device), model("BERT-base", device)

    def vector(which: nn.Module, ids: Tensor) -> Tensor:
        with autocast(device):
            return which(ids).pooler_output.float().cpu()

    compare(
        f"embed one document ({length} tokens)",
        lambda: vector(m2, ids),
        lambda: vector(bert, chunks),
        "BERT-base, chunks of 512",
        seconds=0.5,
        dtype=usual_dtype(device),
        wait=True,
    )


@torch.no_grad()
def test_baseline_computes_the_same(model):
    m2, ids = model("M2-BERT-80M", torch.device("cpu")), tokens(torch.device("cpu"), 2, 100)
    torch.testing.assert_close(published_forward(m2, ids), m2(ids).last_hidden_state, rtol=1e-4, atol=1e-4)
