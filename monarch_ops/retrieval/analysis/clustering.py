"""Do embeddings of documents fall into groups by where they are from, without any training? (arXiv 2402.07440)"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import Progress
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import homogeneity_completeness_v_measure

from ..beir import RetrievalData
from ..documents import InputError
from ..evaluation.rankers import Dense, Ranker


@dataclass(frozen=True)
class Clustering:
    """The documents of several sets of data, N together, as one model sees them.

    Args:
        names: of the sets.
        sources: (N,) from which set a document is.
        clusters: (N,) into which of as many clusters k-means puts it.
        homogeneity: 1 when no cluster has documents of two sets.
        completeness: 1 when no set is in two clusters.
        v_measure: the harmonic mean of both.
        plane: (N, 2), by t-SNE.
    """

    label: str
    names: list[str]
    sources: NDArray[np.int64]
    clusters: NDArray[np.int64]
    homogeneity: float
    completeness: float
    v_measure: float
    plane: NDArray[np.float32]

    def as_json(self) -> dict[str, Any]:
        sizes = np.zeros((len(self.names), len(self.names)), int)
        np.add.at(sizes, (self.sources, self.clusters), 1)
        measured = {name: getattr(self, name) for name in ("homogeneity", "completeness", "v_measure")}
        return {"model": self.label} | measured | {"clusters": dict(zip(self.names, sizes.tolist(), strict=True))}


def cluster(
    data: Sequence[RetrievalData], rankers: Iterable[Ranker], progress: Progress, seed: int = 0
) -> list[Clustering]:
    """K-means of the documents' unit vectors with as many clusters as there are sets of data, by every model.

    Raises:
        InputError: there is only one set of data, or a ranker has no vector per document.
    """
    if len(data) < 2:
        raise InputError(f"clusters need at least two sets of data, got {len(data)}")
    sources = np.repeat(np.arange(len(data)), [len(each.documents) for each in data])
    found = []
    for ranker in rankers:
        if not isinstance(ranker, Dense) or ranker.chunks == "max":
            raise InputError(f"clusters need one vector per document, which {ranker.label} has not")
        vectors = np.concatenate([ranker.document_vectors(each, progress) for each in data])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        clusters = KMeans(len(data), n_init=10, random_state=seed).fit_predict(vectors)
        homogeneity, completeness, v_measure = map(float, homogeneity_completeness_v_measure(sources, clusters))
        perplexity = min(30, (len(vectors) - 1) / 3)
        plane = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed).fit_transform(vectors)
        names = [each.name for each in data]
        found.append(Clustering(ranker.label, names, sources, clusters, homogeneity, completeness, v_measure, plane))
    return found


def draw_clusters(found: Sequence[Clustering], file: Path) -> None:
    """Write a PNG with the documents of every model in the plane, coloured by where they are from."""
    colours = matplotlib.colormaps["tab10" if len(found[0].names) <= 10 else "tab20"]
    figure = Figure(figsize=(5 * len(found), 5.4), layout="constrained", dpi=120)
    for axes, each in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        for number, name in enumerate(each.names):
            rows = each.sources == number
            axes.scatter(*each.plane[rows].T, s=9, alpha=0.7, color=colours(number), label=name)
        axes.set(title=f"{each.label}: v-measure {each.v_measure:.3f}", xticks=[], yticks=[])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(found), frameon=False)
    figure.savefig(file)
