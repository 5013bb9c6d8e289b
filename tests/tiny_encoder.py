"""A small M2-BERT with a tokenizer, and texts to embed."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
from tiny_m2bert import LONGEST, tiny
from transformers import PreTrainedTokenizerBase

from monarch_ops.m2bert import M2BertModel
from monarch_ops.retrieval import train_tokenizer

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
         "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon"]  # fmt: skip


def texts(count: int, longest: int = 40, seed: int = 0) -> list[str]:
    """Texts of 1 to `longest` words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, longest + 1))) for _ in range(count)]


TOO_LONG = " ".join(["omega"] * 2 * LONGEST)


@functools.cache
def _trained() -> PreTrainedTokenizerBase:
    return train_tokenizer([*texts(50), TOO_LONG], vocab_size=90)


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Always the same one, as training is not."""
    return copy.deepcopy(_trained())


def save_checkpoint(folder: Path, **options) -> M2BertModel:
    """Model and tokenizer as transformers save them."""
    model = tiny(**options)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model
