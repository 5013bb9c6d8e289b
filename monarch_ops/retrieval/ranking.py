"""Scores of a ranking, and BM25 as the ranking to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import bm25s
import numpy as np
import pytrec_eval
import Stemmer
from numpy.typing import NDArray

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]


def ndcg(scores: NDArray[np.floating], relevant: NDArray[np.bool_], k: int = 10) -> NDArray[np.float64]:
    """nDCG@k of every query.

    Args:
        scores: (Q, N), higher is better; equal scores rank in the order of pytrec_eval.
        relevant: (Q, N), at least one document per query.

    Raises:
        ValueError: shapes differ, a query has no relevant document, or a score is NaN.
    """
    if scores.shape != relevant.shape or scores.ndim != 2:
        raise ValueError(
            f"ndcg: arguments 'scores' and 'relevant' must both have shape (Q, N), "
            f"got {scores.shape} and {relevant.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError("ndcg: argument 'scores' must not contain NaN")
    if not relevant.any(axis=1).all():
        query = int(np.flatnonzero(~relevant.any(axis=1))[0])
        raise ValueError(f"ndcg: argument 'relevant' must name a document for every query, got none for query {query}")
    qrels = {str(q): {str(d): 1 for d in np.flatnonzero(row)} for q, row in enumerate(relevant)}
    run = {str(q): {str(d): float(s) for d, s in enumerate(row)} for q, row in enumerate(scores)}
    measured = ndcg_of_run(qrels, run, (k,))
    return np.array([measured[str(q)][k] for q in range(len(scores))])


def ndcg_of_run(qrels: Qrels, run: Run, cutoffs: Sequence[int]) -> dict[str, dict[int, float]]:
    """nDCG at several ranks, by query and rank; the gain of a document is its relevance, as in trec_eval.

    Args:
        qrels: relevance of documents, by query.
        run: scores of the documents that were found, by query; a query for which nothing was found has nDCG 0.
        cutoffs: the ranks.
    """
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{','.join(map(str, cutoffs))}"})
    measured = evaluator.evaluate({query: found for query, found in run.items() if found})
    return {query: {k: measured.get(query, {}).get(f"ndcg_cut_{k}", 0.0) for k in cutoffs} for query in qrels}


def bm25_words(texts: list[str]) -> list[list[str]]:
    """What BM25 sees of each text: stemmed English words without stop words."""
    return bm25s.tokenize(
        texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False
    )


def bm25(queries: list[str], documents: list[str], k1: float = 1.2, b: float = 0.75) -> Iterator[NDArray[np.float32]]:
    """BM25 scores (N,) of every document, query by query; English stop words and stemming."""
    index = bm25s.BM25(k1=k1, b=b)
    index.index(bm25_words(documents), show_progress=False)
    return (index.get_scores(query) for query in bm25_words(queries))


def bm25_scores(queries: list[str], documents: list[str], k1: float = 1.2, b: float = 0.75) -> NDArray[np.float32]:
    """(Q, N): all of :func:`bm25`."""
    return np.stack(list(bm25(queries, documents, k1, b)))
