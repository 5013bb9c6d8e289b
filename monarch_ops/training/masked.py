"""Pretraining as a masked language model, by the trainer of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from ..m2bert import M2BertForMaskedLM
from ..retrieval import InputError
from ..retrieval.encoder import tokenizer_rules, weights_digest
from .mixture import Corpus, Mixture, packed, texts_of
from .run import Clock, Run, TrainOptions, show_steps
from .start import save_language_model


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainOptions):
    """How :func:`pretrain` trains; the defaults are those of the published M2-BERT (arXiv 2402.07440, section 4.2).

    Args:
        masked, masked_in_validation: share of the tokens that are to be told.
        short, shortest, longest_short, shuffle: see :class:`Mixture`.
    """

    learning_rate: float = 5e-4
    warmup: float = 0.06
    weight_decay: float = 1e-5
    adam_betas: tuple[float, float] = (0.9, 0.98)
    adam_epsilon: float = 1e-6
    max_steps: int | None = 5000
    masked: float = 0.3
    masked_in_validation: float = 0.15
    short: float = 0.3
    shortest: int = 10
    longest_short: int | None = None
    shuffle: int = 1000

    def __post_init__(self) -> None:
        if not self.max_steps or self.max_steps < 1:
            raise InputError(f"the steps must be at least 1, got {self.max_steps}")
        for name in ("masked", "masked_in_validation"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name!r} must be a share between 0 and 1, got {getattr(self, name)}")


def masking(tokenizer: PreTrainedTokenizerBase, share: float, seed: int) -> DataCollatorForLanguageModeling:
    """Batches in which each token but the special ones is to be told with probability `share`; always the same ones.

    Of these tokens 80 % are replaced by ``[MASK]`` and 10 % by any other, as in BERT.
    """
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=share, seed=seed)


class _Trainer(Trainer):
    """Validation has masks of its own, each time the same."""

    def __init__(self, *given: Any, validation_collator: Callable[[], Any], **options: Any) -> None:
        super().__init__(*given, **options)
        self._validation_collator = validation_collator

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        training = self.data_collator
        self.data_collator = self._validation_collator()
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training


def _most_likely(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(-1)


def _accuracy(found: EvalPrediction) -> dict[str, float]:
    told = found.label_ids != -100
    return {"accuracy": float(np.mean(found.predictions[told] == found.label_ids[told]))}


def _mixture(
    corpora: Sequence[Corpus], tokenizer: PreTrainedTokenizerBase, longest: int, options: PretrainOptions
) -> Mixture:
    for number, corpus in enumerate(corpora, 1):
        if next(texts_of([corpus]), None) is None:
            raise InputError(f"a corpus must hold at least one text, got number {number} with none")
    names = ("short", "shortest", "longest_short", "at_once", "shuffle", "seed")
    return Mixture(corpora, tokenizer, longest, **{name: getattr(options, name) for name in names})


def _validation(validation: Corpus, tokenizer: PreTrainedTokenizerBase, longest: int) -> Dataset:
    rows = list(packed(texts_of([validation]), tokenizer, longest))
    if not rows:
        raise InputError("the texts for validation must hold at least one word, got none")
    return Dataset.from_dict({"input_ids": rows})


def pretrain(
    model: M2BertForMaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    corpora: Sequence[Corpus],
    output: str | Path | Run,
    options: PretrainOptions = PretrainOptions(),
    *,
    validation: Corpus | None = None,
    device: str | None = None,
    about: dict[str, Any] | None = None,
    progress: Progress | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train `model` on `corpora`, save it with its tokenizer in `output`, and return the manifest saved beside it.

    Killed at any point, it goes on with `resume` from the last checkpoint. What it has had is read again, but not
    trained on again, and the steps are those of a training that was not killed.

    Args:
        model: such as :func:`new_language_model` gives; it is changed.
        corpora: see :func:`open_corpus`.
        output: folder; until the end it holds ``checkpoints``. Or a :class:`Run` of one, and its options with it.
        validation: loss and accuracy on it, packed to the longest input, with every checkpoint.
        device: "cpu", or None: a GPU when there is one.
        about: what else the manifest says, and a training that is resumed must agree with, such as the corpora's names.
        progress: where to show the steps, instead of the trainer's own bar.
        resume: go on with what is in `output`, if there is anything.
        overwrite: remove what there is.

    Raises:
        InputError: what was given cannot be used, or `output` is of another training than the one to resume.
    """
    longest = model.config.max_position_embeddings
    mixture = _mixture(corpora, tokenizer, longest, options)
    held_out = None if validation is None else _validation(validation, tokenizer, longest)
    run = output if isinstance(output, Run) else Run(output, resume, overwrite)
    manifest = {
        "model_sha256": weights_digest(model),
        "tokenizer_sha256": hashlib.sha256(json.dumps(tokenizer_rules(tokenizer)).encode()).hexdigest(),
        "max_length": longest,
    }
    manifest |= (about or {}) | asdict(options)
    checkpoint = run.begin(manifest)
    done = run.finished()
    if done is not None:
        return done
    clock = Clock(checkpoint)
    own: dict[str, Any] = {"per_device_eval_batch_size": options.at_once}
    if held_out is not None:
        own |= {"eval_strategy": "steps", "eval_steps": options.save_every}
    trainer = _Trainer(
        model,
        options.arguments(TrainingArguments, run.checkpoints, device, **own),
        data_collator=masking(tokenizer, options.masked, options.seed),
        train_dataset=mixture,
        eval_dataset=held_out,
        processing_class=tokenizer,
        compute_metrics=_accuracy,
        preprocess_logits_for_metrics=_most_likely,
        validation_collator=partial(masking, tokenizer, options.masked_in_validation, options.seed),
    )
    show_steps(trainer, progress, run.output.name)
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=checkpoint)
    measured = {
        "steps": trainer.state.global_step,
        "seconds": clock.seconds(),
        "log": trainer.state.log_history,
    }
    return run.finish(partial(save_language_model, (model, tokenizer)), manifest | measured)
