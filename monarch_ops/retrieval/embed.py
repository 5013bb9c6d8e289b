"""Texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from ..m2bert import M2BertConfig

Task = Literal["query", "document"]
# which of a model's prompts sentence-transformers puts before a text
PROMPT_NAMES: dict[Task, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


def prompt_of(model: SentenceTransformer, task: Task | None) -> str:
    """What the model itself puts before a query or document; before any text when `task` is None."""
    names = (*PROMPT_NAMES[task], model.default_prompt_name) if task else (model.default_prompt_name,)
    return next((model.prompts[name] for name in names if name in model.prompts), None) or ""


def dimension(model: SentenceTransformer) -> int:
    """Length of its vectors, which not every model says without making one."""
    return model.get_embedding_dimension() or len(model.encode("", show_progress_bar=False))


def counts_tokens(model: SentenceTransformer) -> bool:
    """Whether the model's tokenizer is one of transformers', which tell how many tokens a text has before it is cut."""
    return isinstance(getattr(model, "tokenizer", None), PreTrainedTokenizerBase)


def token_counts(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> NDArray[np.int64]:
    """Tokens (N,) of each text behind the prompt, special tokens included, before any is cut.

    Characters instead where :func:`counts_tokens` says no.
    """
    prompted = [prompt + text for text in texts]
    if counts_tokens(model) and prompted:
        prompted = model.tokenizer(prompted, return_attention_mask=False, verbose=False)["input_ids"]
    return np.array([len(text) for text in prompted], np.int64)


def embed(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    task: Task | None = None,
    prompt: str | None = None,
    normalize: bool = True,
    tokens_per_batch: int = 8192,
    counts: NDArray[np.int64] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Vectors (N, H) of N texts, in the order given.

    What ``model.encode`` gives (or ``encode_query``, ``encode_document``, by `task`), in batches of texts of about the
    same length, as many as have `tokens_per_batch` tokens with their padding. A batch of ``encode`` itself has as many
    long texts as short ones, and the longest decide about the memory.

    Args:
        model: any model of sentence-transformers, such as ``SentenceTransformer(modules=[Encoder(model, tokenizer)])``.
        texts: cut to ``model.max_seq_length``.
        task: what the texts are; decides about the prompt, and in models with two routes about the route.
        prompt: put before every text; None: the model's own.
        normalize: unit vectors, which ``encode`` gives only with ``normalize_embeddings=True``.
        tokens_per_batch: a longer text is a batch of its own.
        counts: (N,), if they are known: :func:`token_counts`.
        on_progress: called with the number of texts done since its last call.

    Raises:
        TypeError: `texts` is one string.
        ValueError: `tokens_per_batch` is less than 1, or M2-BERT's tokenizer makes no token of a text.
    """
    if isinstance(texts, str):
        raise TypeError("embed: argument 'texts' must be a sequence of strings, got one string; put it in a list")
    if tokens_per_batch < 1:
        raise ValueError(f"embed: argument 'tokens_per_batch' must be at least 1, got {tokens_per_batch}")
    prompt = prompt_of(model, task) if prompt is None else prompt
    if counts is None:
        counts = token_counts(model, texts, prompt)
    if isinstance(model.config, M2BertConfig) and not np.all(counts):
        empty = int(np.argmin(counts))
        raise ValueError(
            "embed: argument 'texts' must have at least one token in every text, which M2-BERT needs, got "
            f"{texts[empty]!r} as text {empty}, of which a tokenizer that adds no special tokens makes none"
        )
    lengths = np.minimum(counts, model.max_seq_length or np.inf)
    if getattr(model[0], "processing_kwargs", {}).get("text", {}).get("padding") == "max_length":
        lengths[:] = model.max_seq_length
    vectors = np.empty((len(texts), dimension(model)), np.float32)
    encode: Callable[..., Any] = getattr(model, f"encode_{task}") if task else model.encode
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        rows = order[start : start + max(1, int(tokens_per_batch // max(1, lengths[order[start]])))]
        vectors[rows] = encode(
            [texts[i] for i in rows],
            prompt=prompt,
            batch_size=len(rows),
            normalize_embeddings=normalize,
            show_progress_bar=False,
        )
        start += len(rows)
        if on_progress is not None:
            on_progress(len(rows))
    return vectors
