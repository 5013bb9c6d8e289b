"""A needle in a haystack: one passage that answers a query, at every place of a long document of others."""

from __future__ import annotations

import math

import numpy as np

from ..beir import RetrievalData
from ..documents import InputError
from ..ranking import bm25


def split_passages(text: str, words: int) -> list[str]:
    """Of so many words each; a rest is one only if it is at least half as long, or all there is."""
    all = text.split()
    starts = [start for start in range(0, len(all), words) if start == 0 or len(all) - start >= words / 2]
    return [" ".join(all[start : start + words]) for start in starts]


def needle_data(
    data: RetrievalData, *, positions: int = 40, queries: int = 20, words: int = 100, seed: int = 0
) -> list[RetrievalData]:
    """For every position a set of data whose documents are haystacks of `positions` passages, one for each query.

    The needle is the passage of the query's relevant document that BM25 likes best; the others come, by chance, from
    documents that are relevant to none of the queries. At another position the same haystack has the needle elsewhere.

    Args:
        data: its documents are cut into passages.
        queries: at most, with different relevant documents.
        words: of a passage.

    Raises:
        InputError: there are too few other passages.
    """
    random = np.random.default_rng(seed)
    chosen: dict[str, str] = {}  # the best document of each query
    relevant: set[str] = set()
    for place in random.permutation(len(data.queries)):
        query = list(data.queries)[place]
        found = {id: score for id, score in data.qrels[query].items() if score > 0}
        if len(chosen) < queries and relevant.isdisjoint(found):
            chosen[query] = max(found, key=lambda id: found[id])
            relevant |= found.keys()
    hay = [
        passage for id, text in data.documents.items() if id not in relevant for passage in split_passages(text, words)
    ]
    if len(hay) < positions - 1:
        raise InputError(
            f"{data.name}: a haystack needs {positions - 1} passages of documents without answers, got {len(hay)}: ask "
            "for fewer positions, queries or words"
        )
    needles = {
        query: _needle(data.queries[query], split_passages(data.documents[id], words)) for query, id in chosen.items()
    }
    others = {query: [hay[i] for i in random.choice(len(hay), positions - 1, replace=False)] for query in chosen}
    return [
        RetrievalData(
            f"{data.name}@{position}",
            {query: "\n".join([*rest[:position], needles[query], *rest[position:]]) for query, rest in others.items()},
            {query: data.queries[query] for query in chosen},
            {query: {query: 1} for query in chosen},
        )
        for position in range(positions)
    ]


def _needle(query: str, passages: list[str]) -> str:
    return passages[int(np.argmax(next(bm25([query], passages))))]


def chance_ndcg(documents: int, k: int = 10) -> float:
    """What nDCG@k is on average when one of so many documents is relevant and their order is random."""
    return sum(1 / math.log2(rank + 1) for rank in range(1, min(k, documents) + 1)) / documents
