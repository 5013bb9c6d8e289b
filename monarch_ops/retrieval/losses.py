"""Losses between embeddings of queries and documents."""

from __future__ import annotations

import torch
from torch import Tensor
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
