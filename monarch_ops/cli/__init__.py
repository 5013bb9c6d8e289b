"""The command ``monarch-ops``, also ``python -m monarch_ops``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console

from .. import _C, __version__, variants
from . import evaluation, reproduce, retrieval, training
from .common import extra, show

app = typer.Typer(help="FFT long convolutions and Monarch block-diagonal matmuls for PyTorch.", no_args_is_help=True)
app.add_typer(retrieval.commands)
app.add_typer(evaluation.commands)
app.add_typer(training.commands)
app.add_typer(reproduce.commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """FFT long convolutions and Monarch block-diagonal matmuls for PyTorch."""


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
    show(found)


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
        from ..demo.run import Demo, DemoOptions
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
    output: Annotated[
        Path | None, typer.Option(help="Folder for what a report records, instead of bench/results and the tables.")
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="Of the sources, for a report where there is no repository that knows it.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Measure all of it so many times, each time in a new process.")
    ] = 1,
    long: Annotated[bool, typer.Option("--long", help="Also the rows that take minutes each.")] = False,
    source: Annotated[Path, typer.Option(help="A clone of the repository, which has the benchmarks.")] = Path("."),
) -> None:
    """Compare the speed of the ops and of M2-BERT with PyTorch's on this machine.

    What matters most is measured first. A report says that it is correct before it says how fast it is; stopped at any
    point, it keeps what it has, and goes on with the same sources where it was. On a GPU it runs all of its steps,
    whatever failed, and says so.
    """
    folder = (source / "bench").resolve()
    if not (folder / "report.py").is_file():
        raise typer.BadParameter(f"must be a clone of the repository, with bench/, got {source}", param_hint="--source")
    if report and record is not None:
        raise typer.BadParameter("belongs to a run without --report, which has its own file", param_hint="--record")
    if not report and (output or commit):
        raise typer.BadParameter("belongs to a run with --report", param_hint="--output" if output else "--commit")
    sys.path.insert(0, str(folder))
    try:
        runs = importlib.import_module("report")
    except ImportError as error:
        needed = "pip install --no-build-isolation 'monarch-ops[bench]'"
        raise typer.BadParameter(f"{error}; the benchmarks need: {needed}") from error
    options = ["--long"] if long else []
    if report:
        minutes, output = 30.0 if minutes is None else minutes, None if output is None else output.resolve()
        raise typer.Exit(runs.report(minutes, select, processes, options, output, commit))
    raise typer.Exit(runs.measure(minutes, select, None if record is None else record.resolve(), processes, options))


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
    m2bert = extra("..m2bert")
    conversion = extra("..m2bert.convert")
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
    show(done.summary())
