"""Retrieval with M2-BERT (arXiv 2402.07440): embedding, search, training, evaluation.

:func:`Encoder` makes M2-BERT a module of sentence-transformers. Importing this package also tells transformers what
M2-BERT is, so that ``SentenceTransformer(folder)`` reads a saved one. Needs the extra ``monarch-ops[retrieval]``.
"""

try:
    from .beir import RetrievalData, load_beir
    from .corpus import EmbedOptions, describe, embed_corpus, progress_bars
    from .documents import Document, InputError, Source
    from .embed import embed
    from .encoder import Encoder, load_encoder
    from .losses import OrthogonalProjectionLoss, orthogonal_projection_loss
    from .ranking import bm25_scores, ndcg
    from .search import Hit, search
    from .store import EmbeddingFile
    from .tokenizer import train_tokenizer
except ImportError as error:
    raise ImportError(
        f"monarch_ops.retrieval needs {error.name}: pip install --no-build-isolation 'monarch-ops[retrieval]'"
    ) from error

__all__ = [
    "Document",
    "EmbedOptions",
    "EmbeddingFile",
    "Encoder",
    "Hit",
    "InputError",
    "OrthogonalProjectionLoss",
    "RetrievalData",
    "Source",
    "bm25_scores",
    "describe",
    "embed",
    "embed_corpus",
    "load_beir",
    "load_encoder",
    "ndcg",
    "orthogonal_projection_loss",
    "progress_bars",
    "search",
    "train_tokenizer",
]
