"""Retrieval with M2-BERT (arXiv 2402.07440): loss, training on pairs, embedding, ranking and its baseline.

Needs the extra ``monarch-ops[retrieval]``.
"""

try:
    from .embed import embed
    from .losses import orthogonal_projection_loss
    from .ranking import bm25_scores, ndcg
    from .tokenizer import train_tokenizer
    from .training import Trainer, TrainingOptions
except ImportError as error:
    raise ImportError(
        f"monarch_ops.retrieval needs {error.name}: pip install --no-build-isolation 'monarch-ops[retrieval]'"
    ) from error

__all__ = [
    "Trainer",
    "TrainingOptions",
    "bm25_scores",
    "embed",
    "ndcg",
    "orthogonal_projection_loss",
    "train_tokenizer",
]
