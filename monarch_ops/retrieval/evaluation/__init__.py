"""How well rankings are: BM25, models, and models in chunks, on LoCoV1 (arXiv 2402.07440) or a BEIR folder."""

from .evaluate import Evaluation, evaluate, read_data
from .locov1 import TASKS, load_locov1
from .models import Embedder, ModelOptions, load_model
from .rankers import BM25, Dense, Oracle, Ranker, make_rankers

__all__ = [
    "BM25",
    "TASKS",
    "Dense",
    "Embedder",
    "Evaluation",
    "ModelOptions",
    "Oracle",
    "Ranker",
    "evaluate",
    "load_locov1",
    "load_model",
    "make_rankers",
    "read_data",
]
