"""Documents in pieces that a model reads whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from ..documents import Document, InputError
from ..embed import counts_tokens, token_counts
from ..store import Block

MARK = "#"  # between the id of a document and the number of its chunk


def split_documents(model: SentenceTransformer, documents: Iterable[Document], prompt: str = "") -> Iterator[Document]:
    """The chunks of every document, ``id#0``, ``id#1`` and so on; together they are its text.

    Each has as many tokens as the model takes, behind the prompt and with the special tokens, but ends between two
    words; only a word that is longer than a chunk is cut.

    Raises:
        InputError: the model's tokenizer does not say where in a text its tokens are.
    """
    tokenizer: Any = getattr(model, "tokenizer", None)
    if model.max_seq_length is None or not counts_tokens(model) or not tokenizer.is_fast:
        raise InputError("only a model with a fast tokenizer of transformers and a greatest length can read in chunks")
    size = model.max_seq_length - int(token_counts(model, [""], prompt)[0])
    if size < 1:
        raise InputError(
            f"the model must take more tokens than its prompt has, got {model.max_seq_length} and {prompt!r}"
        )
    for document in documents:
        encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = _ends(encoded.word_ids(), size)
        cuts = [0, *(encoded["offset_mapping"][end - 1][1] for end in ends[:-1]), len(document.text)]
        for number, (start, end) in enumerate(pairwise(cuts)):
            yield Document(f"{document.id}{MARK}{number}", document.text[start:end])


def _ends(words: list[int | None], size: int) -> list[int]:
    """Where chunks of at most `size` tokens end; the last one ends at the end, even of no tokens."""
    ends: list[int] = []
    start = 0
    while len(words) - start > size:
        end = start + size
        while end > start and words[end] is not None and words[end - 1] == words[end]:
            end -= 1
        start = end if end > start else start + size
        ends.append(start)
    return [*ends, len(words)]


class Chunks(NamedTuple):
    """Whole documents: ids (n), in which row the chunks of each begin (n), and all their vectors (m, H)."""

    ids: list[str]
    starts: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def mean(self) -> NDArray[np.float32]:
        """(n, H): the mean vector of each document."""
        counts = np.diff(self.starts, append=len(self.vectors))
        return np.add.reduceat(self.vectors, self.starts, axis=0) / np.float32(counts[:, None])

    def best(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(Q, n): of the scores (Q, m) of all chunks the best of each document."""
        return np.maximum.reduceat(scores, self.starts, axis=1)


def by_document(blocks: Iterable[Block]) -> Iterator[Chunks]:
    """Blocks of chunks, as :func:`split_documents` names them, cut anew between documents."""
    names: list[str] = []
    rows: list[NDArray[np.float32]] = []
    for ids, vectors in blocks:
        names += [id.rpartition(MARK)[0] for id in ids]
        rows.append(vectors)
        whole = names.index(names[-1])
        if whole:
            every = np.concatenate(rows)
            yield _chunks(names[:whole], every[:whole])
            names, rows = names[whole:], [every[whole:]]
    if names:
        yield _chunks(names, np.concatenate(rows))


def _chunks(names: list[str], vectors: NDArray[np.float32]) -> Chunks:
    counts = [(name, sum(1 for _ in chunks)) for name, chunks in groupby(names)]
    starts = np.cumsum([0, *(count for _, count in counts[:-1])])
    return Chunks([name for name, _ in counts], starts, vectors)
