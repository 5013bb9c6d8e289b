"""Queries against an embeddings file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from sentence_transformers import SentenceTransformer
from torch import Tensor

from .documents import Document, InputError
from .embed import embed
from .encoder import fingerprint, load_encoder
from .store import EmbeddingFile


class Hit(NamedTuple):
    """A document that was found; higher scores are better."""

    id: str
    score: float


@dataclass(frozen=True)
class Found:
    """Every query with its hits, the best first."""

    hits: list[tuple[Document, list[Hit]]]

    def as_json(self) -> list[dict[str, Any]]:
        """One object per query: id, text, and hits with rank, id and score."""
        return [
            {"id": query.id, "text": query.text, "hits": [{"rank": n} | hit._asdict() for n, hit in enumerate(hits, 1)]}
            for query, hits in self.hits
        ]

    def rendered(self) -> Iterator[RenderableType]:
        """For the terminal: each query and a table of its hits."""
        for query, hits in self.hits:
            text = " ".join(query.text.split())
            yield Text(text if len(text) <= 100 else f"{text[:97]}...", style="bold")
            table = Table("rank", "score", "document")
            for rank, hit in enumerate(hits, 1):
                table.add_row(str(rank), f"{hit.score:.4f}", Text(hit.id))
            yield table


def nearest(
    queries: NDArray[np.float32], documents: EmbeddingFile, k: int, model: SentenceTransformer
) -> list[list[Hit]]:
    """The `k` best documents of every query, the best first, by ``model.similarity``.

    Args:
        queries: (Q, H).
        documents: read in blocks; no more than one is in memory.
    """
    if k < 1:
        raise InputError(f"the number of documents per query must be at least 1, got {k}")
    return best(((ids, model.similarity(queries, vectors)) for ids, vectors in documents.blocks()), len(queries), k)


def best(blocks: Iterable[tuple[Sequence[str], Tensor]], queries: int, k: int) -> list[list[Hit]]:
    """The `k` best documents of every query, the best first, out of blocks of ids and scores (Q, n)."""
    top = torch.empty(queries, 0)
    places = torch.empty(queries, 0, dtype=torch.long)
    names: dict[int, str] = {}
    start = 0
    for ids, block in blocks:
        scores, found = block.float().cpu().topk(min(k, len(ids)))
        top, chosen = torch.cat([top, scores], dim=1).topk(min(k, start + len(ids)))
        places = torch.cat([places, found + start], dim=1).gather(1, chosen)
        kept = set(places.flatten().tolist())
        names = {place: names[place] if place < start else ids[place - start] for place in kept}
        start += len(ids)
    return [
        [Hit(names[place], score) for place, score in zip(*row, strict=True)]
        for row in zip(places.tolist(), top.tolist(), strict=True)
    ]


def search(
    embeddings: str | Path,
    queries: Iterable[Document],
    k: int = 10,
    *,
    folder: str | Path | None = None,
    prompt: str | None = None,
    device: str | None = None,
) -> Found:
    """Find the `k` nearest documents of every query.

    Args:
        embeddings: made by :func:`embed_corpus`.
        folder: of the model; None: where it was when the documents were embedded.
        prompt: put before every query; None: the model's own.
        device: "cpu", "cuda", ...; None: a GPU when there is one.

    Raises:
        InputError: the embeddings are not finished, or are of another model.
    """
    documents = EmbeddingFile(embeddings)
    manifest = documents.manifest()
    asked = list(queries)
    if not asked:
        raise InputError("at least one query must be given, got none")
    where = Path(folder or manifest["model"])
    if folder is None and not where.is_dir():
        raise InputError(
            f"the model's folder must be given (--model), since {where}, which the manifest names, is gone"
        )
    model = load_encoder(where, device)
    found = fingerprint(model)
    if found != manifest["model_sha256"]:
        raise InputError(
            f"the model must be the one that embedded the documents, with SHA-256 {manifest['model_sha256'][:12]}..., "
            f"got {where} with {found[:12]}..."
        )
    vectors = embed(model, [q.text for q in asked], task="query", prompt=prompt, normalize=manifest["normalized"])
    return Found(list(zip(asked, nearest(vectors, documents, k, model), strict=True)))
