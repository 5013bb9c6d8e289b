"""What ranks documents for queries: BM25, models with and without chunks, and the right answers themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from ..beir import RetrievalData
from ..documents import InputError
from ..ranking import Run, bm25
from ..search import best
from .chunks import by_document
from .lengths import Lengths
from .models import Embedder, ModelOptions, check_name

DEPTH = 100  # documents that are ranked for a query
Chunking = Literal["none", "mean", "max"]


@dataclass(frozen=True)
class Ranked:
    """What a ranker found.

    Args:
        run: the scores of the best documents of each query.
        facts: about how, for the JSON; see :meth:`Dense.rank`.
        reused: whether embeddings were there from before, so that the time says little.
    """

    run: Run
    facts: dict[str, Any] = field(default_factory=dict)
    reused: bool = False


class Ranker(ABC):
    """Something with a name that ranks."""

    model: str  # as it was asked for
    chunks: Chunking = "none"

    @property
    def label(self) -> str:
        return self.model

    @abstractmethod
    def rank(self, data: RetrievalData, progress: Progress) -> Ranked: ...


class BM25(Ranker):
    """k1=1.2, b=0.75, English stop words, stemmed; documents that share no word with a query are not found."""

    model = "bm25"

    def rank(self, data: RetrievalData, progress: Progress) -> Ranked:
        ids, run = list(data.documents), {}
        bar = progress.add_task(f"{self.model}, {data.name}: queries", total=len(data.queries))
        scores = bm25(list(data.queries.values()), list(data.documents.values()))
        for query, row in zip(data.queries, scores, strict=True):
            first = np.argsort(-row, kind="stable")[:DEPTH]
            run[query] = {ids[i]: float(row[i]) for i in first if row[i] > 0}
            progress.advance(bar)
        return Ranked(run)


class Oracle(Ranker):
    """Knows the answers: the most that can be had, 1 unless the data or the measure is broken."""

    model = "oracle"

    def rank(self, data: RetrievalData, progress: Progress) -> Ranked:
        return Ranked({query: {id: float(score) for id, score in found.items()} for query, found in data.qrels.items()})


class Dense(Ranker):
    """An embedding model by its own similarity; documents longer than it are cut or read in chunks.

    Args:
        chunks: "none": cut; "mean": a document is the mean vector of its chunks; "max": it is as near to a query as its
            nearest chunk.
    """

    def __init__(self, embedder: Embedder, chunks: Chunking = "none") -> None:
        self.embedder, self.model, self.chunks = embedder, embedder.name, chunks

    @property
    def label(self) -> str:
        if self.embedder.longest is None:
            return self.model
        tokens = f"{self.embedder.longest:,}"
        part = "" if self.chunks == "none" else f"{self.chunks} of "
        return f"{self.model}, {part}{tokens} tokens"

    def rank(self, data: RetrievalData, progress: Progress) -> Ranked:
        """As facts: device; max_length; document_tokens and query_tokens, which are lengths; longer_documents, how many
        have more than max_length; texts, how many were embedded for the documents."""
        embedder = self.embedder
        asked, _ = embedder.embed(data, "query", progress)
        found, reused = embedder.embed(data, "document", progress, chunked=self.chunks != "none")
        queries = np.concatenate([vectors for _, vectors in asked.blocks()])
        hits = best(self._blocks(torch.from_numpy(queries), found.blocks()), len(queries), DEPTH)
        run = {query: dict(row) for query, row in zip(data.queries, hits, strict=True)}
        facts: dict[str, Any] = {"device": str(embedder.model.device), "max_length": embedder.longest}
        facts["texts"] = found.manifest()["count"]
        tokens = {task: embedder.tokens(data, task, progress) for task in ("document", "query")}
        for task, counts in tokens.items():
            facts[f"{task}_tokens"] = None if counts is None else Lengths.of(counts).as_json()
        counts, longest = tokens["document"], embedder.longest
        facts["longer_documents"] = None if counts is None or longest is None else int((counts > longest).sum())
        return Ranked(run, facts, reused)

    def document_vectors(self, data: RetrievalData, progress: Progress) -> NDArray[np.float32]:
        """(N, H): one of each document; with chunks their mean."""
        blocks = self.embedder.embed(data, "document", progress, chunked=self.chunks != "none")[0].blocks()
        if self.chunks == "none":
            return np.concatenate([vectors for _, vectors in blocks])
        return np.concatenate([chunks.mean() for chunks in by_document(blocks)])

    def _blocks(self, queries: Tensor, blocks: Any) -> Iterator[tuple[Sequence[str], Tensor]]:
        similarity = self.embedder.model.similarity
        if self.chunks == "none":
            yield from ((ids, similarity(queries, vectors)) for ids, vectors in blocks)
            return
        for chunks in by_document(blocks):
            if self.chunks == "mean":
                yield chunks.ids, similarity(queries, chunks.mean())
            else:
                scores = similarity(queries, chunks.vectors).float().cpu().numpy()
                yield chunks.ids, torch.from_numpy(chunks.best(scores))


def make_rankers(
    names: Sequence[str], folder: Path, options: ModelOptions, chunks: Sequence[Chunking] = ("none",)
) -> Iterator[Ranker]:
    """The rankers of these names, one after the other: "bm25", "oracle" and models, which may take much memory.

    Args:
        folder: for embeddings.
        chunks: every model once with each.

    Raises:
        InputError: a name can be none of these, at once; a model cannot be used, when its turn comes.
    """
    for name in names:
        if name not in (BM25.model, Oracle.model):
            check_name(name, (BM25.model, Oracle.model))
    unknown = [kind for kind in chunks if kind not in get_args(Chunking)]
    if unknown or not chunks:
        raise InputError(f"chunks must be {', '.join(get_args(Chunking))}; got {', '.join(unknown) or 'nothing'}")
    return _rankers(names, folder, options, chunks)


def _rankers(names: Sequence[str], folder: Path, options: ModelOptions, chunks: Sequence[Chunking]) -> Iterator[Ranker]:
    for name in names:
        if name == BM25.model:
            yield BM25()
        elif name == Oracle.model:
            yield Oracle()
        else:
            embedder = Embedder(name, folder, options)
            yield from (Dense(embedder, kind) for kind in chunks)
