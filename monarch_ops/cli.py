"""The command ``monarch-ops``, also ``python -m monarch_ops``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NoReturn

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import _C, __version__, variants

app = typer.Typer(help="FFT long convolutions and Monarch block-diagonal matmuls for PyTorch.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """FFT long convolutions and Monarch block-diagonal matmuls for PyTorch."""


def _show(found: dict[str, Any]) -> None:
    """Names and values as a table; of dictionaries and lists one entry per line."""
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        if isinstance(value, dict):
            value = [f"{kernel}: {', '.join(names)}" for kernel, names in value.items()]
        table.add_row(name, "\n".join(value) or "none" if isinstance(value, list) else str(value))
    Console().print(table)


def installation() -> dict[str, Any]:
    """What is installed, what it was built with, and what this machine has."""
    build = _C.build_info()
    kernels: dict[str, dict[str, list[str]]] = {"cpu": {}, "cuda": {}}
    for row in variants():
        name = row["name"] if row["available"] else f"{row['name']} (not on this machine)"
        kernels[row["device"]].setdefault(f"{row['family']} {row['compute']}", []).append(name)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    oldest = ".".join(str(int(build["torch_target"], 16) >> shift & 255) for shift in (56, 48))
    archs = build["cuda_archs"].replace(",", ", sm_")
    return {
        "version": __version__,
        "torch": torch.__version__,
        "built with": build["compiler"],
        "built for torch": f"{oldest} or newer",
        "built for CUDA": f"nvcc {build['cuda']}, sm_{archs}" if build["cuda"] else "no",
        "CPU instruction set": build["cpu_isa"],
        "CPU threads": torch.get_num_threads(),
        "CPU kernels": kernels["cpu"],
        "CUDA kernels": kernels["cuda"],
        "devices seen by torch": ["cpu", *devices],
        "devices seen by the kernels": ["cpu", *_C.cuda_devices()],
    }


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False) -> None:
    """Version, build options, instruction set, compiled kernels and devices."""
    found = installation()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    _show(found)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what it makes.")] = Path("demo_output"),
    documents: Annotated[Path | None, typer.Option(help="Folder of Python files; default: standard library.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 500,
    held_out: Annotated[int, typer.Option(min=2, help="Modules to search, unseen in training.")] = 100,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: a GPU when there is one.")] = None,
    speed: Annotated[bool, typer.Option(help="Print the speed tables at the end.")] = True,
) -> None:
    """Train a small M2-BERT on Python sources for a few minutes, search held-out modules with it, compare the speed.

    Stopped in the middle (Ctrl-C), it goes on from there when it is started again.
    """
    try:
        from .demo.run import Demo, DemoOptions
    except ImportError as error:
        needed = "pip install --no-build-isolation 'monarch-ops[demo]'"
        raise typer.BadParameter(f"{error}; the demo needs: {needed}") from error
    Demo(DemoOptions(output, documents, steps, held_out, device, speed), Console()).run()


@app.command()
def bench(
    report: Annotated[
        bool, typer.Option("--report", help="Tests first; record the run; make docs/performance.md anew.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Start nothing after so many minutes (a report: 30).")
    ] = None,
    select: Annotated[str | None, typer.Option("-k", help="Which benchmarks, as for pytest: 'cpu and mlp'.")] = None,
    record: Annotated[Path | None, typer.Option(help="JSON file for the rows (without --report).")] = None,
    long: Annotated[bool, typer.Option("--long", help="Also the rows that take minutes each.")] = False,
    source: Annotated[Path, typer.Option(help="A clone of the repository, which has the benchmarks.")] = Path("."),
) -> None:
    """Compare the speed of the ops and of M2-BERT with PyTorch's on this machine.

    What matters most is measured first. A report says that it is correct before it says how fast it is; stopped at any
    point, it keeps what it has, and goes on with the same sources where it was.
    """
    folder = (source / "bench").resolve()
    if not (folder / "report.py").is_file():
        raise typer.BadParameter(f"must be a clone of the repository, with bench/, got {source}", param_hint="--source")
    if report and record is not None:
        raise typer.BadParameter("belongs to a run without --report, which has its own file", param_hint="--record")
    sys.path.insert(0, str(folder))
    try:
        runs = importlib.import_module("report")
    except ImportError as error:
        needed = "pip install --no-build-isolation 'monarch-ops[bench]'"
        raise typer.BadParameter(f"{error}; the benchmarks need: {needed}") from error
    options = ["--long"] if long else []
    if report:
        raise typer.Exit(runs.report(30.0 if minutes is None else minutes, select, options))
    raise typer.Exit(runs.measure(minutes, select, None if record is None else record.resolve(), options))


def _extra(module: str) -> ModuleType:
    """A part of this package that needs an extra, which its error names."""
    try:
        return importlib.import_module(module, __package__)
    except ImportError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Published weights: .pt, .bin or safetensors.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    config: Annotated[str, typer.Option(help="Published YAML file, or a preset such as m2-bert-80m-8k.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer to write beside the model.")] = None,
    model: Annotated[
        Literal["auto", "encoder", "language-model", "classifier"],
        typer.Option(help="What to make of it; auto: the language model when its head is there, else the encoder."),
    ] = "auto",
    padding: Annotated[
        Literal["official", "invariant"],
        typer.Option(help="official: padding takes part, as published; invariant: it changes nothing."),
    ] = "official",
    extend_to: Annotated[
        int | None, typer.Option(min=2, help="Warm start: longest input in tokens of the new model.")
    ] = None,
    decay: Annotated[
        Literal["stretch", "tokens"],
        typer.Option(help="Of extended filters: spread over the new length, or as before per token."),
    ] = "stretch",
    features: Annotated[
        Literal["tile", "continue"],
        typer.Option(help="Of extended filters: the old ones again, or what their formulas give beyond."),
    ] = "tile",
) -> None:
    """Write published M2-BERT weights in the form of Hugging Face: config.json, model.safetensors, tokenizer.

    The folder appears when it is complete. Weights that are missing, unknown or of another shape are listed.
    """
    m2bert = _extra(".m2bert")
    conversion = _extra(".m2bert.convert")
    classes = {
        "encoder": m2bert.M2BertModel,
        "language-model": m2bert.M2BertForMaskedLM,
        "classifier": m2bert.M2BertForSequenceClassification,
    }
    try:
        options = conversion.read_config(config, padding=padding)
        done = conversion.convert(
            checkpoint,
            options,
            output,
            model_class=classes.get(model),
            tokenizer=tokenizer,
            extend_to=extend_to,
            decay=decay,
            features=features,
        )
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    _show(done.summary())


def _retrieval() -> ModuleType:
    retrieval = _extra(".retrieval")
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    return retrieval


def _refuse(error: Exception) -> NoReturn:
    Console(stderr=True).print(Text(f"Error: {error}"), soft_wrap=True)
    raise typer.Exit(1) from error


Field = Annotated[
    list[str] | None,
    typer.Option(help="JSONL, Parquet: what to read; given again, texts are joined by a space; default: text."),
]
IdField = Annotated[str | None, typer.Option(help="JSONL, Parquet: the id; default: _id, id, or the line's number.")]
Prompt = Annotated[str | None, typer.Option(help="Put before every text; default: the model's own, if it has one.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU when there is one.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove an output that exists.")]


@app.command()
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
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Tokens to embed at a time, padding included.")] = 8192,
    window: Annotated[int, typer.Option(min=1, help="Characters to embed before they are written.")] = 2_000_000,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Embed documents into one file, with their ids and a manifest.

    Documents are read as they are needed. Stopped at any point, the same command with --resume goes on, and what comes
    out is the same.
    """
    retrieval = _retrieval()
    options = retrieval.EmbedOptions(prompt, normalize, tokens_per_batch, window)
    try:
        documents = retrieval.Source(source, tuple(field or ["text"]), id_field, per_line, glob)
        again = {"resume": resume, "overwrite": overwrite}
        made = retrieval.embed_corpus(model, documents, output, options, device=device, **again)
    except (retrieval.InputError, OSError) as error:
        _refuse(error)
    except KeyboardInterrupt:
        _refuse(RuntimeError("stopped; the same command with --resume goes on from here"))
    typer.echo(f"{made['count']:,} document{'s' * (made['count'] != 1)}, {made['dim']} dimensions: {output}")
    if made["cut"]:
        typer.echo(f"{made['cut']:,} of them are longer than the model's {made['max_seq_length']:,} tokens: cut there")


@app.command()
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
    retrieval = _retrieval()
    asked = [retrieval.Document(str(n), text) for n, text in enumerate(query or [], 1)]
    try:
        if queries is not None:
            asked += retrieval.Source(queries, tuple(field or ["text"]), id_field)
        found = retrieval.search(embeddings, asked, k, folder=model, prompt=prompt, device=device)
        text = json.dumps(found.as_json(), indent=1, ensure_ascii=False)
        if output is not None:
            output.write_text(text + "\n", "utf-8")
    except (retrieval.InputError, OSError) as error:
        _refuse(error)
    if as_json:
        typer.echo(text)
    else:
        for part in found.rendered():
            Console().print(part)


importlib.import_module(".cli_training", __package__)  # train, pretrain
