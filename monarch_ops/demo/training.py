"""Contrastive training of an encoder on (query, document) pairs."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..m2bert import M2BertModel
from ..retrieval import orthogonal_projection_loss


@dataclass(frozen=True)
class TrainingOptions:
    """How :class:`Trainer` trains.

    Args:
        steps: optimizer steps.
        learning_rate: after `warmup` steps, from where it falls linearly to 0.
        tokens_per_batch: a batch holds pairs of about the same length, as many as have so many
            tokens on their longer side, but no fewer than `min_pairs` and no more than `max_pairs`.
        long_share: share of the steps that take long pairs.
        seed: of the choice of pairs.
    """

    steps: int = 500
    learning_rate: float = 2e-3
    warmup: int = 30
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    tokens_per_batch: int = 8_000
    min_pairs: int = 8
    max_pairs: int = 128
    long_share: float = 0.25
    seed: int = 0


class _Pairs:
    """Tokenized pairs, sorted by length, drawn in batches of neighbours."""

    def __init__(self, pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        def tokens(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

        queries, documents = tokens([q for q, _ in pairs]), tokens([d for _, d in pairs])
        self.pairs = sorted(zip(queries, documents, strict=True), key=lambda pair: max(map(len, pair)))

    def batch(self, random: np.random.Generator, options: TrainingOptions) -> list[tuple[list[int], list[int]]]:
        """A random selection from a window, twice the batch, around a random pair."""
        centre = int(random.integers(len(self.pairs)))
        size = options.tokens_per_batch // max(map(len, self.pairs[centre]))
        size = min(max(size, options.min_pairs), options.max_pairs, len(self.pairs))
        start = min(max(0, centre - size), max(0, len(self.pairs) - 2 * size))
        window = self.pairs[start : start + 2 * size]
        return [window[i] for i in random.permutation(len(window))[:size]]


class Trainer:
    """Trains `model` on short and long pairs with the orthogonal projection loss and in-batch negatives.

    Iterating over it makes the steps and yields their losses. It can be stopped between any two steps: with a
    `checkpoint` file, :meth:`save` writes all that is needed, and a new trainer with the same options goes on from
    there and makes the same steps as one that was never stopped.

    Args:
        model: on the device to train on.
        tokenizer: its tokenizer.
        short, long: (query, document) pairs; each is cut to `max_short` and `max_long` tokens.
        checkpoint: file to continue from, if it exists, and to save to.

    Raises:
        ValueError: no pairs, or a checkpoint of another run.
    """

    def __init__(
        self,
        model: M2BertModel,
        tokenizer: PreTrainedTokenizerBase,
        short: Sequence[tuple[str, str]],
        long: Sequence[tuple[str, str]] = (),
        options: TrainingOptions = TrainingOptions(),
        *,
        max_short: int = 256,
        max_long: int = 2048,
        checkpoint: Path | None = None,
    ) -> None:
        if not short:
            raise ValueError("Trainer: argument 'short' must hold at least one pair, got none")
        self.model, self.tokenizer, self.options, self.checkpoint = model, tokenizer, options, checkpoint
        self.short = _Pairs(short, tokenizer, max_short)
        self.long = _Pairs(long, tokenizer, max_long) if long else None
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        # a checkpoint of another run is not continued
        data = [self.short.pairs, self.long.pairs if self.long else []]
        self._run = asdict(options) | {"data": zlib.crc32(repr(data).encode())}
        self.losses: list[float] = []
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    @property
    def step(self) -> int:
        """Steps made so far, those before a restart included."""
        return len(self.losses)

    def _loss(self) -> Tensor:
        random = np.random.default_rng((self.options.seed, self.step))
        take_long = self.long is not None and random.random() < self.options.long_share
        pairs = (self.long if take_long and self.long else self.short).batch(random, self.options)
        return orthogonal_projection_loss(*(self._embed([pair[side] for pair in pairs]) for side in (0, 1)))

    def _embed(self, sequences: list[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": sequences}, return_tensors="pt").to(self.model.device)
        return self.model(batch["input_ids"], batch["attention_mask"]).pooler_output

    def __iter__(self) -> Iterator[float]:
        options = self.options
        self.model.train()
        while self.step < options.steps:
            torch.manual_seed(options.seed + self.step)  # of dropout
            rate = min(1.0, (self.step + 1) / options.warmup) * (1 - self.step / options.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = options.learning_rate * rate
            loss = self._loss()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.max_grad_norm)
            self.optimizer.step()
            self.losses.append(loss.item())
            yield self.losses[-1]
        self.model.eval()

    def save(self) -> None:
        """Write the checkpoint; a crash in the middle leaves the previous one."""
        if self.checkpoint is None:
            raise ValueError("Trainer.save: the trainer was made without argument 'checkpoint'")
        state = {
            "run": self._run,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
        }
        unfinished = self.checkpoint.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, self.checkpoint)

    def _load(self, file: Path) -> None:
        state: dict[str, Any] = torch.load(file, map_location=self.model.device)
        if state["run"] != self._run:
            raise ValueError(
                f"Trainer: the checkpoint {file} was written by another run, {state['run']}; "
                f"delete it or train with those options and data, got {self._run}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]
