"""Closer looks at rankings: by length, by position, by tokens, and clusters of documents."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

pytest.importorskip("sklearn", reason="needs the extra monarch-ops[eval]")
pytest.importorskip("sentence_transformers", reason="needs the extra monarch-ops[retrieval]")

from rich.progress import Progress
from sentence_transformers import SentenceTransformer
from tiny_encoder import WORDS, save_checkpoint, texts
from tiny_m2bert import LONGEST
from typer.testing import CliRunner, Result

from monarch_ops import cli
from monarch_ops.retrieval import InputError, RetrievalData, embed, ndcg
from monarch_ops.retrieval.analysis import by_length, chance_ndcg, cluster, measures, needle_data, split_passages
from monarch_ops.retrieval.evaluation import Dense, Oracle, evaluate
from monarch_ops.retrieval.evaluation.rankers import Ranked, Ranker

pytestmark = pytest.mark.one_thread


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder)
    return folder


def write(folder: Path, data: RetrievalData) -> Path:
    """As BEIR."""
    (folder / data.name / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", data.documents), ("queries", data.queries)):
        lines = (json.dumps({"_id": id, "text": text}) + "\n" for id, text in rows.items())
        (folder / data.name / f"{name}.jsonl").write_text("".join(lines))
    lines = (f"{query}\t{id}\t{score}\n" for query, found in data.qrels.items() for id, score in found.items())
    (folder / data.name / "qrels" / "test.tsv").write_text("".join(lines))
    return folder / data.name


def made(name: str, count: int, seed: int) -> RetrievalData:
    documents = {f"{name}{i}": text for i, text in enumerate(texts(count, longest=80, seed=seed))}
    return RetrievalData(
        name,
        documents,
        {f"q{i}": text for i, text in enumerate(texts(8, longest=4, seed=seed + 1))},
        {f"q{i}": {f"{name}{i}": 1} for i in range(8)},
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["analyze", *map(str, arguments)], env={"COLUMNS": "200"})


def assert_picture(file: Path) -> None:
    """One in which something is drawn."""
    assert imread(file)[..., :3].std() > 0.02


class First(Ranker):
    """Finds the documents in the order of their ids, the same for every query."""

    model = "first"

    def rank(self, data: RetrievalData, progress: Progress) -> Ranked:
        return Ranked({query: {id: float(-i) for i, id in enumerate(sorted(data.documents))} for query in data.queries})


@pytest.mark.parametrize("module", ["sklearn.manifold", "matplotlib.figure"])
def test_the_extra_that_is_missing_is_named_before_any_work(module, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("monarch_ops.retrieval.analysis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    done = run("needle", "--data", tmp_path / "gone", "--model", "bm25")
    assert done.exit_code == 2
    message = " ".join(done.stderr.replace("│", " ").split())
    assert f"needs {module}: pip install --no-build-isolation 'monarch-ops[eval]'" in message


def test_buckets_hold_the_queries_of_documents_of_their_length():
    data = RetrievalData(
        "mixed",
        {"a": "x " * 9, "b": "x " * 10, "c": "x " * 99, "d": "x " * 201},
        {id: id for id in "pqrs"},
        # of r the mean length counts, 150; what has relevance 0 does not
        {"p": {"a": 1}, "q": {"b": 2, "d": 0}, "r": {"c": 1, "d": 1}, "s": {"a": 1}},
    )
    found = evaluate([data], [First(), Oracle()], Progress(disable=True))
    curves = by_length([data], found, (10, 100, 1000))
    assert curves.x == ["below 10\n(2 queries)", "10 to 99\n(1 queries)", "100 to 999\n(1 queries)",
                        "1,000 and more\n(0 queries)"]  # fmt: skip
    assert curves.lines["oracle"] == [1.0, 1.0, 1.0, None]
    per_query = found.rows[0].per_query
    assert curves.lines["first"][:2] == pytest.approx([1.0, per_query["q"][10]])
    assert curves.errors["first"] == [0, None, None, None]  # two queries that are answered alike, one, one, none
    for edges in ((10, 10), (0, 10), (20, 10)):
        with pytest.raises(InputError, match="edges of buckets must be positive and rise"):
            by_length([data], found, edges)


def test_a_standard_error_is_that_of_the_mean():
    assert measures._standard_error([0, 1]) == pytest.approx(0.5)
    assert measures._standard_error([0, 1] * 50) == pytest.approx(0.5 / 99**0.5)


def test_passages_have_so_many_words():
    assert split_passages("a b c d e f g h", 3) == ["a b c", "d e f", "g h"]
    assert split_passages("a b c d e f g", 3) == ["a b c", "d e f"]
    assert split_passages("a", 3) == ["a"]


def test_the_needle_is_at_its_position_among_passages_of_other_documents():
    data = RetrievalData(
        "hay",
        {"d": "one two three four cat five", "e": "six dog", **{f"o{i}": f"hay{i} x{i} y{i}" for i in range(9)}},
        {"cat": "cats", "dog": "a dog", "again": "five"},
        {"cat": {"d": 1}, "dog": {"e": 2, "o0": 1}, "again": {"d": 1}},
    )
    sets = needle_data(data, positions=5, queries=3, words=3)
    assert [each.name for each in sets] == [f"hay@{n}" for n in range(5)]
    needles = {"cat": "four cat five", "again": "four cat five", "dog": "six dog"}
    asked = set(sets[0].queries)
    assert len(asked) == 2  # one of those that ask for the same document
    assert "dog" in asked
    other = {query: text.split("\n")[1:] for query, text in sets[0].documents.items()}
    for position, each in enumerate(sets):
        assert each.qrels == {query: {query: 1} for query in asked}
        for query, text in each.documents.items():
            passages = text.split("\n")
            assert passages.pop(position) == needles[query]
            assert passages == other[query]  # the same hay at every position
            assert len({*passages}) == 4
            assert all(passage.startswith("hay") and not passage.startswith("hay0") for passage in passages)
    with pytest.raises(InputError, match="a haystack needs 9 passages of documents without answers, got 8"):
        needle_data(data, positions=10, queries=3, words=3)


def test_chance_is_what_random_scores_have():
    random = np.random.default_rng(0)
    measured = ndcg(random.random((4000, 20)), np.tile(np.arange(20) == 0, (4000, 1))).mean()
    assert chance_ndcg(20) == pytest.approx(measured, abs=0.02)
    assert chance_ndcg(1) == 1


def test_lengths_and_needle_commands(model, tmp_path):
    folder = write(tmp_path, made("tiny", 40, 1))
    common = ["--data", folder, "--model", "bm25", "--model", model, "-o", tmp_path / "out", "--device", "cpu"]
    done = run("lengths", *common, "--edge", 20, "--edge", 40)
    assert done.exit_code == 0, done.output
    assert "below 20" in done.stdout
    found = json.loads((tmp_path / "out" / "lengths.json").read_text())[0]
    assert sum(int(name.split("(")[1].split()[0]) for name in found["x"]) == 8
    assert_picture(tmp_path / "out" / "lengths.png")

    done = run("needle", *common, "--positions", 4, "--queries", 5, "--words", 10)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "needle-tiny.json").read_text())[0]
    assert found["x"] == [0, 1, 2, 3]
    bm25, dense = found["lines"].values()
    assert len(set(bm25)) == 1  # which does not read in order
    assert len(dense) == 4
    assert found["chance"] == pytest.approx(chance_ndcg(5))
    errors = found["errors"]["bm25"]
    assert len({*errors}) == 1
    assert f"{bm25[0]:.3f} ± {errors[0]:.3f}" in done.stdout
    assert_picture(tmp_path / "out" / "needle-tiny.png")
    done = run("needle", *common, "--positions", 4000)
    assert done.exit_code == 1
    assert "Error: tiny: a haystack needs 3999 passages" in done.stderr


def test_tokens_command(model, tmp_path, monkeypatch):
    embedded = []

    def watched(encoder: SentenceTransformer, texts: list[str], **options) -> np.ndarray:
        embedded.append(tuple(texts))
        return embed(encoder, texts, **options)

    monkeypatch.setattr(measures, "embed", watched)
    monkeypatch.setattr(measures, "MEASURED", 1.0)
    folder = write(tmp_path, made("tiny", 40, 1))
    done = run("tokens", "--data", folder, "--model", model, "-o", tmp_path / "out", "--device", "cpu",
               "--length", 16, "--length", LONGEST, "--length", 2 * LONGEST)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len({*embedded}) == 2  # the beginnings of the longest documents, at two lengths
    assert min(embedded.count(texts) for texts in {*embedded}) > 3  # or the time says little
    assert "Quality, tiny: nDCG@10" in done.stdout
    quality, speed, memory = json.loads((tmp_path / "out" / "tokens.json").read_text())
    for curves in (quality, speed, memory):
        values = curves["lines"][str(model)]
        assert curves["x"] == [16, LONGEST, 2 * LONGEST]
        assert values[2] is None  # longer than the model
        assert min(values[:2]) >= 0
    assert min(speed["lines"][str(model)][:2]) > 100
    assert max(memory["lines"][str(model)][:2]) > 0.1
    alone = CliRunner().invoke(cli.app, ["eval", "--data", str(folder), "--model", str(model), "--max-length", "16",
                                         "-o", str(tmp_path / "out"), "--json"])  # fmt: skip
    row = json.loads(alone.stdout)["rows"][0]
    assert row["embeddings_reused"]
    assert row["ndcg"]["10"] == quality["lines"][str(model)][0]
    assert_picture(tmp_path / "out" / "tokens.png")


def test_clusters_of_sets_that_share_no_word_are_pure(model, tmp_path):
    def of(name: str, words: list[str]) -> RetrievalData:
        return RetrievalData(name, {f"{i}": " ".join(words * (i + 3)) for i in range(12)}, {"q": "?"}, {"q": {"0": 1}})

    sets = [write(tmp_path, of("left", WORDS[:2])), write(tmp_path, of("right", WORDS[10:12]))]
    done = run("clusters", "--data", sets[0], "--data", sets[1], "--model", model, "-o", tmp_path / "out",
               "--chunks", "none", "--chunks", "mean", "--max-length", 16, "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    for row in json.loads((tmp_path / "out" / "clusters.json").read_text()):
        sizes = np.array([row["clusters"]["left"], row["clusters"]["right"]])
        assert sizes.sum(axis=1).tolist() == [12, 12]
        pure = (np.sort(sizes, axis=1) == [0, 12]).all() and sizes[0].argmax() != sizes[1].argmax()
        assert (row["v_measure"] == pytest.approx(1)) == pure
    assert "v-measure" in done.stdout
    assert_picture(tmp_path / "out" / "clusters.png")
    for arguments, message in (
        (["--data", sets[0], "--model", model], "clusters need at least two sets of data, got 1"),
        (["--data", sets[0], "--data", sets[1], "--model", "bm25"], "one vector per document, which bm25 has not"),
    ):
        done = run("clusters", *arguments, "-o", tmp_path / "out")
        assert done.exit_code == 1
        assert message in done.stderr


def test_v_measure_is_that_of_the_definition():
    """Two sets of four; vectors put three and one of the first with all of the second's, by construction."""
    axes = np.eye(2, dtype=np.float32)
    vectors = {"a": axes[[0, 0, 0, 1]], "b": axes[[1, 1, 1, 1]]}

    class Known(Dense):
        def __init__(self) -> None:
            self.model, self.chunks = "known", "none"

        label = "known"

        def document_vectors(self, data: RetrievalData, progress: Progress) -> np.ndarray:
            return vectors[data.name] + 0.01 * np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)

    sets = [RetrievalData(name, {str(i): "" for i in range(4)}, {}, {}) for name in "ab"]
    found = cluster(sets, [Known()], Progress(disable=True))[0]

    def entropy(*counts: int) -> float:
        shares = np.array(counts) / sum(counts)
        return float(-(shares * np.log(shares)).sum())

    homogeneity = 1 - (5 / 8 * entropy(1, 4)) / entropy(4, 4)
    completeness = 1 - (4 / 8 * entropy(3, 1)) / entropy(3, 5)
    assert (found.homogeneity, found.completeness) == pytest.approx((homogeneity, completeness))
    assert found.v_measure == pytest.approx(2 * homogeneity * completeness / (homogeneity + completeness))
    assert found.plane.shape == (8, 2)
