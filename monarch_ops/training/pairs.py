"""Training rows of retrieval data: queries with their relevant documents and others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import bm25s
import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import resolve_ids

from ..retrieval import InputError, RetrievalData
from ..retrieval.embed import counts_tokens
from ..retrieval.ranking import bm25_words

Rows = Literal["pairs", "tuples", "triplets", "labelled"]


def relevant_documents(data: RetrievalData) -> dict[str, list[str]]:
    """Ids of the relevant documents of each query.

    Raises:
        InputError: there are no queries, or one has none.
    """
    if not data.queries:
        raise InputError(f"{data.name}: must hold at least one query, got none")
    found = {
        query: [d for d, score in data.qrels.get(query, {}).items() if score > 0 and d in data.documents]
        for query in data.queries
    }
    for query, documents in found.items():
        if not documents:
            raise InputError(f"{data.name}: a query must have a relevant document, got {query!r} with none")
    return found


def _others(data: RetrievalData, count: int) -> Iterator[tuple[str, set[str]]]:
    """Each query and the documents that are no negatives of it: relevant ones, and others with their very text."""
    same: dict[str, set[str]] = {}
    for document, text in data.documents.items():
        same.setdefault(text, set()).add(document)
    for query, documents in relevant_documents(data).items():
        relevant = set().union(*(same[data.documents[d]] for d in documents))
        left = len(data.documents) - len(relevant)
        if count > left:
            raise InputError(
                f"{data.name}: the negatives of a query must be at most {left}, the documents that are not relevant to "
                f"{query!r}, got {count}"
            )
        yield query, relevant


def random_negatives(data: RetrievalData, count: int, seed: int = 0) -> dict[str, list[str]]:
    """Ids of `count` documents of each query, drawn among all that are not relevant to it.

    Raises:
        InputError: there are fewer.
    """
    random, ids = np.random.default_rng(seed), list(data.documents)
    chosen = {}
    for query, relevant in _others(data, count):
        drawn = random.choice(len(ids), min(len(ids), count + len(relevant)), replace=False)
        chosen[query] = [ids[i] for i in drawn if ids[i] not in relevant][:count]
    return chosen


def hard_negatives(data: RetrievalData, count: int, at_once: int = 256) -> dict[str, list[str]]:
    """Ids of the `count` documents of each query that BM25 ranks highest among all that are not relevant to it.

    Raises:
        InputError: there are fewer.
    """
    ids, others = list(data.documents), dict(_others(data, count))
    index = bm25s.BM25()
    index.index(bm25_words(list(data.documents.values())), show_progress=False)
    chosen, queries = {}, list(others)
    for start in range(0, len(queries), at_once):
        part = queries[start : start + at_once]
        enough = min(len(ids), count + max(len(others[query]) for query in part))
        words = bm25_words([data.queries[query] for query in part])
        found, _ = index.retrieve(words, k=enough, show_progress=False)
        for query, ranked in zip(part, found, strict=True):
            chosen[query] = [ids[i] for i in ranked if ids[i] not in others[query]][:count]
    return chosen


def cut(data: RetrievalData, encoder: SentenceTransformer) -> RetrievalData:
    """The data without the ends of texts that the model cuts off, or they would be tokenized whenever they are read."""
    longest, tokenizer = encoder.max_seq_length, encoder.tokenizer
    if longest is None or not counts_tokens(encoder) or not tokenizer.is_fast:
        return data

    def beginning(text: str) -> str:
        last = longest + 16  # tokens: the last one may become another when the text behind it is gone
        for part in dict.fromkeys((text[: 32 * last], text)):  # characters that are almost always enough, or all
            found = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ends = found["offset_mapping"]
            if len(ends) > last:
                return part[: ends[last][1]]
        return text

    def all_cut(texts: dict[str, str]) -> dict[str, str]:
        return {id: beginning(text) for id, text in texts.items()}

    return RetrievalData(data.name, all_cut(data.documents), all_cut(data.queries), data.qrels)


def spans(data: RetrievalData, count: int, seed: int = 0, words: tuple[int, int] = (8, 64)) -> RetrievalData:
    """The data with `count` more queries per document, each some words of it in a row (as in arXiv 2112.09118).

    Args:
        words: how many at least and at most; where they begin is drawn too.
    """
    random = np.random.default_rng(seed)
    queries, qrels = dict(data.queries), dict(data.qrels)
    for document, text in data.documents.items():
        split = text.split()
        for number in range(count):
            length = int(random.integers(words[0], words[1] + 1))
            start = int(random.integers(max(1, len(split) - length)))
            name = f"{document} span {number}"
            queries[name], qrels[name] = " ".join(split[start : start + length]), {document: 1}
    return RetrievalData(data.name, data.documents, queries, qrels)


def training_rows(
    data: RetrievalData, rows: Rows, negatives: int = 0, source: Literal["random", "bm25"] = "random", seed: int = 0
) -> Dataset:
    """Rows of texts, for each query and each document that is relevant to it; texts are looked up as rows are read.

    Args:
        rows: "pairs": anchor, positive. "tuples": anchor, positive, all negatives (negative_1, ...). "triplets":
            anchor, positive, negative, a row for each. "labelled": anchor, document, label; for each negative, a row
            with it and 0 and one with the positive and 1, so that both labels are as frequent, as in the published
            training.
        negatives: per query and relevant document; see :func:`random_negatives` and :func:`hard_negatives`.

    Raises:
        InputError: a query has no relevant document or fewer others than `negatives`.
    """
    relevant = relevant_documents(data)
    others: dict[str, list[str]] = {query: [] for query in relevant}
    if negatives and rows != "pairs":
        others = random_negatives(data, negatives, seed) if source == "random" else hard_negatives(data, negatives)
    pairs = [(query, document) for query, documents in relevant.items() for document in documents]
    columns: dict[str, list]
    if rows == "pairs":
        columns = {"anchor": [q for q, _ in pairs], "positive": [d for _, d in pairs]}
    elif rows == "tuples":
        columns = {"anchor": [q for q, _ in pairs], "positive": [d for _, d in pairs]}
        columns |= {f"negative_{i + 1}": [others[q][i] for q, _ in pairs] for i in range(negatives)}
    elif rows == "triplets":
        triplets = [(q, d, other) for q, d in pairs for other in others[q]]
        columns = dict(zip(("anchor", "positive", "negative"), map(list, zip(*triplets, strict=True)), strict=True))
    else:
        labelled = [row for q, d in pairs for other in others[q] for row in ((q, d, 1.0), (q, other, 0.0))]
        columns = dict(zip(("anchor", "document", "label"), map(list, zip(*labelled, strict=True)), strict=True))
    return _looked_up(Dataset.from_dict(columns), data)


def _looked_up(rows: Dataset, data: RetrievalData) -> Dataset:
    texts = {
        name: Dataset.from_dict({"id": list(found), "text": list(found.values())})
        for name, found in (("queries", data.queries), ("documents", data.documents))
    }
    ids = [name for name in rows.column_names if name != "label"]
    rows.set_transform(resolve_ids({n: texts["queries" if n == "anchor" else "documents"] for n in ids}))
    return rows
