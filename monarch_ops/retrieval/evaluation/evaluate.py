"""Rankings measured on retrieval data, as JSON and as tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ... import _C
from ...version import __version__
from ..beir import RetrievalData, load_beir
from ..documents import InputError
from ..ranking import ndcg_of_run
from .lengths import text_lengths
from .locov1 import TASKS, load_locov1
from .rankers import Ranker

CUTOFFS = (1, 3, 5, 10, 100)
MAIN = 10  # the cutoff that tables of several tasks show
LOCOV1, MTEB = "locov1", "mteb"


def read_data(name: str, split: str | None = None, locov1: str | Path | None = None) -> list[RetrievalData]:
    """What ``--data`` names: a BEIR folder, "locov1" with or without ":task,task", or "mteb:" and a benchmark or tasks.

    Args:
        split: of a BEIR folder.
        locov1: folder with a local copy of LoCoV1.
    """
    first, colon, tasks = name.partition(":")
    if first == LOCOV1:
        return load_locov1(tasks.split(",") if colon else TASKS, locov1)
    if first == MTEB and colon:
        try:
            from .mteb_tasks import retrieval_tasks
        except ImportError as error:
            raise InputError(str(error)) from error
        return retrieval_tasks(tasks)
    return [load_beir(name, split)]


def machine() -> dict[str, Any]:
    """Where a time was taken, as far as the CPU matters."""
    return {
        "version": __version__,
        "cpu_instruction_set": _C.build_info()["cpu_isa"],
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class Row:
    """A ranker on one set of data.

    Args:
        ndcg: by cutoff, the mean over the queries.
        per_query: nDCG by query and cutoff.
        seconds: that the ranking took, embedding included.
    """

    data: str
    label: str
    model: str
    chunks: str
    ndcg: dict[int, float]
    per_query: dict[str, dict[int, float]]
    seconds: float
    reused: bool
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        named = {"data": self.data, "model": self.model, "chunks": self.chunks}
        measured = {"ndcg": self.ndcg, "seconds": round(self.seconds, 2), "embeddings_reused": self.reused}
        return named | measured | self.facts


@dataclass
class Evaluation:
    """What :func:`evaluate` found."""

    data: list[dict[str, Any]]
    rows: list[Row] = field(default_factory=list)

    def averages(self) -> dict[str, dict[int, float]]:
        """By label: nDCG by cutoff, every set of data counted once."""
        labels = dict.fromkeys(row.label for row in self.rows)
        return {
            label: {k: float(np.mean([row.ndcg[k] for row in self.rows if row.label == label])) for k in CUTOFFS}
            for label in labels
        }

    def as_json(self) -> dict[str, Any]:
        measured = {"data": self.data, "rows": [row.as_json() for row in self.rows], "averages": self.averages()}
        return machine() | measured

    def rendered(self) -> Iterator[RenderableType]:
        """For the terminal: lengths, nDCG of every task when there are several, nDCG at all cutoffs, and remarks."""
        yield self._lengths()
        if len(self.data) > 1:
            yield self._tasks()
        yield self._cutoffs()
        for row in self.rows:
            if row.facts.get("longer_documents"):
                longer, longest = row.facts["longer_documents"], row.facts["max_length"]
                done = "cut" if row.chunks == "none" else f"read in chunks, {row.facts['texts']:,} in all"
                count = next(data["documents"] for data in self.data if data["name"] == row.data)
                which = f"{longer:,} of {count:,} documents of {row.data}"
                yield Text(f"{row.label}: {which} have more than {longest:,} tokens: {done}")

    def _lengths(self) -> Table:
        counted = {(row.data, row.model): row for row in self.rows if row.facts.get("document_tokens")}
        models = list(dict.fromkeys(model for _, model in counted))
        table = Table("data", "", "number", "characters", "words", *(escape(f"tokens, {model}") for model in models))
        table.caption = "lengths: median (greatest)"
        for data in self.data:
            for task, plural in (("document", "documents"), ("query", "queries")):
                lengths = [data[f"{task}_{unit}"] for unit in ("characters", "words")]
                lengths += [counted[data["name"], model].facts[f"{task}_tokens"] for model in models]
                cells = [f"{length['median']:,.0f} ({length['max']:,})" for length in lengths]
                table.add_row(Text(data["name"]), plural, f"{data[plural]:,}", *cells)
        return table

    def _tasks(self) -> Table:
        labels = list(self.averages())
        table = Table(f"nDCG@{MAIN}", *map(escape, labels))
        by_place = {(row.data, row.label): row.ndcg[MAIN] for row in self.rows}
        for data in self.data:
            table.add_row(Text(data["name"]), *(f"{by_place[data['name'], label]:.3f}" for label in labels))
        table.add_section()
        table.add_row("average", *(f"{mean[MAIN]:.3f}" for mean in self.averages().values()))
        return table

    def _cutoffs(self) -> Table:
        over = f"average of {len(self.data)}" if len(self.data) > 1 else str(self.data[0]["name"])
        table = Table(escape(over), *(f"nDCG@{k}" for k in CUTOFFS), "time")
        for label, mean in self.averages().items():
            rows = [row for row in self.rows if row.label == label]
            mark = "*" if any(row.reused for row in rows) else ""
            seconds = f"{sum(row.seconds for row in rows):,.1f} s{mark}"
            table.add_row(Text(label), *(f"{mean[k]:.3f}" for k in CUTOFFS), seconds)
        if any(row.reused for row in self.rows):
            table.caption = "* with embeddings that were there"
        return table


def evaluate(data: Sequence[RetrievalData], rankers: Iterable[Ranker], progress: Progress) -> Evaluation:
    """Measure every ranker on all the data.

    Raises:
        InputError: two sets of data have the same name.
    """
    names = [each.name for each in data]
    if len({*names}) < len(names):
        raise InputError(f"sets of data must have different names, got {', '.join(names)}")
    evaluation, others = Evaluation([_describe(each) for each in data]), {*progress.task_ids}
    for ranker in rankers:
        for each in data:
            start = time.perf_counter()
            ranked = ranker.rank(each, progress)
            seconds = time.perf_counter() - start
            for bar in {*progress.task_ids} - others:  # what is done makes room
                progress.remove_task(bar)
            per_query = ndcg_of_run(each.qrels, ranked.run, CUTOFFS)
            mean = {k: float(np.mean([measured[k] for measured in per_query.values()])) for k in CUTOFFS}
            evaluation.rows.append(
                Row(
                    each.name,
                    ranker.label,
                    ranker.model,
                    ranker.chunks,
                    mean,
                    per_query,
                    seconds,
                    ranked.reused,
                    ranked.facts,
                )
            )
    return evaluation


def _describe(data: RetrievalData) -> dict[str, Any]:
    lengths = {
        f"{task}_{unit}": found.as_json()
        for task, texts in (("document", data.documents), ("query", data.queries))
        for unit, found in text_lengths(texts.values()).items()
    }
    return {"name": data.name, "documents": len(data.documents), "queries": len(data.queries)} | lengths
