"""Texts to vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ..m2bert import M2BertModel


def pad(sequences: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L) filled up with 0 on the right, and their attention mask."""
    lengths = torch.tensor([len(s) for s in sequences])
    ids = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    ids[mask] = torch.tensor([token for s in sequences for token in s])
    return ids.to(device), mask.long().to(device)


@torch.no_grad()
def embed(
    model: M2BertModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    tokens_per_batch: int = 8192,
    on_progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Unit vectors (N, H) of N texts, in the order given.

    Texts are cut to the longest input of the model and go through it sorted by length, as many at a time as hold
    `tokens_per_batch` tokens. `on_progress` is called with the number of texts done since its last call.
    """
    if not texts:
        return np.empty((0, model.config.hidden_size), np.float32)
    longest = model.config.max_position_embeddings
    sequences = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: -len(sequences[i]))
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    was_training = model.training
    model.eval()
    start = 0
    while start < len(order):
        rows = order[start : start + max(1, tokens_per_batch // len(sequences[order[start]]))]
        pooled = model(*pad([sequences[i] for i in rows], model.device)).pooler_output
        vectors[rows] = torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()
        start += len(rows)
        if on_progress is not None:
            on_progress(len(rows))
    model.train(was_training)
    return vectors
