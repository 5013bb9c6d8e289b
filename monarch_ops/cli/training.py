"""The commands ``monarch-ops train`` and ``monarch-ops pretrain``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import extra, refuse
from .retrieval import Device, Field, Overwrite, Resume, load_retrieval

commands = typer.Typer()

Sources = Annotated[
    list[str], typer.Argument(help="Text, .jsonl, .parquet, folders of such, BEIR folders, or hf:NAME[:CONFIG].")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the trained model; new or empty.")]
MaxLength = Annotated[int | None, typer.Option(min=8, help="Longest text in tokens; default: as the model has it.")]
Vocabulary = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder of one for a new model; default: it is trained.")
]
VocabSize = Annotated[int, typer.Option(min=16, help="Of the tokenizer that is trained for a new model.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows per step, on all devices together.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Rows on a device at a time: what decides about the memory.")]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Largest learning rate.")]
Warmup = Annotated[float, typer.Option(min=0, help="Share of the steps, or, from 1 on, steps.")]
Decay = Annotated[float, typer.Option("--weight-decay", min=0)]
GradNorm = Annotated[float, typer.Option("--max-grad-norm", min=0)]
Precision = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of autocast.")]
Seed = Annotated[int, typer.Option()]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints, and rankings of --validate.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="NAME=VALUE of transformers' TrainingArguments; may be given again.")
]


def _assignments(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE, the value as in JSON if it is that."""
    found: dict[str, Any] = {}
    for assignment in given or []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"must be NAME=VALUE, got {assignment!r}", param_hint="--set")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _options(kind: type, given: dict[str, Any]) -> Any:
    """Of a training: what the command was given by the names of the options' fields, but for --lr and --set."""
    same = {field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given}
    return kind(**same | {"learning_rate": given["lr"], "more": _assignments(given["more"])})


def _trained(run: Callable[[], dict[str, Any]], output: Path) -> None:
    try:
        made = run()
    except (ValueError, OSError) as error:
        refuse(error)
    except KeyboardInterrupt:
        refuse(RuntimeError("stopped; the same command with --resume goes on from the last checkpoint"))
    typer.echo(f"{made['steps']:,} steps in {made['seconds']:,.0f} s: {output}")


@commands.command()
def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder of a model; or of a new one a preset or a file of options.")],
    data: Annotated[list[str], typer.Argument(help="BEIR folders to train on; FOLDER:SPLIT where there are several.")],
    output: Output,
    loss: Annotated[str, typer.Option(help="opl, mnrl, prototype, triplet, contrastive.")] = "opl",
    negatives: Annotated[int, typer.Option(min=0, help="Per query and relevant document.")] = 32,
    negatives_from: Annotated[Literal["random", "bm25"], typer.Option(help="Or BM25's first ones.")] = "random",
    spans: Annotated[int, typer.Option(min=0, help="Also so many pairs per document: words of it, and itself.")] = 0,
    epochs: Annotated[float, typer.Option(min=0)] = 1.0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Instead of epochs.")] = None,
    batch_size: BatchSize = 32,
    at_once: AtOnce = 8,
    tokens_at_once: Annotated[int | None, typer.Option(min=1, help="mnrl: tokens at a time, not rows.")] = None,
    in_batch: Annotated[
        int | None, typer.Option(min=1, help="mnrl: rows that are each other's negatives; default: the batch.")
    ] = None,
    lr: Rate = 5e-6,
    warmup: Warmup = 0.1,
    weight_decay: Decay = 0.01,
    max_grad_norm: GradNorm = 1.0,
    scale: Annotated[float, typer.Option(min=0, help="mnrl: of the cosines.")] = 20.0,
    margin: Annotated[float, typer.Option(min=0, help="triplet, contrastive: of the cosines.")] = 0.5,
    teacher: Annotated[Path | None, typer.Option(help="prototype: folder of the model to imitate.")] = None,
    max_length: MaxLength = None,
    tokenizer: Vocabulary = None,
    vocab_size: VocabSize = 8192,
    validate: Annotated[str | None, typer.Option(help="BEIR folder to rank at each checkpoint.")] = None,
    save_every: SaveEvery = 500,
    precision: Precision = "float32",
    seed: Seed = 0,
    device: Device = None,
    more: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune an encoder for retrieval on queries and the documents that answer them.

    The defaults are those of the published M2-BERT. `torchrun -m monarch_ops train ...` trains on several GPUs.
    """
    retrieval, training = load_retrieval(), extra("..training")

    def run() -> dict[str, Any]:
        options = _options(training.FineTuneOptions, context.params)
        parts = [retrieval.load_beir(*split_name(folder)) for folder in data]
        texts = (text for part in parts for text in (*part.documents.values(), *part.queries.values()))
        folder = training.Run(output, resume, overwrite)
        if done := folder.finished():
            return done
        encoder = training.new_encoder(
            model, texts, max_length=max_length, tokenizer=tokenizer, vocab_size=vocab_size, seed=seed, device=device,
            keep=folder.start,
        )  # fmt: skip
        return training.fine_tune(
            encoder, parts, folder, options,
            teacher=None if teacher is None else retrieval.load_encoder(teacher, device),
            validation=None if validate is None else retrieval.load_beir(*split_name(validate)),
        )  # fmt: skip

    _trained(run, output)


def split_name(name: str) -> tuple[str, str | None]:
    """FOLDER:SPLIT, or a folder alone."""
    folder, colon, split = name.rpartition(":")
    return (folder, split) if colon and not Path(name).exists() else (name, None)


@commands.command()
def pretrain(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder of a model; or of a new one a preset or a file of options.")],
    sources: Sources,
    output: Output,
    max_steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = 5000,
    short: Annotated[float, typer.Option(min=0, max=1, help="Share of short examples; the others are long.")] = 0.3,
    shortest: Annotated[int, typer.Option(min=3, help="Tokens of a short example, at least.")] = 10,
    longest_short: Annotated[int | None, typer.Option(help="At most; default: as long as the long ones.")] = None,
    masked: Annotated[float, typer.Option(help="Share of the tokens to be told.")] = 0.3,
    masked_in_validation: Annotated[float, typer.Option()] = 0.15,
    batch_size: BatchSize = 32,
    at_once: AtOnce = 8,
    lr: Rate = 5e-4,
    warmup: Warmup = 0.06,
    weight_decay: Decay = 1e-5,
    max_grad_norm: GradNorm = 1.0,
    max_length: Annotated[int | None, typer.Option(min=8, help="Longest input in tokens of a new model.")] = None,
    extend_to: Annotated[int | None, typer.Option(help="Warm start: longest input in tokens from here on.")] = None,
    decay: Annotated[Literal["stretch", "tokens"], typer.Option(help="Of extended filters; see convert.")] = "stretch",
    features: Annotated[Literal["tile", "continue"], typer.Option(help="Of extended filters; see convert.")] = "tile",
    tokenizer: Vocabulary = None,
    vocab_size: VocabSize = 8192,
    field: Field = None,
    per_line: Annotated[bool | None, typer.Option("--per-line/--per-file", help="What is a document of text.")] = None,
    glob: Annotated[str, typer.Option(help="Which files of a folder.")] = "*",
    shuffle: Annotated[int, typer.Option(min=1, help="Documents in memory, of which the next one is drawn.")] = 1000,
    validate: Annotated[str | None, typer.Option(help="Texts to measure loss and accuracy on at checkpoints.")] = None,
    save_every: SaveEvery = 500,
    precision: Precision = "float32",
    seed: Seed = 0,
    device: Device = None,
    more: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain M2-BERT as a masked language model on a mixture of short and long texts, which are streamed.

    The defaults are those of the published M2-BERT. `torchrun -m monarch_ops pretrain ...` trains on several GPUs.
    """
    training, _ = extra("..training"), load_retrieval()

    def run() -> dict[str, Any]:
        options = _options(training.PretrainOptions, context.params)
        how = (tuple(field) if field else None, per_line, glob)
        corpora = [training.open_corpus(source, *how) for source in sources]
        folder = training.Run(output, resume, overwrite)
        if done := folder.finished():
            return done
        made = training.new_language_model(
            model, training.texts_of(corpora), max_length=max_length, extend_to=extend_to, decay=decay,
            features=features, tokenizer=tokenizer, vocab_size=vocab_size, seed=seed, keep=folder.start,
        )  # fmt: skip
        return training.pretrain(
            *made, corpora, folder, options, device=device, about={"sources": sources, "read": how},
            validation=None if validate is None else training.open_corpus(validate, *how),
        )  # fmt: skip

    _trained(run, output)
