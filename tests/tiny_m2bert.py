"""Small M2-BERT models and inputs for the tests."""

from __future__ import annotations

import json

import numpy as np
import torch
from conftest import HERE
from torch import Tensor, nn

from monarch_ops.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

LONGEST, WORDS = 64, 100
CLASSES = (M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification)


def tiny_config(**options) -> M2BertConfig:
    sizes = {"max_position_embeddings": LONGEST, "vocab_size": WORDS}
    return M2BertConfig.preset("m2-bert-tiny", **(sizes | options))


def lively(model: nn.Module) -> nn.Module:
    """Linear weights of the size that keeps a variance: at the small initial ones the filters hardly matter."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model.eval()


def tiny(**options) -> M2BertModel:
    return lively(M2BertModel(tiny_config(**options)))


def tiny_loss(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """A loss of the kind that the model is trained with."""
    if isinstance(model, M2BertModel):
        return model(ids, mask).pooler_output.square().sum()
    labels = ids if isinstance(model, M2BertForMaskedLM) else torch.arange(len(ids)) % model.num_labels
    return model(ids, mask, labels=labels).loss


def words(*shape: int) -> Tensor:
    return torch.randint(1, WORDS, shape)


def padded_batch(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    """Ids with random rubbish where the mask says padding, and the mask."""
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return words(len(lengths), width), mask


_CASE = HERE / "data" / "parity" / "07_short_input_on_lmax256"
PUBLISHED_OPTIONS = json.loads(_CASE.with_suffix(".json").read_text())["config"]


def published_weights() -> dict[str, Tensor]:
    """Encoder, pooler, language-model head and classifier of a small recording, under their published names."""
    with np.load(_CASE.with_suffix(".npz")) as stored:
        return {k.removeprefix("param/"): torch.from_numpy(stored[k]) for k in stored.files if k.startswith("param/")}


VARIETIES = {
    "published": {},
    "mean": {"pooling": "mean"},
    "causal": {"bidirectional": False},
    "plain": {"residual_long_conv": False, "use_glu_mlp": False, "use_monarch_mlp": False},
    "normalised": {"hyena_training_additions": True, "use_positional_encodings": False, "monarch_mlp_nblocks": 3},
}
