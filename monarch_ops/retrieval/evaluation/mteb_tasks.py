"""The tasks and benchmarks of mteb (arXiv 2210.07316), BEIR and LongEmbed among them: found, and read for `eval`.

Needs the extra ``monarch-ops[mteb]``. Their data is on the Hugging Face hub.
"""

from __future__ import annotations

import difflib
import logging
import platform
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..beir import RetrievalData
from ..documents import InputError

try:
    import datasets
    import mteb
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.aggregated_task import AbsTaskAggregate
    from mteb.get_tasks import TASK_LIST
except ImportError as error:
    raise ImportError(
        f"the tasks of mteb need {error.name}, which needs Python 3.11 (this is {platform.python_version()}): "
        "pip install --no-build-isolation 'monarch-ops[mteb]'"
    ) from error


@contextmanager
def silent() -> Iterator[None]:
    """Without warnings of mteb, which are about its own code, and progress bars of datasets."""
    logger, shown = logging.getLogger("mteb"), not datasets.utils.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.utils.enable_progress_bars()


@dataclass(frozen=True)
class Suite:
    """Tasks with an average of their own.

    Args:
        name: of the benchmark, or "tasks".
    """

    name: str
    tasks: Sequence[mteb.AbsTask]


def find_task(name: str, languages: Sequence[str] | None = None) -> mteb.AbsTask:
    """A task by its name in mteb.

    Args:
        languages: those of its parts that are in one of these, by their ISO 639-3 codes ("eng"); None: all.

    Raises:
        InputError: there is no such task, or nothing of it is in these languages.
    """
    try:
        return mteb.get_task(name, languages=languages)
    except KeyError:
        raise _unknown("task", name, (kind.metadata.name for kind in TASK_LIST)) from None
    except ValueError as error:
        raise InputError(f"{name}: the languages must be among the task's, got {', '.join(languages or ())}") from error


def find_benchmark(name: str) -> Suite:
    """A benchmark by its name in mteb, such as "BEIR", "LongEmbed" or "MTEB(eng, v2)".

    Raises:
        InputError: there is none.
    """
    try:
        return Suite(name, list(mteb.get_benchmark(name).tasks))
    except KeyError:
        raise _unknown("benchmark", name, (each.name for each in mteb.get_benchmarks())) from None


def _unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower, cutoff=0.5)]
    found = f", such as {' or '.join(near)}" if near else ""
    return InputError(f"a {what} must have a name that mteb knows{found}; got {name!r}")


def retrieval_tasks(names: str) -> list[RetrievalData]:
    """What ``--data mteb:NAMES`` names: a benchmark, or retrieval tasks separated by commas.

    Every subset and split of a task is a set of data of its own. Titles and instructions are parts of the texts, as in
    mteb.

    Raises:
        InputError: there is no such task, its data cannot be had, or a ranking of all documents by their texts is not
            what it asks for.
    """
    known = {each.name for each in mteb.get_benchmarks()}
    tasks = find_benchmark(names).tasks if names in known else [find_task(name.strip()) for name in names.split(",")]
    return [data for task in tasks for each in _parts(task) for data in _read(each)]


def _parts(task: mteb.AbsTask) -> Iterable[mteb.AbsTask]:
    return task.metadata.tasks if isinstance(task, AbsTaskAggregate) else [task]


def _read(task: mteb.AbsTask) -> Iterator[RetrievalData]:
    name = task.metadata.name
    special = f"{name}: must rank all documents by their texts alone, got a task"
    if not isinstance(task, AbsTaskRetrieval) or set(task.metadata.modalities) != {"text"}:
        raise InputError(f"{special} of type {task.metadata.type}: see `monarch-ops mteb`")
    if task.ignore_identical_ids or task.skip_first_result:
        raise InputError(f"{special} in which a query's own document does not count: see `monarch-ops mteb`")
    try:
        with silent():
            task.load_data()
            task.convert_v1_dataset_format_to_v2(num_proc=None)
    except Exception as error:  # what it raises depends on which of many things fails
        raise no_data(task, error) from error
    for subset in task.hf_subsets:
        for split in task.eval_splits:
            more = [each for each in (subset, split) if each not in ("default", "test")]
            part = task.dataset[subset][split]
            if part.get("top_ranked"):
                raise InputError(f"{special} in which some are given for each query: see `monarch-ops mteb`")
            yield _retrieval_data("/".join([f"mteb:{name}", *more]), part)
    task.unload_data()


def _retrieval_data(name: str, part: Any) -> RetrievalData:
    documents = {row["id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in part["corpus"]}
    qrels = {query: found for query, found in part["relevant_docs"].items() if any(s > 0 for s in found.values())}
    rows = [row for row in part["queries"] if row["id"] in qrels]
    queries = {row["id"]: f"{row['text']} {row.get('instruction') or ''}".strip() for row in rows}
    missing = {id for found in qrels.values() for id in found} - documents.keys()
    if missing or qrels.keys() != queries.keys():
        got = f"{len(missing)} unknown documents and {len(qrels.keys() - queries.keys())} unknown queries"
        raise InputError(f"{name}: judgements must be of documents and queries that exist, got {got}")
    return RetrievalData(name, documents, queries, {query: dict(qrels[query]) for query in queries})


def no_data(task: mteb.AbsTask, error: Exception) -> InputError:
    """An error that says that the data of a task could not be read."""
    path = task.metadata.dataset["path"]
    return InputError(f"{task.metadata.name}: {path} must be on the Hugging Face hub, and the hub in reach: {error}")
