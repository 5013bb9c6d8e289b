"""Models measured on mteb's tasks of all types by mteb itself, as JSON and as tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.models.abs_encoder import get_prompt
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from sentence_transformers import SentenceTransformer

from ..embed import counts_tokens, embed
from ..encoder import fingerprint
from .evaluate import machine
from .models import MINILM, ModelOptions, check_name, load_model
from .mteb_tasks import Suite, no_data, silent

TASK_MEAN, TYPE_MEAN = "average of tasks", "average of types"


class _Encoder(mteb.SentenceTransformerEncoderWrapper):
    """A model as mteb takes it, in batches of so many tokens instead of so many texts.

    Args:
        name: see :func:`load_model`.
    """

    def __init__(self, name: str, options: ModelOptions, progress: Progress) -> None:
        model = load_model(name, options)
        with silent():
            super().__init__(model)
        # mteb keeps results by name and revision, and would take two folders for the same model
        named = {"name": _public_name(name), "revision": _revision(model)}
        self.mteb_model_meta = self.mteb_model_meta.model_copy(update=named)
        tokens = f", {model.max_seq_length:,} tokens" if counts_tokens(model) and model.max_seq_length else ""
        self.label, self._options, self._progress = f"{name}{tokens}", options, progress
        self.embedded = 0  # texts

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> NDArray[np.float32]:
        texts = [text for batch in inputs for text in batch["text"]]
        self.embedded += len(texts)
        bar = self._progress.add_task(f"{self.label}, {task_metadata.name}: texts", total=len(texts))
        vectors = embed(
            self.model,
            texts,
            task=None if prompt_type is None else prompt_type.value,
            prompt=get_prompt(self.model_prompts, task_metadata, prompt_type),
            normalize=False,
            tokens_per_batch=self._options.tokens_per_batch,
            on_progress=lambda count: self._progress.advance(bar, count),
        )
        self._progress.remove_task(bar)
        return vectors


def _public_name(name: str) -> str:
    if name == MINILM:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return f"local/{Path(name).resolve().name}" if Path(name).is_dir() else name


def _revision(model: SentenceTransformer) -> str:
    """Of all that its scores depend on."""
    about = [fingerprint(model), model.prompts, model.default_prompt_name, model.similarity_fn_name]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Score:
    """A model on a task.

    Args:
        measure: mteb's main score of the task.
        value: its mean over the subsets and splits of the task; None: there was an error.
        parts: by split and subset.
        seconds: that it took, reading the data included, when it was measured.
        reused: whether it was measured by an earlier run.
        error: why there is none.
    """

    label: str
    model: str
    task: str
    type: str
    measure: str
    value: float | None = None
    parts: dict[str, dict[str, float]] | None = None
    seconds: float | None = None
    reused: bool = False
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        named = {"model": self.label, "name": self.model, "task": self.task, "type": self.type}
        if self.error is not None:
            return named | {"error": self.error}
        measured = {"measure": self.measure, "score": self.value, "parts": self.parts}
        return named | measured | {"seconds": self.seconds, "reused": self.reused}


@dataclass(frozen=True)
class SuiteScores:
    """What several models have on the tasks of a suite."""

    name: str
    scores: Sequence[Score]

    def labels(self) -> list[str]:
        return list(dict.fromkeys(score.label for score in self.scores))

    def averages(self) -> dict[str, dict[str, float]]:
        """By label: the means over the tasks that have a score, all, of each type, and of these means."""
        found = {}
        for label in self.labels():
            by_type: dict[str, list[float]] = {}
            for score in self.scores:
                if score.label == label and score.value is not None:
                    by_type.setdefault(score.type, []).append(score.value)
            types = {type: float(np.mean(values)) for type, values in by_type.items()}
            if types:
                every = [value for values in by_type.values() for value in values]
                means = {TASK_MEAN: float(np.mean(every)), TYPE_MEAN: float(np.mean(list(types.values())))}
                found[label] = types | means
        return found

    def as_json(self) -> dict[str, Any]:
        rows = [score.as_json() for score in self.scores]
        return {"suite": self.name, "scores": rows, "averages": self.averages()}

    def table(self) -> Table:
        labels = self.labels()
        table = Table(escape(self.name), "type", "score", *map(escape, labels))
        by_place = {(score.task, score.label): score for score in self.scores}
        tasks = {score.task: score for score in self.scores}
        for task, about in tasks.items():
            values = (by_place[task, label].value for label in labels)
            table.add_row(Text(task), about.type, about.measure, *map(_cell, values))
        table.add_section()
        averages, types = self.averages(), {about.type for about in tasks.values()}
        for name in [*sorted(types), TYPE_MEAN, TASK_MEAN] if len(types) > 1 else [TASK_MEAN]:
            title = f"average of {name}" if name in types else name
            table.add_row(title, "", "", *(_cell(averages.get(label, {}).get(name)) for label in labels))
        missing = sum(score.value is None for score in self.scores)
        if missing:
            table.caption = f"{missing} of {len(self.scores)} scores are missing, also in the averages"
        return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class MtebScores:
    """What :func:`measure` found."""

    suites: Sequence[SuiteScores]

    def failed(self) -> list[Score]:
        return [score for suite in self.suites for score in suite.scores if score.error is not None]

    def as_json(self) -> dict[str, Any]:
        return machine() | {"mteb": mteb.__version__, "suites": [suite.as_json() for suite in self.suites]}

    def rendered(self) -> Iterator[RenderableType]:
        """For the terminal: a table per suite, the time of each model, and what went wrong."""
        for suite in self.suites:
            yield suite.table()
        scores = [score for suite in self.suites for score in suite.scores]
        for label in dict.fromkeys(score.label for score in scores):
            rows = {score.task: score for score in reversed(scores) if score.label == label}.values()  # once each
            seconds, reused = sum(score.seconds or 0 for score in rows), sum(score.reused for score in rows)
            from_before = f"; {reused} of {len(rows)} scores were there from before" if reused else ""
            yield Text(f"{label}: {seconds:,.1f} s{from_before}")
        for score in self.failed():
            yield Text(f"{score.label}, {score.task}: {score.error}")


def measure(
    suites: Sequence[Suite], names: Sequence[str], folder: Path, options: ModelOptions, progress: Progress
) -> MtebScores:
    """The scores of models on all tasks, each as soon as it is done also in `folder`, where it is found again.

    A task that fails is left out, and what follows is measured.

    Args:
        names: of models, one after the other; see :func:`load_model`.

    Raises:
        InputError: a name is none of a model, or the hub with the data is not in reach.
    """
    for name in names:
        check_name(name)
    found: list[list[Score]] = [[] for _ in suites]
    for name in names:
        encoder = _Encoder(name, options, progress)
        bar = progress.add_task(f"{encoder.label}: tasks", total=sum(len(suite.tasks) for suite in suites))
        for scores, suite in zip(found, suites, strict=True):
            for task in suite.tasks:
                scores.append(_score(encoder, name, task, folder))
                progress.advance(bar)
        progress.remove_task(bar)
    return MtebScores([SuiteScores(suite.name, scores) for suite, scores in zip(suites, found, strict=True)])


def _score(encoder: _Encoder, name: str, task: mteb.AbsTask, folder: Path) -> Score:
    about, loaded, before = task.metadata, task.data_loaded, encoder.embedded
    named = (encoder.label, name, about.name, about.type, about.main_score)
    how: dict[str, Any] = {"co2_tracker": False, "public_only": False, "show_progress_bar": False}
    try:
        with silent():
            done = mteb.evaluate(encoder, task, cache=mteb.ResultCache(folder), **how)
        result = done.task_results[0].validate_and_filter_scores(task)  # an earlier run may have had more languages
    except ConnectionError as error:  # the next task would say the same, after half a minute of trying
        raise no_data(task, error) from error
    except Exception as error:  # what it raises depends on which of many things fails
        return Score(*named, error=f"{type(error).__name__}: {error}")
    finally:
        if task.data_loaded and not loaded:
            task.unload_data()
    parts = {
        split: {each["hf_subset"]: float(each["main_score"]) for each in found}
        for split, found in result.scores.items()
    }
    reused = encoder.embedded == before
    return Score(*named, float(result.get_score()), parts, result.evaluation_time, reused)
