"""A closer look at rankings: by length and place, by tokens read, and clusters of documents (arXiv 2402.07440).

Needs the extra ``monarch-ops[eval]``.
"""

try:
    from .clustering import Clustering, cluster, draw_clusters
    from .curves import Curves, draw
    from .measures import EDGES, LENGTHS, by_length, by_position, by_tokens
    from .needle import chance_ndcg, needle_data, split_passages
except ImportError as error:
    raise ImportError(
        f"monarch_ops.retrieval.analysis needs {error.name}: pip install --no-build-isolation 'monarch-ops[eval]'"
    ) from error

__all__ = [
    "EDGES",
    "LENGTHS",
    "Clustering",
    "Curves",
    "by_length",
    "by_position",
    "by_tokens",
    "chance_ndcg",
    "cluster",
    "draw",
    "draw_clusters",
    "needle_data",
    "split_passages",
]
