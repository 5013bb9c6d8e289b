"""The command ``monarch-ops reproduce``: the orderings of arXiv 2402.07440 with small models."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import extra, refuse, show_found, write_json
from .retrieval import Device, load_retrieval
from .training import Precision, split_name

commands = typer.Typer()

Ordering = Literal["mixture", "warm-start", "loss", "all"]
PARAGRAPHS = (
    "Compare ways to train as arXiv 2402.07440 does, with small models, and say whether its orderings come out.",
    "mixture: pretraining on short and long texts > on long ones > on short ones, by nDCG@10 after fine-tuning. "
    "All arms of a seed have the same initial weights, steps and rows per step; long "
    "rows have more tokens.",
    "warm-start: a language model that starts from a shorter trained one > one that starts from nothing, by its "
    "accuracy on held-out texts. Both make the same steps on the same rows; those of the shorter model come before.",
    "loss: the orthogonal projection of a row at a time > multiple negatives ranking of two, of which each has one "
    "negative. Both start from the same pretrained model and see equally many queries with their documents, each time "
    "beside one other document, in the same number of steps with gradients of equally many. What these losses need a "
    "device to hold is one row and two; --tune-at-once puts more there, for speed, and the gradients stay the same.",
    "Stopped at any point, the same command goes on, and repeats nothing that is done.",
)


@commands.command(help="\n\n".join(PARAGRAPHS))
def reproduce(
    context: typer.Context,
    ordering: Annotated[Ordering, typer.Argument(help="What to compare; see above.")],
    train: Annotated[list[str], typer.Option(help="BEIR folder to train on, or FOLDER:SPLIT; may be given again.")],
    test: Annotated[list[str], typer.Option(help="BEIR folder to measure on, or FOLDER:SPLIT; may be given again.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for trainings, results.json and pictures.")],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm; more can be added later.")] = 3,
    model: Annotated[str, typer.Option(help="A preset, or a file of options.")] = "m2-bert-small",
    max_length: Annotated[int, typer.Option(min=32, help="Longest input in tokens.")] = 128,
    shorter: Annotated[int | None, typer.Option(help="warm-start: of the shorter model; default: a quarter.")] = None,
    longest_short: Annotated[int | None, typer.Option(help="Of short examples; default: a quarter.")] = None,
    vocab_size: Annotated[int, typer.Option(min=16, help="Of the tokenizer, which is trained once.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="Of pretraining.")] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per step of pretraining.")] = 16,
    at_once: Annotated[int, typer.Option(min=1, help="Rows on a device at a time in pretraining.")] = 16,
    lr: Annotated[float, typer.Option(min=0, help="Largest learning rate of pretraining.")] = 3e-3,
    points: Annotated[int, typer.Option(min=1, help="Measurements of a language model on the way.")] = 8,
    held_out: Annotated[int, typer.Option(min=1, help="Test documents to measure language models on.")] = 64,
    tune_steps: Annotated[int, typer.Option(min=1, help="Of fine-tuning.")] = 150,
    tune_batch_size: Annotated[int, typer.Option(min=2, help="Rows per step of fine-tuning; loss: queries.")] = 64,
    tune_at_once: Annotated[int, typer.Option(min=1, help="Rows on a device at a time in fine-tuning.")] = 32,
    tune_lr: Annotated[float, typer.Option(min=0, help="Largest learning rate of fine-tuning.")] = 2e-3,
    tune_loss: Annotated[Literal["mnrl", "opl"], typer.Option(help="mixture: mnrl of a batch, or opl.")] = "mnrl",
    negatives: Annotated[int, typer.Option(min=1, help="mixture, opl: of a query and relevant document.")] = 8,
    precision: Precision = "float32",
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what is in the output first.")] = False,
) -> None:
    """Write trainings, pictures and results.json; show tables and verdicts."""
    retrieval, package = load_retrieval(), extra("..reproduce")
    given = {field.name: context.params[field.name] for field in dataclasses.fields(package.Options)}
    chosen = list(package.ORDERINGS) if ordering == "all" else [ordering]
    start = time.perf_counter()
    try:
        options = package.Options(**given)
        if overwrite:
            shutil.rmtree(output, ignore_errors=True)
        folders = [[split_name(name) for name in names] for names in (train, test)]
        with retrieval.progress_bars() as progress:
            study = package.Study(*folders, output, options, progress)
            found = {name: package.ORDERINGS[name](study) for name in chosen}
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        refuse(RuntimeError("stopped; the same command goes on from here"))
    about = {"command": " ".join(["monarch-ops", *sys.argv[1:]]), "seconds": round(time.perf_counter() - start, 1)}
    _save(output, about | package.machine(options.device) | {"options": dataclasses.asdict(options)}, found)


def _save(output: Path, about: dict[str, Any], found: dict[str, Any]) -> None:
    """Show the tables; write the pictures, and one JSON with what earlier commands found there."""
    file = output / "results.json"
    all = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for name, finding in found.items():
        all[name] = finding.as_json() | about
        extra("..reproduce").draw(finding, output / f"{name}.png")
        show_found(finding)
    write_json(file, all)
    typer.echo(f"{file} and {', '.join(f'{name}.png' for name in found)}")
