"""LoCoV1, twelve tasks of long-document retrieval (arXiv 2402.07440), from the Hugging Face hub or a local copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..beir import RetrievalData
from ..documents import TABLES, InputError, Row, read_field, table_rows

# in the order of the paper's tables; the column "dataset" of both tables says to which a row belongs
TASKS = ("summ_screen_fd", "gov_report", "qmsum", "qasper_title", "qasper_abstract", "multifieldqa", "2wikimqa",
         "passage_retrieval", "courtlistener_HTML", "courtlistener_Plain_Text", "legal_case_reports",
         "stackoverflow")  # fmt: skip
COLUMNS = {"documents": ("dataset", "pid", "passage"), "queries": ("dataset", "qid", "query", "answer_pids")}
HUB = {"documents": "hazyresearch/LoCoV1-Documents", "queries": "hazyresearch/LoCoV1-Queries"}
SPLIT = "test"  # the only one
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk of datasets leaves


def load_locov1(tasks: Sequence[str] = TASKS, copy: str | Path | None = None) -> list[RetrievalData]:
    """Tasks of LoCoV1 as the published evaluation reads them.

    All documents that a query names as answers are equally relevant. QASPER has papers without a text: such a document
    and the query of the same number are left out.

    Args:
        tasks: of TASKS.
        copy: folder with two entries whose names contain "documents" and "queries". Each is a folder of JSONL or
            Parquet files, such a file, or what ``save_to_disk`` of datasets wrote. None: the Hugging Face hub, which
            needs the package datasets.

    Raises:
        InputError: there is no such task, the data cannot be had, or a row is not as it must be.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise InputError(f"a task of LoCoV1 must be one of {', '.join(TASKS)}; got {', '.join(unknown) or 'none'}")
    passages: dict[str, dict[str, str | None]] = {task: {} for task in tasks}
    for place, _, row in _rows("documents", copy):
        if (task := read_field(row, "dataset", place, str)) in passages:
            pid = _new_id(row, "pid", place, passages[task])
            no_text = task.startswith("qasper") and row.get("passage", "") is None
            passages[task][pid] = None if no_text else read_field(row, "passage", place, str)
    queries: dict[str, dict[str, str]] = {task: {} for task in tasks}
    qrels: dict[str, dict[str, dict[str, int]]] = {task: {} for task in tasks}
    for place, _, row in _rows("queries", copy):
        if (task := read_field(row, "dataset", place, str)) in passages:
            qid = _new_id(row, "qid", place, queries[task])
            own = qid.replace("Query", "Passage")
            if own in passages[task] and passages[task][own] is None:
                continue
            queries[task][qid] = read_field(row, "query", place, str)
            qrels[task][qid] = dict.fromkeys(_answers(row, place, passages[task]), 1)
    return [_data(task, passages[task], queries[task], qrels[task]) for task in dict.fromkeys(tasks)]


def _new_id(row: dict[str, Any], name: str, place: str, known: Iterable[str]) -> str:
    id = str(read_field(row, name, place, str))
    if id in known:
        raise InputError(f"{place}: ids must differ, got {name} {id!r} again")
    return id


def _answers(row: dict[str, Any], place: str, passages: dict[str, str | None]) -> list[str]:
    answers = row.get("answer_pids")
    if not isinstance(answers, list) or not answers:
        raise InputError(f"{place}: field 'answer_pids' must be a list of at least one id, got {answers!r}")
    for pid in answers:
        if passages.get(pid) is None:
            raise InputError(f"{place}: field 'answer_pids' must name documents of the task, got {pid!r}")
    return answers


def _data(
    task: str, passages: dict[str, str | None], queries: dict[str, str], qrels: dict[str, dict[str, int]]
) -> RetrievalData:
    documents = {pid: text for pid, text in passages.items() if text is not None}
    if not documents or not queries:
        got = f"{len(documents)} documents and {len(queries)} queries"
        raise InputError(f"LoCoV1: the task {task} must have documents and queries, got {got}")
    return RetrievalData(f"locov1:{task}", documents, queries, qrels)


def _rows(what: str, copy: str | Path | None) -> Iterator[Row]:
    """The rows of one of the two tables."""
    if copy is None:
        return _hub_rows(HUB[what])
    found = [path for path in sorted(Path(copy).glob("*")) if what in path.name.lower()]
    if len(found) != 1:
        raise InputError(
            f"{copy}: a copy of LoCoV1 must be a folder with one entry named *documents* and one named *queries*, "
            f"got {len(found)} named *{what}*"
        )
    if any((found[0] / name).is_file() for name in SAVED):
        return _saved_rows(found[0])
    files = [found[0]] if found[0].is_file() else sorted(path for path in found[0].rglob("*") if path.is_file())
    files = [path for path in files if path.name.removesuffix(".gz").endswith(TABLES)]
    if not files:
        raise InputError(f"{found[0]}: must be or hold a saved dataset or files named {', '.join(TABLES)}, got none")
    return (row for file in files for row in table_rows(file, COLUMNS[what]))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "LoCoV1 from the hub, or saved, needs datasets: pip install --no-build-isolation 'monarch-ops[eval]'"
        ) from error
    return datasets


def _hub_rows(name: str) -> Iterator[Row]:
    datasets = _datasets()
    try:
        table = datasets.load_dataset(name, split=SPLIT)
    except Exception as error:  # what it raises depends on which of many things fails
        raise InputError(f"{name} must be on the Hugging Face hub, and the hub in reach: {error}") from error
    return _numbered(table, name)


def _saved_rows(folder: Path) -> Iterator[Row]:
    table = _datasets().load_from_disk(str(folder))
    if isinstance(table, dict):
        if SPLIT not in table:
            raise InputError(f"{folder}: must have the split {SPLIT!r}, got {', '.join(table)}")
        table = table[SPLIT]
    return _numbered(table, str(folder))


def _numbered(table: Iterable[dict[str, Any]], place: str) -> Iterator[Row]:
    return ((f"{place}, row {number}", number, row) for number, row in enumerate(table, 1))
