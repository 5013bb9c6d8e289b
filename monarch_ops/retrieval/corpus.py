"""A corpus of any size to an embeddings file, in windows that survive an interruption."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from sentence_transformers import SentenceTransformer

from ..version import __version__
from .documents import Document, InputError, Source
from .embed import Task, counts_tokens, dimension, embed, prompt_of, token_counts
from .encoder import fingerprint, load_encoder
from .store import EmbeddingFile


@dataclass(frozen=True)
class EmbedOptions:
    """How :func:`embed_corpus` embeds.

    Args:
        prompt: put before every document; None: the model's own.
        normalize: unit vectors.
        tokens_per_batch: see :func:`embed`.
        window: characters of text to hold, sort by length and embed before anything is written: what an interruption
            costs at most. A longer document is a window of its own.
        max_documents: of a window.
    """

    prompt: str | None = None
    normalize: bool = True
    tokens_per_batch: int = 8192
    window: int = 2_000_000
    max_documents: int = 4096


def windows(documents: Iterable[Document], options: EmbedOptions) -> Iterator[list[Document]]:
    """Consecutive documents, as many at a time as the options say; they depend on nothing else."""
    window: list[Document] = []
    characters = 0
    for document in documents:
        if window and (characters + len(document.text) > options.window or len(window) == options.max_documents):
            yield window
            window, characters = [], 0
        window.append(document)
        characters += len(document.text)
    if window:
        yield window


def describe(model: SentenceTransformer, folder: str | Path) -> dict[str, Any]:
    """What a manifest says about the model that made the embeddings."""
    longest = model.max_seq_length if counts_tokens(model) else None
    return {
        "model": str(Path(folder).resolve() if Path(folder).is_dir() else folder),
        "model_sha256": fingerprint(model),
        "dim": dimension(model),
        "similarity": model.similarity_fn_name,
        "max_seq_length": longest,
        "versions": {
            "monarch_ops": __version__,
            "sentence_transformers": sentence_transformers.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
    }


def embed_corpus(
    folder: str | Path,
    source: Source,
    output: str | Path,
    options: EmbedOptions = EmbedOptions(),
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Embed all documents of `source` into the file `output`, and return its manifest.

    The documents are read twice: first to find what is wrong with them before any time is spent, then window by
    window. Every window is written as it is done. An interrupted run that is resumed gives the same bytes as one that
    was not.

    Args:
        folder: of the model; see :func:`load_encoder`.
        output: named .parquet or .npy; see :class:`EmbeddingFile`.
        resume: go on with what an interrupted run left in `output`, if it left anything.
        overwrite: remove what there is.
        device: "cpu", "cuda", ...; None: a GPU when there is one.
        console: for the progress bar; None: the standard error stream.

    Raises:
        InputError: what was given cannot be used, the output exists, or it is of another run than the one to resume.
    """
    out = EmbeddingFile(output)
    if resume and overwrite:
        raise InputError("one of --resume and --overwrite must be chosen, got both")
    here = source.path.resolve()
    if here == out.path.resolve() or here in out.path.resolve().parents:
        raise InputError(f"the output must not be the input or lie in it, got {output}")
    if out.exists() and not (resume or overwrite):
        raise InputError(f"the output {output} exists: --resume goes on with it, --overwrite starts anew")
    source.files()
    model = load_encoder(folder, device)
    with progress_bars(console) as progress:
        reading = progress.add_task(f"Reading {source.path.name}", total=None)
        corpus = source.check()
        progress.update(reading, total=corpus.documents, completed=corpus.documents)
        run = describe(model, folder) | {
            "count": corpus.documents,
            "normalized": options.normalize,
            "prompt": prompt_of(model, "document") if options.prompt is None else options.prompt,
            "source": {"path": str(source.path.resolve())} | corpus._asdict(),
            "options": asdict(options),
        }
        if overwrite:
            out.remove()
        if out.manifest_file.is_file():
            _check_same(out.manifest(), run)
        else:
            _check_same(out.shards.begin(run), run)
            embed_windows(model, source, options, out, run, progress)
        out.shards.remove()
    return out.manifest()


def _check_same(begun: dict[str, Any], run: dict[str, Any]) -> None:
    def flat(manifest: dict[str, Any]) -> dict[str, Any]:
        nested = {
            f"{outer}.{name}": value for outer in ("source", "options") for name, value in manifest[outer].items()
        }
        plain = {
            name: value for name, value in manifest.items() if name not in ("source", "options", "versions", "model")
        }
        return plain | nested | {"source.path": None}

    before, now = flat(begun), flat(run)
    changed = [f"{name}={now[name]!r}, not {before.get(name)!r}" for name in now if now[name] != before.get(name)]
    if changed:
        raise InputError(
            f"a run to resume must have the model, documents and options it began with, got {'; '.join(changed)}. "
            "--overwrite starts anew"
        )


def embed_windows(
    model: SentenceTransformer,
    documents: Iterable[Document],
    options: EmbedOptions,
    out: EmbeddingFile,
    run: dict[str, Any],
    progress: Progress,
    *,
    task: Task = "document",
    label: str = "Embedding",
) -> None:
    """Write `out`, going on with the shards that are there.

    Args:
        run: what the manifest will say; of it, count, dim, prompt and max_seq_length are needed here.
        task: what the texts are.
        label: of the progress bar.
    """
    bar = progress.add_task(label, total=run["count"])
    done = cut = count = 0
    longest = run["max_seq_length"] or math.inf
    for number, window in enumerate(windows(documents, options)):
        if not out.shards.has(number):
            texts = [document.text for document in window]
            counts = token_counts(model, texts, run["prompt"])
            vectors = embed(
                model,
                texts,
                task=task,
                prompt=run["prompt"],
                normalize=options.normalize,
                tokens_per_batch=options.tokens_per_batch,
                counts=counts,
                on_progress=lambda n: progress.advance(bar, n),
            )
            out.shards.write(number, [document.id for document in window], vectors, cut=int((counts > longest).sum()))
        done, count = done + len(window), number + 1
        cut += out.shards.read_count(number, "cut")
        progress.update(bar, completed=done)
    if done != run["count"]:
        raise InputError(f"the documents must stay as they are meanwhile, got {done} where there were {run['count']}")
    out.write(out.shards.blocks(count), run | {"cut": cut})


def progress_bars(console: Console | None = None) -> Progress:
    """For long work, on the standard error stream unless told otherwise."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
