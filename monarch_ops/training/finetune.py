"""Fine-tuning of an encoder for retrieval, by the trainer and the losses of sentence-transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from rich.progress import Progress
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    ContrastiveLoss,
    EmbedDistillLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor, nn

from ..retrieval import InputError, OrthogonalProjectionLoss, RetrievalData, embed
from ..retrieval.embed import dimension, prompt_of
from ..retrieval.encoder import fingerprint
from .pairs import Rows, cut, spans, training_rows
from .run import Clock, Run, TrainOptions, show_steps


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions(TrainOptions):
    """How :func:`fine_tune` trains; the defaults are those of the published M2-BERT (arXiv 2402.07440, section 4.3).

    Args:
        loss: a name of :data:`LOSSES`.
        negatives: per query and relevant document.
        negatives_from: "random" ones, or those that BM25 ranks highest.
        spans: also so many pairs per document of a span of it and itself (:func:`spans`).
        epochs: over the rows; `max_steps` goes before it.
        scale: of the cosines in "mnrl", the inverse of its temperature.
        margin: of "triplet" and "contrastive".
        tokens_at_once: "mnrl": so many tokens on a device at a time, instead of `at_once` rows.
        in_batch: "mnrl": so many rows on a device are each other's negatives, and gradients are the mean over such
            groups, of which `at_once` may hold several; None: all of the batch are.
    """

    learning_rate: float = 5e-6
    loss: str = "opl"
    negatives: int = 32
    negatives_from: Literal["random", "bm25"] = "random"
    spans: int = 0
    epochs: float = 1.0
    scale: float = 20.0
    margin: float = 0.5
    tokens_at_once: int | None = None
    in_batch: int | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"the loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if LOSSES[self.loss].needs_negatives and self.negatives < 1:
            raise InputError(f"the negatives must be at least 1 with loss {self.loss!r}, got {self.negatives}")
        for name, given in (("tokens at once", self.tokens_at_once), ("rows in a batch", self.in_batch)):
            if given is not None and self.loss != "mnrl":
                raise InputError(f"the {name} are an option of loss 'mnrl', got {self.loss!r}")
        if self.group is not None and self.at_once % self.group:
            raise InputError(
                f"the rows at once must be a multiple of the rows in a batch, {self.group}, got {self.at_once}"
            )

    @property
    def group(self) -> int | None:
        """Rows that are each other's negatives, where several groups of them are on a device at once."""
        several = self.in_batch is not None and self.tokens_at_once is None and self.in_batch < self.at_once
        return self.in_batch if several else None


class _Recipe(NamedTuple):
    rows: Rows
    needs_negatives: bool
    make: Callable[[SentenceTransformer, FineTuneOptions], nn.Module]


class _RankingInGroups(MultipleNegativesRankingLoss):
    """The mean over groups of rows, which are embedded together; the negatives of a row are in its group."""

    def __init__(self, model: SentenceTransformer, scale: float, rows: int) -> None:
        super().__init__(model, scale)
        self.rows = rows

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        columns = [self.model(features)["sentence_embedding"].split(self.rows) for features in sentence_features]
        groups = map(list, zip(*columns, strict=True))
        return torch.stack([self.compute_loss_from_embeddings(group, labels) for group in groups]).mean()


def _ranking(model: SentenceTransformer, options: FineTuneOptions) -> nn.Module:
    """With gradient caching (arXiv 2101.06983), which embeds a part of the batch at a time, and twice.

    The one without embeds queries and documents together, all padded to the longest document.
    """
    if options.group is not None:
        return _RankingInGroups(model, options.scale, options.group)
    return CachedMultipleNegativesRankingLoss(
        model,
        options.scale,
        mini_batch_size=options.at_once,
        mini_batch_num_tokens=options.tokens_at_once,
        gather_across_devices=torch.distributed.is_initialized() and options.in_batch is None,
    )


LOSSES: dict[str, _Recipe] = {
    # the paper's choice, which sees a pair at a time
    "opl": _Recipe("labelled", True, lambda model, _: OrthogonalProjectionLoss(model)),
    # multiple negatives ranking: against the negatives of the query and all documents of the batch
    "mnrl": _Recipe("tuples", False, _ranking),
    # 1 - cosine with the vectors of a teacher, for queries and relevant documents
    "prototype": _Recipe("pairs", False, lambda model, _: EmbedDistillLoss(model, "cosine")),
    "triplet": _Recipe(
        "triplets", True, lambda model, options: TripletLoss(model, TripletDistanceMetric.COSINE, options.margin)
    ),
    "contrastive": _Recipe("labelled", True, lambda model, options: ContrastiveLoss(model, margin=options.margin)),
}


class _Trainer(SentenceTransformerTrainer):
    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None is written."""


class _ByLength(SentenceTransformerDataCollator):
    """Rows of about the same length stand together, so that the parts of a batch have little padding."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        def longest(row: dict[str, Any]) -> int:
            return max(len(value) for value in row.values() if isinstance(value, str))

        return super().__call__(sorted(features, key=longest))


def _with_teacher(rows: Dataset, teacher: SentenceTransformer) -> Dataset:
    """The rows with a label (2, H): the teacher's vectors of anchor and positive."""
    columns: dict[str, list] = {name: rows[:][name] for name in ("anchor", "positive")}
    vectors = []
    for name, texts in columns.items():
        different = list(dict.fromkeys(texts))
        found = embed(teacher, different, task="query" if name == "anchor" else "document")
        where = {text: i for i, text in enumerate(different)}
        vectors.append(found[[where[text] for text in texts]])
    return Dataset.from_dict(columns | {"label": np.stack(vectors, axis=1).tolist()})


def _rows(
    encoder: SentenceTransformer,
    data: Sequence[RetrievalData],
    options: FineTuneOptions,
    teacher: SentenceTransformer | None,
) -> DatasetDict:
    if not data:
        raise InputError("there must be at least one folder to train on, got none")
    made = {}
    for part in data:
        if part.name in made:
            raise InputError(f"the names of folders must differ, got {part.name!r} twice")
        seen = cut(part, encoder)
        more = spans(seen, options.spans, options.seed) if options.spans else seen
        recipe = LOSSES[options.loss]
        rows = training_rows(more, recipe.rows, options.negatives, options.negatives_from, options.seed)
        made[part.name] = rows if teacher is None else _with_teacher(rows, teacher)
    return DatasetDict(made)


def _judge(data: RetrievalData, encoder: SentenceTransformer) -> InformationRetrievalEvaluator:
    queries: dict[str, Any] = dict(data.queries)  # a type of theirs that admits pictures too
    documents: dict[str, Any] = dict(data.documents)
    relevant = {query: {d for d, score in found.items() if score > 0} for query, found in data.qrels.items()}
    return InformationRetrievalEvaluator(
        queries,
        documents,
        relevant,
        name=data.name,
        write_csv=False,
        batch_size=8,
        accuracy_at_k=[1, 10],
        precision_recall_at_k=[10],
        query_prompt=prompt_of(encoder, "query"),
        corpus_prompt=prompt_of(encoder, "document"),
    )


def _digest(data: Sequence[RetrievalData]) -> str:
    return hashlib.sha256(json.dumps([asdict(part) for part in data]).encode()).hexdigest()


def _trainer(
    encoder: SentenceTransformer,
    rows: DatasetDict,
    run: Run,
    options: FineTuneOptions,
    validation: RetrievalData | None,
) -> SentenceTransformerTrainer:
    recipe = LOSSES[options.loss]
    prompts = {
        name: prompt_of(encoder, "query" if name == "anchor" else "document")
        for name in next(iter(rows.values())).column_names
        if name != "label"
    }
    own: dict[str, Any] = {
        "num_train_epochs": options.epochs,
        "prompts": {name: prompt for name, prompt in prompts.items() if prompt} or None,
    }
    if options.loss == "mnrl":  # a batch at once, in which a text that is there twice would be its own negative
        at_a_time = options.in_batch if options.group is None else options.at_once
        own |= {"batch_sampler": "no_duplicates", "whole_batch": options.in_batch is None, "rows": at_a_time}
    if validation is not None:
        own |= {"eval_strategy": "steps", "eval_steps": options.save_every}
    arguments = options.arguments(SentenceTransformerTrainingArguments, run.checkpoints, encoder.device.type, **own)
    collator = _ByLength if options.group is None else SentenceTransformerDataCollator  # groups are of any lengths
    return _Trainer(
        encoder,
        arguments,
        train_dataset=rows,
        loss=recipe.make(encoder, options),
        evaluator=None if validation is None else _judge(validation, encoder),
        data_collator=collator(encoder.preprocess, prompts=arguments.prompts),
    )


def fine_tune(
    encoder: SentenceTransformer,
    data: Sequence[RetrievalData],
    output: str | Path | Run,
    options: FineTuneOptions = FineTuneOptions(),
    *,
    teacher: SentenceTransformer | None = None,
    validation: RetrievalData | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train `encoder` on `data`, save it in `output`, and return the manifest saved beside it.

    A batch has rows of one of the data only. Killed at any point, it goes on with `resume` from the last checkpoint,
    with the rows that are left, and makes the same steps as one that was not.

    Args:
        encoder: such as :func:`new_encoder` gives; it is changed.
        output: folder; until the end it holds ``checkpoints``. Or a :class:`Run` of one, and its options with it.
        teacher: whose vectors the loss "prototype" teaches.
        validation: ranked with every checkpoint.
        progress: where to show the steps, instead of the trainer's own bar.
        resume: go on with what is in `output`, if there is anything.
        overwrite: remove what there is.

    Raises:
        InputError: what was given cannot be used, or `output` is of another training than the one to resume.
    """
    if (teacher is None) == (options.loss == "prototype"):
        raise InputError(f"a teacher belongs to the loss 'prototype', got loss {options.loss!r} with teacher={teacher}")
    if teacher is not None and dimension(teacher) != dimension(encoder):
        raise InputError(
            f"the teacher's vectors must be as long as the model's, {dimension(encoder)}, got {dimension(teacher)}"
        )
    run = output if isinstance(output, Run) else Run(output, resume, overwrite)
    manifest = {
        "model_sha256": fingerprint(encoder),
        "teacher_sha256": None if teacher is None else fingerprint(teacher),
        "data": [part.name for part in data],
        "data_sha256": _digest(data),
    } | asdict(options)
    checkpoint = run.begin(manifest)
    done = run.finished()
    if done is not None:
        return done
    clock = Clock(checkpoint)
    rows = _rows(encoder, data, options, teacher)
    trainer = _trainer(encoder, rows, run, options, validation)
    show_steps(trainer, progress, run.output.name)
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=checkpoint)
    encoder.eval()
    return run.finish(
        lambda folder: encoder.save(str(folder), create_model_card=False),
        manifest
        | {
            "rows": {name: len(part) for name, part in rows.items()},
            "steps": trainer.state.global_step,
            "seconds": clock.seconds(),
            "log": trainer.state.log_history,
        },
    )
