"""What the orderings share: options, data, a tokenizer, trainings that are made once, and rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from rich.progress import Progress
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from ..retrieval import InputError, load_beir, train_tokenizer
from ..retrieval.evaluation import Dense, Embedder, ModelOptions, evaluate
from ..retrieval.evaluation.evaluate import MAIN
from ..retrieval.evaluation.evaluate import machine as where
from ..training import (
    FineTuneOptions,
    PretrainOptions,
    Run,
    fine_tune,
    new_encoder,
    new_language_model,
    packed,
    pretrain,
    texts_of,
)
from ..training.pairs import cut
from ..training.start import made_once

MIXED = 0.3  # share of short examples, the paper's
QUIET = {"disable_tqdm": True}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How large everything is. Lengths are in tokens; every arm is trained with each seed.

    Args:
        model: a preset or a file of options.
        max_length: of the models, but of the shorter one, which a warm start begins with.
        shorter: of that one; None: a quarter.
        longest_short: of short examples in pretraining; None: a quarter.
        vocab_size: of the tokenizer, one for all.
        seeds: of initial weights, order of data, masks and negatives: 0, 1, ...
        steps, batch_size, at_once, lr: of pretraining.
        tune_steps, tune_batch_size, tune_lr: of fine-tuning, with a batch of queries and relevant documents.
        tune_at_once: rows on a device at a time in fine-tuning.
        tune_loss: of fine-tuning where pretraining is compared: "mnrl" with the other documents of the batch as
            negatives, which learns within minutes, or the paper's "opl".
        negatives: of "opl" there, per query and relevant document.
        held_out: documents of the test data that language models are measured on.
        points: how often that is done on the way.
        precision: of autocast.
        device: "cpu", "cuda" or None, a GPU when there is one.
    """

    model: str = "m2-bert-small"
    max_length: int = 128
    shorter: int | None = None
    longest_short: int | None = None
    vocab_size: int = 1024
    seeds: int = 3
    steps: int = 300
    batch_size: int = 16
    at_once: int = 16
    lr: float = 3e-3
    tune_steps: int = 150
    tune_batch_size: int = 64
    tune_at_once: int = 32
    tune_lr: float = 2e-3
    tune_loss: Literal["mnrl", "opl"] = "mnrl"
    negatives: int = 8
    held_out: int = 64
    points: int = 8
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        if Path(self.model).is_dir():
            raise InputError(
                f"the model must be a preset or a file of options, to train anew, got the folder {self.model}"
            )
        if self.tune_batch_size % 2:
            raise InputError(f"'tune_batch_size' must be a multiple of 2, got {self.tune_batch_size}")
        for name in ("seeds", "steps", "tune_steps", "negatives", "held_out", "points"):
            if getattr(self, name) < 1:
                raise InputError(f"{name!r} must be at least 1, got {getattr(self, name)}")
        if not 8 <= self.short_length < self.max_length:
            raise InputError(f"'shorter' must be from 8 to less than {self.max_length}, got {self.short_length}")

    @property
    def short_length(self) -> int:
        return self.max_length // 4 if self.shorter is None else self.shorter

    @property
    def longest_short_example(self) -> int:
        return self.max_length // 4 if self.longest_short is None else self.longest_short


class Study:
    """The data, and the folder in which every arm and seed has a training, to be made once.

    Args:
        train, test: folders in the format of BEIR, FOLDER or (FOLDER, SPLIT).
        output: whatever was begun there with the same options is gone on with.
        progress: where to show what is going on.

    Raises:
        InputError: a folder cannot be read, or there is none.
    """

    def __init__(
        self,
        train: Sequence[tuple[str, str | None]],
        test: Sequence[tuple[str, str | None]],
        output: Path,
        options: Options,
        progress: Progress,
    ) -> None:
        for name, given in (("--train", train), ("--test", test)):
            if not given:
                raise InputError(f"there must be at least one folder of {name}, got none")
        self.options, self.output, self.progress = options, output, progress
        logging.set_verbosity_error()  # or it reports the pooling that every language model lacks
        reading = progress.add_task("Reading", total=len(train) + len(test))
        self.sources = [folder for folder, _ in train]
        whole = []
        for folder, split in (*train, *test):
            whole.append(load_beir(folder, split))
            progress.advance(reading)
        documents = {folder: part.documents for folder, part in zip(self.sources, whole, strict=False)}
        self.corpora = [_corpus(texts.values()) for texts in documents.values()]
        self.tokenizer = self._tokenizer()
        cutting = new_encoder(options.model, [], max_length=options.max_length, tokenizer=self.tokenizer, device="cpu")
        seen = [cut(part, cutting) for part in whole]
        self.train, self.test = seen[: len(train)], seen[len(train) :]
        texts = list(dict.fromkeys(text for part in self.test for text in part.documents.values()))
        chosen = np.random.default_rng(0).permutation(len(texts))[: options.held_out]
        self.held_out = _corpus(texts[i] for i in chosen)
        progress.remove_task(reading)

    def seeds(self, ordering: str) -> Iterator[int]:
        """One after the other, with a bar of those that are done."""
        bar = self.progress.add_task(f"{ordering}: seeds", total=self.options.seeds)
        for seed in range(self.options.seeds):
            yield seed
            self.progress.advance(bar)
        self.progress.remove_task(bar)

    def _tokenizer(self) -> Path:
        def make() -> PreTrainedTokenizerBase:
            bar = self.progress.add_task("Training the tokenizer", total=None)
            made = train_tokenizer(texts_of(self.corpora), self.options.vocab_size, self.options.max_length)
            self.progress.remove_task(bar)
            return made

        def save(made: PreTrainedTokenizerBase, folder: Path) -> None:
            made.save_pretrained(folder)

        folder = self.output / "tokenizer"
        made_once(folder, make, save, AutoTokenizer.from_pretrained)
        return folder

    def pretrained(
        self,
        name: str,
        seed: int,
        *,
        short: float = MIXED,
        length: int | None = None,
        start: Path | None = None,
    ) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of a language model, measured on the held-out texts on the way.

        Args:
            name: of the folder, with the seed.
            short: share of short examples.
            length: longest input; None: as the options have it.
            start: folder of a shorter model, for a warm start.
        """
        options, longest = self.options, length or self.options.max_length
        longest_short = min(options.longest_short_example, longest)
        run = Run(self.output / f"{name}-seed{seed}", resume=True)
        model, tokenizer = new_language_model(
            options.model if start is None else str(start),
            [],
            max_length=longest,
            extend_to=None if start is None else longest,
            tokenizer=self.tokenizer,
            seed=seed,
        )
        manifest = pretrain(
            model,
            tokenizer,
            self.corpora,
            run,
            PretrainOptions(
                learning_rate=options.lr,
                batch_size=options.batch_size,
                at_once=options.at_once,
                max_steps=options.steps,
                short=short,
                shortest=min(PretrainOptions.shortest, longest_short),
                longest_short=longest_short,
                precision=options.precision,
                seed=seed,
                save_every=-(-options.steps // options.points),
                log_every=-(-options.steps // 20),
                more=QUIET | {"include_num_input_tokens_seen": "non_padding"},
            ),
            validation=self.held_out,
            device=options.device,
            about={"sources": self.sources, "vocab_size": options.vocab_size, "held_out": options.held_out},
            progress=self.progress,
        )
        return run.output, manifest

    def fine_tuned(self, name: str, seed: int, start: Path | None, **own: Any) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of an encoder.

        Args:
            start: folder of a language model; None: untrained weights.
            own: of :class:`FineTuneOptions`, before those that the study's options say.
        """
        options = self.options
        given = FineTuneOptions(
            learning_rate=options.tune_lr,
            batch_size=options.tune_batch_size,
            at_once=options.tune_at_once,
            max_steps=options.tune_steps,
            precision=options.precision,
            seed=seed,
            save_every=-(-options.tune_steps // 4),
            log_every=-(-options.tune_steps // 20),
            more=QUIET,
        )
        run = Run(self.output / f"{name}-seed{seed}", resume=True)
        encoder = self._encoder(seed, start)
        return run.output, fine_tune(encoder, self.train, run, replace(given, **own), progress=self.progress)

    def untuned(self, name: str, seed: int, start: Path | None) -> Path:
        """Folder of an encoder as it is before fine-tuning."""
        folder = self.output / f"{name}-seed{seed}"
        self._encoder(seed, start).save(str(folder), create_model_card=False)
        return folder

    def _encoder(self, seed: int, start: Path | None) -> SentenceTransformer:
        """With a pooling of new weights, which a language model has not."""
        options = self.options
        return new_encoder(
            options.model if start is None else str(start),
            [],
            max_length=options.max_length,
            tokenizer=self.tokenizer,
            seed=seed,
            device=options.device,
        )

    def ndcg(self, folder: Path) -> float:
        """nDCG@10 on the test data, on average over its sets."""
        embedder = Embedder(
            str(folder), self.output / "embeddings", ModelOptions(self.options.max_length, self.options.device)
        )
        found = evaluate(self.test, [Dense(embedder)], self.progress)
        return next(iter(found.averages().values()))[MAIN]

    def unigram(self) -> tuple[float, float]:
        """Loss in nats and accuracy of one who knows how frequent the tokens of the held-out texts are, and no more."""
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        rows = packed(texts_of([self.held_out]), tokenizer, self.options.max_length)
        counts = np.bincount([id for row in rows for id in row if id not in tokenizer.all_special_ids])
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum()), float(shares.max())


def _corpus(texts: Iterable[str]) -> IterableDataset:
    return Dataset.from_dict({"text": list(texts)}).to_iterable_dataset()


def machine(device: str | None) -> dict[str, Any]:
    """Where a run was made."""
    cuda = torch.cuda.is_available() and device != "cpu"
    return where() | {"device": torch.cuda.get_device_name() if cuda else "cpu", "torch": torch.__version__}


def measured(manifest: dict[str, Any], name: str) -> list[tuple[int, float]]:
    """Pairs of step and value of what a language model was measured by on the held-out texts."""
    return [(entry["step"], entry[f"eval_{name}"]) for entry in manifest["log"] if f"eval_{name}" in entry]


def tokens_seen(manifest: dict[str, Any]) -> int:
    """Of all examples of a pretraining, without padding."""
    return max(entry.get("num_input_tokens_seen", 0) for entry in manifest["log"])
