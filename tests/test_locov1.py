"""LoCoV1 in every form a copy has: the filters by task, QASPER's papers without a text, and bad rows."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra monarch-ops[retrieval]")

from monarch_ops.retrieval import InputError, RetrievalData
from monarch_ops.retrieval.evaluation import TASKS, load_locov1, read_data


def document(task: str, number: int, passage: str | None) -> dict:
    return {"pid": f"{task}_Passage_{number}", "passage": passage, "dataset": task}


def query(task: str, number: int, *answers: int) -> dict:
    pids = [f"{task}_Passage_{answer}" for answer in answers or (number,)]
    return {"qid": f"{task}_Query_{number}", "query": f"{task} {number}?", "answer_pids": pids, "dataset": task}


# all tasks mixed; the second paper of each QASPER has no text
DOCUMENTS = [document(task, n, None if task.startswith("qasper") and n == 1 else f"{task} {n}.") for n in range(3)
             for task in TASKS]  # fmt: skip
QUERIES = [query(task, n) for n in range(2) for task in TASKS] + [query("qmsum", 2, 0, 2)]
QASPER = RetrievalData(
    "locov1:qasper_title",
    {"qasper_title_Passage_0": "qasper_title 0.", "qasper_title_Passage_2": "qasper_title 2."},
    {"qasper_title_Query_0": "qasper_title 0?"},
    {"qasper_title_Query_0": {"qasper_title_Passage_0": 1}},
)


def json_text(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_clone_of_the_hub(folder: Path) -> None:
    """A repository for each table, a file for each task."""
    for name, rows in (("LoCoV1-Documents", DOCUMENTS), ("LoCoV1-Queries", QUERIES)):
        (folder / name / "documents").mkdir(parents=True)
        (folder / name / "README.md").write_text("# LoCoV1")
        for task in TASKS:
            mine = [row for row in rows if row["dataset"] == task]
            (folder / name / "documents" / f"{task}_test.jsonl").write_text(json_text(mine))


def as_packed_json(folder: Path) -> None:
    for name, rows in (("documents", DOCUMENTS), ("queries", QUERIES)):
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(json_text(rows).encode()))


def as_parquet(folder: Path) -> None:
    for name, rows in (("documents", DOCUMENTS), ("queries", QUERIES)):
        pq.write_table(pa.Table.from_pylist([row | {"extra": 1} for row in rows]), folder / f"{name}.parquet")


def as_saved(folder: Path) -> None:
    """One with splits and one without."""
    datasets = pytest.importorskip("datasets")
    test = datasets.Dataset.from_list(DOCUMENTS)
    datasets.DatasetDict({"test": test}).save_to_disk(str(folder / "documents"))
    datasets.Dataset.from_list(QUERIES).save_to_disk(str(folder / "queries"))


@pytest.mark.parametrize("written", [as_clone_of_the_hub, as_packed_json, as_parquet, as_saved])
def test_every_task_is_read_from_every_kind_of_copy(written: Callable[[Path], None], tmp_path):
    written(tmp_path)
    found = {data.name.removeprefix("locov1:"): data for data in load_locov1(copy=tmp_path)}
    assert list(found) == list(TASKS)
    assert len(TASKS) == 12
    for task, data in found.items():
        no_text = task.startswith("qasper")
        numbers = (0, 2) if no_text else (0, 1, 2)
        assert data.documents == {f"{task}_Passage_{n}": f"{task} {n}." for n in numbers}
        asked = (0,) if no_text else (0, 1, 2) if task == "qmsum" else (0, 1)
        assert data.queries == {f"{task}_Query_{n}": f"{task} {n}?" for n in asked}
        assert data.qrels["_".join((task, "Query_0"))] == {f"{task}_Passage_0": 1}
    assert found["qasper_title"] == QASPER
    assert found["qmsum"].qrels["qmsum_Query_2"] == {"qmsum_Passage_0": 1, "qmsum_Passage_2": 1}
    assert read_data("locov1:qasper_title", locov1=tmp_path) == [QASPER]
    assert [data.name for data in read_data("locov1", locov1=tmp_path)] == [f"locov1:{task}" for task in TASKS]
    two = read_data("locov1:stackoverflow,qmsum", locov1=tmp_path)
    assert [data.name for data in two] == ["locov1:stackoverflow", "locov1:qmsum"]


def test_the_hub_is_asked_for_both_tables(monkeypatch):
    datasets = pytest.importorskip("datasets")
    tables = {"hazyresearch/LoCoV1-Documents": DOCUMENTS, "hazyresearch/LoCoV1-Queries": QUERIES}

    def load_dataset(name: str, *, split: str) -> object:
        assert split == "test"
        return datasets.Dataset.from_list(tables[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_locov1(["qasper_title"]) == [QASPER]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"LoCoV1-Documents must be on the Hugging Face hub, and .* division by zero"):
        load_locov1(["qasper_title"])


def test_the_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"needs datasets: pip install --no-build-isolation 'monarch-ops\[eval\]'"):
        load_locov1()


REFUSED = {
    "null elsewhere": ([document("qmsum", 5, None)], [],
                       "documents.jsonl, line 37: field 'passage' must be a string, got null"),
    "null query": ([], [query("qmsum", 5, 0) | {"query": None}],
                   "queries.jsonl, line 26: field 'query' must be a string, got null"),
    "no passage": ([{"pid": "x", "dataset": "qasper_title"}], [],
                   "documents.jsonl, line 37: must have a field 'passage', got ['dataset', 'pid']"),
    "no task": ([{"pid": "x", "passage": "y"}], [], "documents.jsonl, line 37: must have a field 'dataset'"),
    "same document": ([document("qmsum", 0, "a")], [],
                      "documents.jsonl, line 37: ids must differ, got pid 'qmsum_Passage_0' again"),
    "same query": ([], [query("qmsum", 0)], "queries.jsonl, line 26: ids must differ, got qid 'qmsum_Query_0' again"),
    "unknown answer": ([], [query("qmsum", 5)], "must name documents of the task, got 'qmsum_Passage_5'"),
    "answer without text": ([], [query("qasper_title", 2, 1)], "documents of the task, got 'qasper_title_Passage_1'"),
    "no answers": ([], [query("qmsum", 5) | {"answer_pids": []}], "must be a list of at least one id, got []"),
    "answers in a string": ([], [query("qmsum", 5) | {"answer_pids": "x"}], "list of at least one id, got 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_rows_are_refused(name, tmp_path):
    documents, queries, message = REFUSED[name]
    (tmp_path / "documents.jsonl").write_text(json_text(DOCUMENTS + documents))
    (tmp_path / "queries.jsonl").write_text(json_text(QUERIES + queries))
    with pytest.raises(InputError) as error:
        load_locov1(copy=tmp_path)
    assert message in str(error.value)
    if name != "no task":
        assert load_locov1(["gov_report"], tmp_path)  # which is none of the bad ones


def test_bad_copies_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be one of summ_screen_fd, .*stackoverflow; got qmsun, x$"):
        load_locov1(["qmsun", "qmsum", "x"], tmp_path)
    with pytest.raises(InputError, match="got none"):
        load_locov1([], tmp_path)
    with pytest.raises(InputError, match=r"one entry named \*documents\* and one named \*queries\*, got 0 named \*doc"):
        load_locov1(copy=tmp_path)
    (tmp_path / "documents").mkdir()
    with pytest.raises(InputError, match=r"documents: must be or hold a saved dataset or files named .jsonl"):
        load_locov1(copy=tmp_path)
    (tmp_path / "documents" / "a.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"a.parquet: must be a Parquet file"):
        load_locov1(copy=tmp_path)
    pq.write_table(pa.table({"pid": ["x"], "dataset": ["qmsum"]}), tmp_path / "documents" / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet: must have a column 'passage', got \['pid', 'dataset'\]"):
        load_locov1(copy=tmp_path)
    (tmp_path / "documents" / "a.parquet").unlink()
    (tmp_path / "documents" / "a.jsonl").write_text(json_text(DOCUMENTS))
    (tmp_path / "queries.jsonl").write_text(json_text([row for row in QUERIES if row["dataset"] != "qmsum"]))
    with pytest.raises(InputError, match="the task qmsum must have documents and queries, got 3 documents and 0 quer"):
        load_locov1(copy=tmp_path)


def test_a_saved_dataset_needs_the_test_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "queries.jsonl").write_text(json_text(QUERIES))
    train = datasets.DatasetDict({"train": datasets.Dataset.from_list(DOCUMENTS)})
    train.save_to_disk(str(tmp_path / "documents"))
    with pytest.raises(InputError, match="documents: must have the split 'test', got train"):
        load_locov1(copy=tmp_path)
