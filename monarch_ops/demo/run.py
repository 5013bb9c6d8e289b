"""The steps of the demo, in order."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .. import _C, __version__
from ..m2bert import M2BertConfig, M2BertModel
from ..retrieval import (
    EmbeddingFile,
    Encoder,
    bm25_scores,
    describe,
    embed,
    ndcg,
    train_tokenizer,
)
from .corpus import Module, hold_out, read_modules
from .picture import save_picture
from .speed import Row, convolution_rows, encoder_rows
from .training import Trainer, TrainingOptions

SAVE_EVERY = 30.0  # seconds between checkpoints
CONVOLUTION_LENGTHS = (512, 2048, 8192, 32768)
ENCODER_LENGTHS = {"cpu": (128, 512, 2048, 4096), "cuda": (512, 2048, 8192, 32768)}


@dataclass(frozen=True)
class DemoOptions:
    """See ``monarch-ops demo --help``."""

    output: Path
    documents: Path | None = None
    steps: int = 500
    held_out: int = 100
    device: str | None = None
    speed: bool = True


def choose_device(wanted: str | None) -> tuple[torch.device, str]:
    """The device to run on, and a sentence that says why."""
    if wanted is not None:
        return torch.device(wanted), "as asked"
    if not torch.cuda.is_available():
        return torch.device("cpu"), "torch sees no GPU"
    if not _C.cuda_devices():
        return torch.device("cpu"), "torch sees a GPU, but this build of monarch_ops has no CUDA kernels for it"
    return torch.device("cuda"), torch.cuda.get_device_name()


class Demo:
    """One run; its results end up in the output folder."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self.options, self.console = options, console
        self.device, self.why = choose_device(options.device)
        self.output = options.output
        self.output.mkdir(parents=True, exist_ok=True)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def run(self) -> None:
        start = time.perf_counter()
        self._title(
            f"monarch_ops {__version__} on {self.device.type} ({self.why}), {torch.get_num_threads()} CPU threads"
        )
        training, held = self._read()
        texts = [m.text for m in training] + [m.docstring for m in training]
        tokenizer = train_tokenizer(texts)
        self._describe(held, tokenizer)
        queries, documents = [m.docstring for m in held], [m.text for m in held]
        model = self._new_model(len(tokenizer))
        encoder = SentenceTransformer(modules=[Encoder(model, tokenizer)], device=str(self.device))
        scores = {"BM25": bm25_scores(queries, documents)}
        before = self._embed("Embedding, untrained", encoder, queries + documents)
        losses = self._train(model, tokenizer, training)
        after = self._embed("Embedding, trained", encoder, queries + documents)
        count = len(held)
        scores["M2-BERT, trained here"] = after[:count] @ after[count:].T
        scores["M2-BERT, untrained"] = before[:count] @ before[count:].T
        means = self._rank(scores)
        self._save(encoder, held, after)
        speed = self._speed() if self.options.speed else {}
        ranks = {name: _ranks(s) for name, s in scores.items()}
        save_picture(self.output / "demo.png", losses, ranks, means, speed)
        seconds = time.perf_counter() - start
        self._results(means, losses, speed, seconds)
        self.console.print(
            f"\nDone in {seconds / 60:.1f} minutes. In {self.output}/: model/, embeddings.npy, results.json, demo.png\n"
            f"To search them: monarch-ops search {self.output}/embeddings.npy 'read and write ZIP files'"
        )

    # ---- what it prints ----

    def _title(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/bold]")

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description:28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )

    def _describe(self, held: list[Module], tokenizer: PreTrainedTokenizerBase) -> None:
        lengths = np.array([len(ids) for ids in tokenizer([m.text for m in held])["input_ids"]])
        longest = tokenizer.model_max_length
        self.console.print(
            f"{len(held)} modules held out: the query is a module's docstring, the document all the rest. Tokens per "
            f"document: median {np.median(lengths):,.0f}, longest {lengths.max():,}; "
            f"{(lengths > longest).sum()} are cut at {longest:,}."
        )

    # ---- the steps ----

    def _read(self) -> tuple[list[Module], list[Module]]:
        modules = read_modules(self.options.documents)
        training, held = hold_out(modules, self.options.held_out)
        functions = sum(len(m.pairs) for m in training)
        if len(held) < 2 or not functions:
            raise ValueError(
                "demo: argument 'documents' must be a folder with Python modules that have docstrings, got "
                f"{len(modules)} modules, {len(held)} of them long and with a docstring, and {functions} documented "
                "functions in the others"
            )
        self.console.print(
            f"{len(modules)} Python modules; training on {functions} documented functions and classes and "
            f"{sum(bool(m.docstring) for m in training)} modules."
        )
        return training, held

    def _new_model(self, vocab_size: int) -> M2BertModel:
        torch.manual_seed(0)
        config = M2BertConfig.preset("m2-bert-small", vocab_size=vocab_size)
        model = M2BertModel(config).eval()
        model.to(device=self.device)
        return model

    def _embed(self, what: str, encoder: SentenceTransformer, texts: list[str]) -> NDArray[np.float32]:
        with self._progress() as progress:
            task = progress.add_task(what, total=len(texts), note="")
            return embed(encoder, texts, on_progress=lambda n: progress.advance(task, n))

    def _train(self, model: M2BertModel, tokenizer: PreTrainedTokenizerBase, training: list[Module]) -> list[float]:
        short = [pair for module in training for pair in module.pairs]
        long = [(m.docstring, m.text) for m in training if m.docstring]
        checkpoint = self.output / "training.pt"
        trainer = Trainer(model, tokenizer, short, long, TrainingOptions(self.options.steps), checkpoint=checkpoint)
        if trainer.step:
            self.console.print(f"Going on after step {trainer.step} of an interrupted run ({checkpoint}).")
        saved = time.perf_counter()
        with self._progress() as progress:
            task = progress.add_task("Training", total=self.options.steps, completed=trainer.step, note="")
            try:
                for _ in trainer:
                    recent = float(np.mean(trainer.losses[-20:]))
                    progress.update(task, completed=trainer.step, note=f"loss {recent:.3f}")
                    if time.perf_counter() - saved > SAVE_EVERY:
                        trainer.save()
                        saved = time.perf_counter()
            except KeyboardInterrupt:
                trainer.save()
                progress.console.print(f"Stopped after step {trainer.step}; the same command goes on from there.")
                raise
        checkpoint.unlink(missing_ok=True)
        return trainer.losses

    def _rank(self, scores: dict[str, NDArray[np.float32]]) -> dict[str, float]:
        self._title("Which module does a docstring belong to?")
        table = Table("ranking", "nDCG@10", "right one first", "among first 10")
        means = {}
        for name, s in scores.items():
            ranks = _ranks(s)
            means[name] = float(ndcg(s, np.eye(len(s), dtype=bool)).mean())
            table.add_row(name, f"{means[name]:.3f}", f"{(ranks == 0).mean():.0%}", f"{(ranks < 10).mean():.0%}")
        self.console.print(table)
        return means

    def _speed(self) -> dict[str, list[Row]]:
        cuda = self.device.type == "cuda"
        lengths = ENCODER_LENGTHS[self.device.type]
        self._title(f"Speed on {'this GPU, bfloat16' if cuda else 'this CPU, float32'}")
        speed: dict[str, list[Row]] = {"convolution": [], "encoder": []}
        with self._progress() as progress:
            task = progress.add_task("Measuring", total=len(CONVOLUTION_LENGTHS) + len(lengths), note="")
            for kind, rows in (
                ("convolution", convolution_rows(self.device, CONVOLUTION_LENGTHS, 1.0)),
                ("encoder", encoder_rows(self.device, lengths, 4.0)),
            ):
                for row in rows:
                    speed[kind].append(row)
                    progress.advance(task)
        table = Table("length", "torch.fft, ms", "monarch_ops, ms", "times faster", "difference")
        table.title = "Causal long convolution, 768 channels"
        for row in speed["convolution"]:
            table.add_row(f"{row.length:,}", f"{1e3 * row.theirs:.2f}", f"{1e3 * row.ours:.2f}", f"{row.ratio:.1f}",
                          f"{row.difference:.1e}")  # fmt: skip
        self.console.print(table)
        table = Table("length", "BERT-base, tokens/s", "M2-BERT-80M, tokens/s", "times faster")
        table.title = "Encoder, forward pass"
        for row in speed["encoder"]:
            table.add_row(f"{row.length:,}", f"{row.length / row.theirs:,.0f}", f"{row.length / row.ours:,.0f}",
                          f"{row.ratio:.1f}")  # fmt: skip
        self.console.print(table)
        return speed

    # ---- what it leaves ----

    def _save(self, encoder: SentenceTransformer, held: list[Module], vectors: NDArray[np.float32]) -> None:
        folder = self.output / "model"
        encoder.save(str(folder), create_model_card=False)
        manifest = describe(encoder, folder) | {"count": len(held), "normalized": True}
        names = [m.name for m in held]
        EmbeddingFile(self.output / "embeddings.npy").write([(names, vectors[len(held) :])], manifest)

    def _results(
        self, means: dict[str, float], losses: list[float], speed: dict[str, list[Row]], seconds: float
    ) -> None:
        results = {
            "version": __version__,
            "device": self.why if self.device.type == "cuda" else "cpu",
            "cpu_instruction_set": _C.build_info()["cpu_isa"],
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "ndcg@10": means,
            "losses": losses,
            "speed": {kind: [asdict(row) for row in rows] for kind, rows in speed.items()},
        }
        (self.output / "results.json").write_text(json.dumps(results, indent=1))


def _ranks(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many documents score higher than the right one, the i-th for query i."""
    return (scores > np.diagonal(scores)[:, None]).sum(axis=1)
