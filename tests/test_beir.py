"""Folders of retrieval data in the format of BEIR: what they hold, and what is said about bad ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra monarch-ops[retrieval]")

from monarch_ops.retrieval import InputError, RetrievalData, load_beir

CORPUS = '{"_id": "d1", "title": "Eins", "text": "one"}\n\n{"_id": 2, "text": "two", "metadata": {}}\n'
QUERIES = '{"_id": "q1", "text": "1?"}\n{"_id": "q2", "text": "2?"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\t2\t0\nq2\t2\t3\n"


def write(folder: Path, content: dict[str, str | bytes]) -> Path:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_a_folder_is_read(tmp_path):
    plain = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
    packed = {f"{name}.gz": gzip.compress(plain[name].encode()) for name in ("corpus.jsonl", "queries.jsonl")}
    for number, content in enumerate((plain, packed | {"qrels/test.tsv": QRELS.partition("\n")[2]})):
        folder = write(tmp_path / str(number) / "mine", content)
        assert load_beir(folder) == RetrievalData(
            "mine",
            {"d1": "Eins one", "2": "two"},
            {"q1": "1?", "q2": "2?"},
            {"q1": {"d1": 1, "2": 0}, "q2": {"2": 3}},
        )


def test_a_split_is_chosen(tmp_path):
    splits = {"qrels/dev.tsv": "q2\td1\t1\n", "qrels/test.tsv": "q1\td1\t1\n"}
    folder = write(tmp_path / "mine", {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES} | splits)
    dev = load_beir(folder, "dev")
    assert (dev.name, dev.queries, dev.qrels) == ("mine/dev", {"q2": "2?"}, {"q2": {"d1": 1}})
    assert len(dev.documents) == 2
    for split, got in ((None, "none"), ("train", "'train'")):
        with pytest.raises(InputError, match=rf"one of the splits in qrels/ must be chosen, dev, test; got {got}"):
            load_beir(folder, split)


REFUSED = {
    "empty corpus": ({"corpus.jsonl": "\n"}, "corpus.jsonl: must hold at least one line, got an empty file"),
    "empty queries": ({"queries.jsonl": ""}, "queries.jsonl: must hold at least one line, got an empty file"),
    "empty qrels": ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\n"},
                    "test.tsv: must hold at least one judgement, got an empty file"),
    "no relevant document": ({"qrels/test.tsv": "q1\td1\t1\nq2\td1\t0\n"},
                             "test.tsv, line 2: query 'q2' must have a relevant document, got scores of 0 only"),
    "no judgement": ({"qrels/test.tsv": "q1\td1\t1\n"},
                     "queries.jsonl, line 2: a query must have a relevant document in qrels/, got 'q2' with none"),
    "unknown query": ({"qrels/test.tsv": f"{QRELS}q3\td1\t1\n"},
                      "test.tsv, line 5: must name ids that exist, got the unknown query 'q3'"),
    "unknown document": ({"qrels/test.tsv": f"{QRELS}q2\td3\t1\n"},
                         "test.tsv, line 5: must name ids that exist, got the unknown document 'd3'"),
    "judged twice": ({"qrels/test.tsv": f"{QRELS}q2\t2\t1\n"},
                     "test.tsv, line 5: must judge a document once for a query, got 'q2' with '2' again"),
    "no number": ({"qrels/test.tsv": f"{QRELS}q2\td1\tyes\n"}, "test.tsv, line 5: must be query-id, corpus-id and a"),
    "two columns": ({"qrels/test.tsv": "q1\td1\n"}, "test.tsv, line 1: must be query-id, corpus-id and a whole"),
    "same document": ({"corpus.jsonl": CORPUS + '{"_id": "2", "text": ""}'}, "line 4: ids must differ, got '2' again"),
    "same query": ({"queries.jsonl": QUERIES + '{"_id": "q1", "text": ""}'}, "line 3: ids must differ, got 'q1' again"),
    "no id": ({"corpus.jsonl": '{"id": "d1", "text": "a"}'}, "line 1: must have a field '_id', got ['id', 'text']"),
    "no text": ({"queries.jsonl": '{"_id": "q1"}'}, "queries.jsonl, line 1: must have a field 'text', got ['_id']"),
    "title": ({"corpus.jsonl": '{"_id": "d1", "title": 1, "text": "a"}'}, "field 'title' must be a string, got 1"),
    "JSON": ({"corpus.jsonl": CORPUS + "{"}, "corpus.jsonl, line 4: must be a JSON object, got '{'"),
    "surrogate": ({"corpus.jsonl": '{"_id": "d1", "text": "\\ud800"}'}, "line 1: field 'text' must be Unicode text"),
    "bytes": ({"queries.jsonl": b'{"_id": "q1", "text": "\xe9"}'}, "line 1: must be UTF-8 text, got byte 0xe9 at 23"),
    "bytes in qrels": ({"qrels/test.tsv": b"\xe9\td1\t1"}, "test.tsv, line 1: must be UTF-8 text, got byte 0xe9 at 0"),
    "gzip": ({"corpus.jsonl.gz": b"no", "corpus.jsonl": None}, "corpus.jsonl.gz: must be a gzip file, got a broken"),
    "both": ({"corpus.jsonl.gz": b""}, "must hold corpus.jsonl or corpus.jsonl.gz, got both"),
    "neither": ({"queries.jsonl": None}, "must hold queries.jsonl or queries.jsonl.gz, got neither"),
    "no split": ({"qrels/test.tsv": None}, "one of the splits in qrels/ must be chosen, none; got none"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_folders_are_refused(name, tmp_path):
    changes, message = REFUSED[name]
    good = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS}
    folder = write(tmp_path, {file: text for file, text in (good | changes).items() if text is not None})
    with pytest.raises(InputError) as error:
        load_beir(folder)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must hold corpus\.jsonl or corpus\.jsonl\.gz, got no such folder"):
        load_beir(tmp_path / "gone")
