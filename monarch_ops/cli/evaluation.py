"""The commands that measure retrieval: eval, and analyze with its own commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .common import extra, refuse, show_found, write_json
from .retrieval import Device, TokensPerBatch, Window, load_retrieval

commands = typer.Typer()
analyze = typer.Typer(help="Look closer at how models rank; each command writes JSON and a PNG.", no_args_is_help=True)
commands.add_typer(analyze, name="analyze")

Data = Annotated[
    list[str],
    typer.Option(
        help="A BEIR folder, locov1 (all 12 tasks) or locov1:qmsum,gov_report, mteb:LongEmbed or "
        "mteb:SciFact,NFCorpus; may be given again."
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="bm25, oracle, minilm (all-MiniLM-L6-v2), a folder with a model, or a name on the Hugging Face hub; given "
        "again, they are compared.",
    ),
]
Split = Annotated[str | None, typer.Option(help="Of a BEIR folder; default: the only one.")]
LoCoV1 = Annotated[Path | None, typer.Option(help="Folder with a copy of LoCoV1; default: the Hugging Face hub.")]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a text, or of a chunk; default: each model's own maximum.")
]
Chunks = Annotated[
    list[str] | None,
    typer.Option(
        help="none (default): long documents are cut; mean, max: over their chunks. Given again, they are compared."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for embeddings and results.")]
OUTPUT = Path("eval_output")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Errors of the user's, and Ctrl-C, as one line."""
    try:
        yield
    except (load_retrieval().InputError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        refuse(RuntimeError("stopped; the same command goes on from here"))


def _read(names: list[str], split: str | None, locov1: Path | None) -> list[Any]:
    read_data = extra("..retrieval.evaluation").read_data
    return [each for name in names for each in read_data(name, split, locov1)]


def _rankers(models: list[str], chunks: list[str] | None, output: Path, options: Any) -> Iterator[Any]:
    make = extra("..retrieval.evaluation").make_rankers
    return make(models, output / "embeddings", options, chunks or ["none"])


def _evaluated(sets: list[Any], rankers: Iterator[Any]) -> Any:
    with load_retrieval().progress_bars() as progress:
        return extra("..retrieval.evaluation").evaluate(sets, rankers, progress)


@commands.command(name="eval")
def evaluate(
    data: Data,
    models: Models,
    split: Split = None,
    locov1: LoCoV1 = None,
    max_length: MaxLength = None,
    chunks: Chunks = None,
    output: Output = OUTPUT,
    tokens_per_batch: TokensPerBatch = 8192,
    window: Window = 2_000_000,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Measure how well models rank the documents of a benchmark: nDCG, and how long texts are.

    Stopped at any point, the same command goes on: embeddings are kept in the output folder, and used again.
    """
    evaluation = extra("..retrieval.evaluation")
    options = evaluation.ModelOptions(max_length, device, tokens_per_batch, window)
    with _stoppable():
        found = _evaluated(_read(data, split, locov1), _rankers(models, chunks, output, options))
        text = write_json(output / "results.json", found.as_json())
    show_found(found, text if as_json else None)


@commands.command()
def mteb(
    models: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="minilm (all-MiniLM-L6-v2), a folder with a model, or a name on the Hugging Face hub; given again, "
            "they are compared.",
        ),
    ],
    task: Annotated[list[str] | None, typer.Option(help="Its name in mteb, such as STS12; may be given again.")] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Its name in mteb, such as BEIR, LongEmbed, 'MTEB(eng, v2)'; may be given again."),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Of --task, if it has several: eng, deu, ...; default: all of them.")
    ] = None,
    max_length: MaxLength = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("mteb_output"),
    tokens_per_batch: TokensPerBatch = 8192,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Measure models on tasks of mteb, of all types: retrieval, classification, clustering, similarity and others.

    Their data is on the Hugging Face hub. Stopped at any point, the same command goes on: mteb keeps the scores of
    every task, and of every part of it, in the output folder.
    """
    evaluation, tasks = extra("..retrieval.evaluation"), extra("..retrieval.evaluation.mteb_tasks")
    scores = extra("..retrieval.evaluation.mteb_scores")
    if not task and not benchmark:
        raise typer.BadParameter("must be given, or --benchmark", param_hint="--task")
    options = evaluation.ModelOptions(max_length, device, tokens_per_batch)
    with _stoppable():
        suites = [tasks.find_benchmark(name) for name in benchmark or []]
        if task:
            suites.append(tasks.Suite("tasks", [tasks.find_task(name, language) for name in task]))
        with load_retrieval().progress_bars() as progress:
            found = scores.measure(suites, models, output, options, progress)
        text = write_json(output / "scores.json", found.as_json())
    show_found(found, text if as_json else None)
    if found.failed():
        raise typer.Exit(1)


def _save_curves(output: Path, name: str, curves: list[Any], **form: bool) -> None:
    """Write JSON and PNG, and show tables."""
    file = output / f"{name}.png"
    write_json(file.with_suffix(".json"), [each.as_json() for each in curves])
    extra("..retrieval.analysis").draw(curves, file, **form)
    for each in curves:
        Console().print(each.table())
    typer.echo(f"{file} and {file.with_suffix('.json').name}")


@analyze.command()
def lengths(
    data: Data,
    models: Models,
    split: Split = None,
    locov1: LoCoV1 = None,
    edge: Annotated[
        list[int] | None, typer.Option(min=1, help="Where a bucket begins, in words; default: 1500, 6000 and 24000.")
    ] = None,
    max_length: MaxLength = None,
    chunks: Chunks = None,
    output: Output = OUTPUT,
    tokens_per_batch: TokensPerBatch = 8192,
    device: Device = None,
) -> None:
    """nDCG@10 by the length of the relevant document."""
    evaluation, analysis = extra("..retrieval.evaluation"), extra("..retrieval.analysis")
    options = evaluation.ModelOptions(max_length, device, tokens_per_batch)
    with _stoppable():
        sets = _read(data, split, locov1)
        found = _evaluated(sets, _rankers(models, chunks, output, options))
        _save_curves(
            output, "lengths", [analysis.by_length(sets, found, sorted({*(edge or analysis.EDGES)}))], bars=True
        )


@analyze.command()
def needle(
    data: Data,
    models: Models,
    split: Split = None,
    locov1: LoCoV1 = None,
    positions: Annotated[int, typer.Option(min=2, help="Passages of a haystack, the needle among them.")] = 40,
    queries: Annotated[int, typer.Option(min=2, help="At most; each with a haystack.")] = 20,
    words: Annotated[int, typer.Option(min=1, help="Of a passage.")] = 100,
    max_length: MaxLength = None,
    chunks: Chunks = None,
    output: Output = OUTPUT,
    tokens_per_batch: TokensPerBatch = 8192,
    device: Device = None,
) -> None:
    """nDCG@10 when the passage with the answer is at each place of a long document made of other passages."""
    evaluation, analysis = extra("..retrieval.evaluation"), extra("..retrieval.analysis")
    options = evaluation.ModelOptions(max_length, device, tokens_per_batch)
    sizes = {"positions": positions, "queries": queries, "words": words}
    with _stoppable():
        for each in _read(data, split, locov1):
            rankers = _rankers(models, chunks, output, options)
            with load_retrieval().progress_bars() as progress:
                found = analysis.by_position(each, rankers, progress, **sizes)
            _save_curves(output, f"needle-{each.name.replace('/', '-').replace(':', '-')}", [found])


@analyze.command()
def tokens(
    data: Data,
    models: Models,
    split: Split = None,
    locov1: LoCoV1 = None,
    length: Annotated[list[int] | None, typer.Option(min=1, help="Tokens; default: 128, 2048, 8192 and 32768.")] = None,
    output: Output = OUTPUT,
    tokens_per_batch: TokensPerBatch = 8192,
    device: Device = None,
) -> None:
    """nDCG@10, tokens per second and memory when documents are cut to so many tokens."""
    evaluation, analysis = extra("..retrieval.evaluation"), extra("..retrieval.analysis")
    options = evaluation.ModelOptions(None, device, tokens_per_batch)
    with _stoppable():
        sets = _read(data, split, locov1)
        with load_retrieval().progress_bars() as progress:
            found = analysis.by_tokens(
                sets, models, sorted({*(length or analysis.LENGTHS)}), output / "embeddings", options, progress
            )
        _save_curves(output, "tokens", found, log=True)


@analyze.command()
def clusters(
    data: Data,
    models: Models,
    split: Split = None,
    locov1: LoCoV1 = None,
    max_length: MaxLength = None,
    chunks: Chunks = None,
    output: Output = OUTPUT,
    tokens_per_batch: TokensPerBatch = 8192,
    device: Device = None,
) -> None:
    """Whether k-means puts the documents of several sets of data apart: v-measure, and a map of them."""
    evaluation, analysis = extra("..retrieval.evaluation"), extra("..retrieval.analysis")
    options = evaluation.ModelOptions(max_length, device, tokens_per_batch)
    with _stoppable():
        sets = _read(data, split, locov1)
        rankers = _rankers(models, chunks, output, options)
        with load_retrieval().progress_bars() as progress:
            found = analysis.cluster(sets, rankers, progress)
        write_json(output / "clusters.json", [each.as_json() for each in found])
        analysis.draw_clusters(found, output / "clusters.png")
    table = Table("", "v-measure", "homogeneity", "completeness")
    for each in found:
        numbers = (each.v_measure, each.homogeneity, each.completeness)
        table.add_row(escape(each.label), *(f"{number:.3f}" for number in numbers))
    Console().print(table)
    typer.echo(f"{output / 'clusters.png'} and clusters.json")
