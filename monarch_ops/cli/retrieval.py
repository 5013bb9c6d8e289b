"""The commands about retrieval."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from .common import extra, refuse, show_found

commands = typer.Typer()


def load_retrieval() -> ModuleType:
    """monarch_ops.retrieval, without the progress bars of transformers."""
    retrieval = extra("..retrieval")
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    return retrieval


Field = Annotated[
    list[str] | None,
    typer.Option(help="JSONL, Parquet: what to read; given again, texts are joined by a space; default: text."),
]
IdField = Annotated[str | None, typer.Option(help="JSONL, Parquet: the id; default: _id, id, or the line's number.")]
Prompt = Annotated[str | None, typer.Option(help="Put before every text; default: the model's own, if it has one.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU when there is one.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove an output that exists.")]
TokensPerBatch = Annotated[int, typer.Option(min=1, help="Tokens to embed at a time, padding included.")]
Window = Annotated[int, typer.Option(min=1, help="Characters to embed before they are written.")]


@commands.command()
def embed(
    model: Annotated[Path, typer.Argument(help="Folder of a sentence-transformers model, or of M2-BERT alone.")],
    source: Annotated[Path, typer.Argument(help="Text or .jsonl (also .gz), .parquet, or a folder of such files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The embeddings: .parquet or .npy.")],
    field: Field = None,
    id_field: IdField = None,
    per_line: Annotated[
        bool | None,
        typer.Option("--per-line/--per-file", help="What is a document of text; default: a line, in a folder a file."),
    ] = None,
    glob: Annotated[str, typer.Option(help="Which files of a folder.")] = "*",
    prompt: Prompt = None,
    normalize: Annotated[bool, typer.Option(help="Unit vectors.")] = True,
    tokens_per_batch: TokensPerBatch = 8192,
    window: Window = 2_000_000,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Embed documents into one file, with their ids and a manifest.

    Documents are read as they are needed. Stopped at any point, the same command with --resume goes on, and what comes
    out is the same.
    """
    retrieval = load_retrieval()
    options = retrieval.EmbedOptions(prompt, normalize, tokens_per_batch, window)
    try:
        documents = retrieval.Source(source, tuple(field or ["text"]), id_field, per_line, glob)
        again = {"resume": resume, "overwrite": overwrite}
        made = retrieval.embed_corpus(model, documents, output, options, device=device, **again)
    except (retrieval.InputError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        refuse(RuntimeError("stopped; the same command with --resume goes on from here"))
    typer.echo(f"{made['count']:,} document{'s' * (made['count'] != 1)}, {made['dim']} dimensions: {output}")
    if made["cut"]:
        typer.echo(f"{made['cut']:,} of them are longer than the model's {made['max_seq_length']:,} tokens: cut there")


@commands.command()
def search(
    embeddings: Annotated[Path, typer.Argument(help="What `embed` made.")],
    query: Annotated[list[str] | None, typer.Argument(help="One or several queries.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="File with more of them: one per line, .jsonl, .parquet.")
    ] = None,
    field: Field = None,
    id_field: IdField = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Documents per query.")] = 10,
    model: Annotated[Path | None, typer.Option(help="Folder of the model; default: where it was.")] = None,
    prompt: Prompt = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for what is found.")] = None,
) -> None:
    """Find the documents nearest to a query."""
    retrieval = load_retrieval()
    asked = [retrieval.Document(str(n), text) for n, text in enumerate(query or [], 1)]
    try:
        if queries is not None:
            asked += retrieval.Source(queries, tuple(field or ["text"]), id_field)
        found = retrieval.search(embeddings, asked, k, folder=model, prompt=prompt, device=device)
        text = json.dumps(found.as_json(), indent=1, ensure_ascii=False)
        if output is not None:
            output.write_text(text + "\n", "utf-8")
    except (retrieval.InputError, OSError) as error:
        refuse(error)
    show_found(found, text if as_json else None)
