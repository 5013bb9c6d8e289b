"""Where models are good: by length of the document, by place in it, by tokens read, and without any query."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from ..beir import RetrievalData
from ..documents import Document, InputError
from ..embed import embed, token_counts
from ..evaluation.chunks import split_documents
from ..evaluation.evaluate import MAIN, Evaluation, evaluate
from ..evaluation.models import Embedder, ModelOptions, load_model, longest_input
from ..evaluation.rankers import Dense, Ranker
from .curves import Curves
from .needle import chance_ndcg, needle_data

EDGES = (1_500, 6_000, 24_000)  # words: about the 2k, 8k and 32k tokens of the paper
LENGTHS = (128, 2_048, 8_192, 32_768)  # tokens
MEASURED = 1.0  # seconds, at least, of embedding the same texts again and again


def by_length(data: Sequence[RetrievalData], found: Evaluation, edges: Sequence[int] = EDGES) -> Curves:
    """nDCG@10 of the queries whose relevant documents are so many words long, on average; of all data together.

    Args:
        edges: of the buckets, in words; a bucket begins with its lower edge.
    """
    if any(low >= high for low, high in pairwise((0, *edges))):
        raise InputError(f"edges of buckets must be positive and rise, got {', '.join(map(str, edges))}")
    buckets: dict[tuple[str, str], int] = {}
    for each in data:
        words = {id: len(text.split()) for id, text in each.documents.items()}
        for query, judged in each.qrels.items():
            mean = np.mean([words[id] for id, score in judged.items() if score > 0])
            buckets[each.name, query] = int(np.searchsorted(edges, mean, side="right"))
    counts = np.bincount(list(buckets.values()), minlength=len(edges) + 1)
    values: dict[str, list[list[float]]] = {}
    for row in found.rows:
        lists = values.setdefault(row.label, [[] for _ in counts])
        for query, measured in row.per_query.items():
            lists[buckets[row.data, query]].append(measured[MAIN])
    names = [
        f"below {edges[0]:,}",
        *(f"{low:,} to {high - 1:,}" for low, high in pairwise(edges)),
        f"{edges[-1]:,} and more",
    ]
    return Curves(
        "By length of the relevant document",
        "words",
        f"nDCG@{MAIN}",
        [f"{name}\n({count:,} queries)" for name, count in zip(names, counts, strict=True)],
        {label: [float(np.mean(each)) if each else None for each in lists] for label, lists in values.items()},
        {label: list(map(_standard_error, lists)) for label, lists in values.items()},
        top=1.02,
    )


def _standard_error(values: Sequence[float]) -> float | None:
    """Of their mean, as far as it depends on which queries were asked."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None


def by_position(
    data: RetrievalData,
    rankers: Iterable[Ranker],
    progress: Progress,
    *,
    positions: int = 40,
    queries: int = 20,
    words: int = 100,
) -> Curves:
    """nDCG@10 when the passage with the answer is at each place of a long document; see :func:`needle_data`."""
    sets = needle_data(data, positions=positions, queries=queries, words=words)
    found = evaluate(sets, rankers, progress)
    lines: dict[str, list[float | None]] = {}
    errors: dict[str, list[float | None]] = {}
    for row in found.rows:
        lines.setdefault(row.label, []).append(row.ndcg[MAIN])
        each = [measured[MAIN] for measured in row.per_query.values()]
        errors.setdefault(row.label, []).append(_standard_error(each))
    asked = len(sets[0].queries)
    return Curves(
        f"A passage of {words} words among {positions - 1} others, {asked} queries",
        "position of the passage",
        f"nDCG@{MAIN}",
        list(range(positions)),
        lines,
        errors,
        top=1.02,
        chance=chance_ndcg(asked, MAIN),
    )


def by_tokens(
    data: Sequence[RetrievalData],
    names: Sequence[str],
    lengths: Sequence[int],
    folder: Path,
    options: ModelOptions,
    progress: Progress,
) -> list[Curves]:
    """nDCG@10, tokens per second and memory when documents are cut to so many tokens.

    Nothing is measured where a length is more than a model takes. Speed and memory are those of one batch of the
    beginnings of the longest documents, tokenized and embedded again and again after once to warm up, by the median;
    the memory is what that needs beyond the model's weights.

    Args:
        lengths: in tokens.
        options: all but the length.
    """
    quality: dict[str, list[float | None]] = {}
    speed: dict[str, list[float | None]] = {}
    memory: dict[str, list[float | None]] = {}
    longest = sorted((text for each in data for text in each.documents.values()), key=len)[::-1]
    for name in names:
        most = longest_input(load_model(name, replace(options, max_length=None)))
        for table in (quality, speed, memory):
            table[name] = [None] * len(lengths)
        for i, length in enumerate(lengths):
            if length <= most:
                embedder = Embedder(name, folder, replace(options, max_length=length))
                texts = longest[: max(1, options.tokens_per_batch // length)]
                speed[name][i], memory[name][i] = _measure(embedder, texts, options)
                found = evaluate(data, [Dense(embedder)], progress)
                quality[name][i] = next(iter(found.averages().values()))[MAIN]
                del embedder  # or the next model is loaded beside it
    places, over = list(lengths), data[0].name if len(data) == 1 else f"average of {len(data)} sets of data"
    return [
        Curves(f"Quality, {over}", "tokens read of a document", f"nDCG@{MAIN}", places, quality, top=1.02),
        Curves("Speed", "tokens read of a document", "tokens per second", places, speed, digits=0),
        Curves("Memory", "tokens read of a document", "MiB", places, memory, digits=0),
    ]


def _measure(embedder: Embedder, texts: list[str], options: ModelOptions) -> tuple[float, float]:
    """Tokens per second, and MiB at the peak, of embedding as much of these texts as the model takes."""
    model = embedder.model
    texts = [next(split_documents(model, [Document("", text)])).text for text in texts]
    tokens = int(token_counts(model, texts).sum())
    cuda = model.device.type == "cuda"
    before = _start_of_peak(cuda)
    seconds: list[float] = []
    embed(model, texts, tokens_per_batch=options.tokens_per_batch)  # slow, and leaves filters for the others
    while sum(seconds) < MEASURED:
        start = time.perf_counter()
        embed(model, texts, tokens_per_batch=options.tokens_per_batch)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else _status("VmHWM")
    return tokens / float(np.median(seconds)), max(0, peak - before) / 2**20


def _start_of_peak(cuda: bool) -> int:
    """Bytes in use; the greatest number of them is counted anew from here."""
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A number of bytes that Linux knows about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
