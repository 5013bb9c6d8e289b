"""Losses between embeddings of queries and documents."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional as F


def orthogonal_projection_loss(queries: Tensor, documents: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""Orthogonal projection loss (arXiv 2402.07440, section 4.2).

    The cosine of a query with a document is drawn to 1 where the document is relevant and to 0 elsewhere:

    .. math:: \operatorname{mean}_{+} (\cos(q, d) - 1)^2 + \operatorname{mean}_{-} \cos(q, d)^2

    A pair's term does not depend on the other pairs, so that the loss works at batch size 1, where only the first mean
    remains. The two means have the same weight however many negatives there are; with one negative per positive this
    is twice the mean squared error of the paper.

    Args:
        queries: (Q, D).
        documents: (N, D).
        labels: (Q, N) bool or 0/1, whether the document is relevant; None means that document i belongs to query i.

    Raises:
        ValueError: the shapes do not fit.
    """
    if queries.dim() != 2 or documents.dim() != 2 or queries.shape[1] != documents.shape[1]:
        raise ValueError(
            "orthogonal_projection_loss: arguments 'queries' and 'documents' must have shapes (Q, D) and (N, D), "
            f"got {tuple(queries.shape)} and {tuple(documents.shape)}"
        )
    wanted = (len(queries), len(documents))
    if labels is None:
        if wanted[0] != wanted[1]:
            raise ValueError(
                f"orthogonal_projection_loss: argument 'labels' must be given when Q != N, got Q, N = {wanted}"
            )
        labels = torch.eye(wanted[0], device=queries.device)
    if tuple(labels.shape) != wanted:
        raise ValueError(
            f"orthogonal_projection_loss: argument 'labels' must have shape {wanted}, got {tuple(labels.shape)}"
        )
    relevant = labels.to(torch.bool)
    cosine = F.normalize(queries, dim=1) @ F.normalize(documents, dim=1).T
    error = (cosine - relevant.to(cosine.dtype)).square()
    means = [error[chosen].mean() for chosen in (relevant, ~relevant) if chosen.any()]
    return torch.stack(means).sum() if means else error.sum()


class OrthogonalProjectionLoss(nn.Module):
    """:func:`orthogonal_projection_loss` as a loss of sentence-transformers.

    The columns of a batch are queries, documents and, if there are more, negatives of each query. A query is compared
    with the documents of its own row alone, and the loss is the mean over rows: it is the same however rows are
    batched, and works at batch size 1. Rows of one document with labels 1 and 0 give the mean squared error of the
    paper.

    Args:
        model: the encoder.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """
        Args:
            sentence_features: of each column.
            labels: (rows,), whether the document of a row is relevant, which then has only one; None: the first
                document of a row is, and the others are not.
        """
        queries, *columns = (self.model(features)["sentence_embedding"] for features in sentence_features)
        if not columns or (labels is not None and len(columns) > 1):
            wanted = "two columns with labels, two or more without"
            raise ValueError(
                f"OrthogonalProjectionLoss: argument 'sentence_features' must have {wanted}, got {1 + len(columns)}"
            )
        documents = torch.stack(columns, dim=1)
        if labels is None:
            first = torch.arange(len(columns), device=queries.device) == 0
            relevant = first.expand(len(queries), -1)
        else:
            relevant = labels.view(-1, 1)
        rows = zip(queries, documents, relevant, strict=True)
        return torch.stack([orthogonal_projection_loss(q[None], d, r[None]) for q, d, r in rows]).mean()
