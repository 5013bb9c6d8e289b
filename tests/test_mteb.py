"""`mteb`: tasks of several types made on the spot, measured as mteb measures them; and retrieval tasks in `eval`."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra monarch-ops[retrieval]")
pytest.importorskip("mteb", reason="needs the extra monarch-ops[mteb], and Python 3.11")

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.benchmarks.get_benchmark import _build_registry
from sentence_transformers import SentenceTransformer
from tiny_encoder import WORDS, tiny_tokenizer
from tiny_m2bert import LONGEST, tiny
from typer.testing import CliRunner, Result

from monarch_ops import cli
from monarch_ops.retrieval import Encoder, load_encoder

pytestmark = pytest.mark.one_thread


def about(name: str, type: str, score: str, **more) -> TaskMetadata:
    given = {
        "name": name, "description": "Letters.", "reference": None, "type": type, "category": "t2t",
        "modalities": ["text"], "eval_splits": ["test"], "eval_langs": ["eng-Latn"], "main_score": score, "date": None,
        "domains": None, "dataset": {"path": "local/letters", "revision": "1"}, "task_subtypes": None, "license": None,
        "annotations_creators": None, "dialect": None, "sample_creation": None, "bibtex_citation": None,
    }  # fmt: skip
    return TaskMetadata(**given | more)


class Letters(AbsTaskRetrieval):
    metadata = about("LettersRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, **_) -> None:
        self.corpus = {"test": {f"d{w}": {"title": w, "text": f"all about {w} {w}"} for w in WORDS}}
        self.queries = {"test": {f"q{w}": f"find {w}" for w in [*WORDS, "nothing"]}}
        self.relevant_docs = {"test": {f"q{w}": {f"d{w}": 1} for w in WORDS}}
        self.convert_v1_dataset_format_to_v2(num_proc=None)
        self.data_loaded = True


def rows(count: int) -> dict[str, list]:
    """Texts of two groups of words."""
    texts = [f"{WORDS[i % 3 + 10 * (i % 2)]} {WORDS[i % 5 + 10 * (i % 2)]}" for i in range(count)]
    return {"text": texts, "label": [i % 2 for i in range(count)]}


class Groups(AbsTaskClassification):
    metadata = about("LettersClassification", "Classification", "accuracy")
    n_experiments = 2

    def load_data(self, **_) -> None:
        self.dataset = DatasetDict(train=Dataset.from_dict(rows(40)), test=Dataset.from_dict(rows(20)))
        self.data_loaded = True


class Clusters(AbsTaskClustering):
    metadata = about("LettersClustering", "Clustering", "v_measure")
    max_fraction_of_documents_to_embed = None
    input_column_name, label_column_name = "text", "label"

    def load_data(self, **_) -> None:
        self.dataset = DatasetDict(test=Dataset.from_dict(rows(40)))
        self.data_loaded = True


class Similar(AbsTaskSTS):
    """In two languages."""

    metadata = about("LettersSTS", "STS", "cosine_spearman", eval_langs={"en": ["eng-Latn"], "el": ["ell-Grek"]})
    min_score, max_score = 0, 2

    def load_data(self, **_) -> None:
        pairs = {"sentence1": WORDS[:9], "sentence2": [*WORDS[:3], *WORDS[6:9], *WORDS[:3]], "score": [2, 1, 0] * 3}
        flipped = pairs | {"score": [0, 1, 2] * 3}
        self.dataset = {
            "en": DatasetDict(test=Dataset.from_dict(pairs)), "el": DatasetDict(test=Dataset.from_dict(flipped)),
        }  # fmt: skip
        self.data_loaded = True


TASKS = (Letters, Groups, Clusters, Similar)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    prompts = {"query": "find ", "document": "all about "}
    SentenceTransformer(modules=[Encoder(tiny(), tiny_tokenizer())], prompts=prompts, device="cpu").save(str(folder))
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    """The tasks, and a benchmark of all but the last, as if mteb had them."""
    registry = importlib.import_module("mteb.get_tasks")._TASKS_REGISTRY
    for task in TASKS:
        monkeypatch.setitem(registry, task.metadata.name, task)
    monkeypatch.setitem(_build_registry(), "Letters", mteb.Benchmark("Letters", [task() for task in TASKS[:3]]))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [*map(str, arguments)], env={"COLUMNS": "200"})


def scores(folder: Path) -> list[dict]:
    return json.loads((folder / "scores.json").read_text())["suites"]


def test_scores_are_those_of_mteb_itself(model, tmp_path):
    done = run("mteb", "--model", model, "--benchmark", "Letters", "--task", "LettersSTS", "-o", tmp_path, "--device",
               "cpu", "--tokens-per-batch", 50)  # fmt: skip
    assert done.exit_code == 0, done.output
    benchmark, tasks = scores(tmp_path)
    assert (benchmark["suite"], tasks["suite"]) == ("Letters", "tasks")
    rows = [*benchmark["scores"], *tasks["scores"]]
    assert [row["task"] for row in rows] == [task.metadata.name for task in TASKS]
    encoder = load_encoder(model, "cpu")
    expected = [mteb.evaluate(encoder, task(), cache=None, show_progress_bar=False)[0] for task in TASKS]
    for row, alone in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(alone.get_score(), abs=1e-4)
        assert f"{row['score']:.3f}" in done.stdout
        assert (row["reused"], row["seconds"] > 0) == (False, True)
    values = [row["score"] for row in rows[:3]]
    label = f"{model}, {LONGEST} tokens"
    assert benchmark["averages"][label]["average of tasks"] == pytest.approx(sum(values) / 3)
    assert len({*values}) == 3
    parts = rows[3]["parts"]["test"]
    assert sum(parts.values()) / 2 == pytest.approx(rows[3]["score"])
    assert parts["en"] == pytest.approx(-parts["el"], abs=1e-6)


def test_averages_count_a_task_once_and_a_type_once(model, tmp_path):
    names = ("LettersClassification", "LettersSTS", "LettersClustering")
    tasks = [word for name in names for word in ("--task", name)]
    done = run("mteb", "--model", model, *tasks, "--language", "eng", "-o", tmp_path, "--device", "cpu", "--json")
    suite = json.loads(done.stdout)["suites"][0]
    values = [row["score"] for row in suite["scores"]]
    assert [*suite["scores"][1]["parts"]["test"]] == ["en"]
    means = next(iter(suite["averages"].values()))
    assert means == pytest.approx(
        {"Classification": values[0], "STS": values[1], "Clustering": values[2]}
        | dict.fromkeys(("average of tasks", "average of types"), sum(values) / 3)
    )


def test_what_is_there_is_used_again_by_the_same_model_only(model, tmp_path):
    def reused(folder: Path, *options: object) -> list[bool]:
        command = ("mteb", "--model", folder, "--task", "LettersSTS", "-o", tmp_path / "out", "--device", "cpu")
        done = run(*command, *options)
        assert done.exit_code == 0, done.output
        found = [row["reused"] for row in scores(tmp_path / "out")[0]["scores"]]
        assert ("1 of 1 scores were there from before" in done.stdout) == found[0]
        return found

    assert [reused(model), reused(model), reused(model, "--max-length", 8), reused(model)] == [
        [False], [True], [False], [True],
    ]  # fmt: skip
    other = load_encoder(model, "cpu")
    other.prompts["query"] = "seek "
    other.save(str(tmp_path / "other" / model.name))
    assert reused(tmp_path / "other" / model.name) == [False]
    assert reused(model, "--language", "ell") == [True]
    row = scores(tmp_path / "out")[0]["scores"][0]
    assert [*row["parts"]["test"]] == ["el"]
    assert row["score"] == row["parts"]["test"]["el"]


def test_a_task_that_fails_does_not_stop_the_others(model, tmp_path, monkeypatch):
    def broken(self, **_) -> None:
        raise ValueError("no such column")

    monkeypatch.setattr(Groups, "load_data", broken)
    done = run("mteb", "--model", model, "--benchmark", "Letters", "-o", tmp_path, "--device", "cpu")
    assert done.exit_code == 1
    assert "LettersClassification: ValueError: no such column" in done.stdout
    assert "1 of 3 scores are missing, also in the averages" in done.stdout
    rows = scores(tmp_path)[0]["scores"]
    assert [row.get("score") is None for row in rows] == [False, True, False]
    means = next(iter(scores(tmp_path)[0]["averages"].values()))
    assert means["average of tasks"] == pytest.approx((rows[0]["score"] + rows[2]["score"]) / 2)


def test_eval_ranks_the_documents_of_a_retrieval_task(model, tmp_path):
    done = run("mteb", "--model", model, "--task", "LettersRetrieval", "-o", tmp_path, "--device", "cpu")
    assert done.exit_code == 0, done.output
    alone = scores(tmp_path)[0]["scores"][0]["score"]
    done = run("eval", "--data", "mteb:LettersRetrieval", "--model", model, "--model", "bm25", "-o", tmp_path, "--json",
               "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["data"][0]["documents"], found["data"][0]["queries"]) == (len(WORDS), len(WORDS))
    assert [row["data"] for row in found["rows"]] == ["mteb:LettersRetrieval"] * 2
    assert found["rows"][0]["ndcg"]["10"] == pytest.approx(alone, abs=1e-4)
    assert found["rows"][1]["ndcg"]["10"] == 1


def test_refuses(model, tmp_path, monkeypatch):
    def refused(*arguments: object) -> str:
        done = run(*arguments, "-o", tmp_path / "out")
        assert done.exit_code == 1, done.output
        return done.stderr.splitlines()[-1]

    good = ("mteb", "--model", model)
    near = "a benchmark must have a name that mteb knows, such as BEIR"
    assert near in refused(*good, "--benchmark", "Bier")
    assert "got 'beir'" in refused(*good, "--benchmark", "beir")
    assert "a task must have a name that mteb knows, such as SciFact" in refused(*good, "--task", "scifact")
    assert "knows; got 'qqqqqqqqqq'" in refused(*good, "--task", "qqqqqqqqqq")
    assert "LettersSTS: the languages must be among the task's, got fra" in refused(
        *good, "--task", "LettersSTS", "--language", "fra"
    )
    assert "Error: a model must be minilm, a folder" in refused("mteb", "--model", "bm25", "--task", "LettersSTS")
    other = refused("eval", "--data", "mteb:LettersSTS", "--model", "bm25")
    assert "LettersSTS: must rank all documents by their texts alone, got a task of type STS" in other
    assert "a task must have a name that mteb knows" in refused("eval", "--data", "mteb:", "--model", "bm25")
    monkeypatch.setattr(Letters, "ignore_identical_ids", True)
    own = refused("eval", "--data", "mteb:LettersRetrieval", "--model", "bm25")
    assert "in which a query's own document does not count: see `monarch-ops mteb`" in own
    assert not (tmp_path / "out").exists()


def test_a_hub_out_of_reach_is_said_at_once(model, tmp_path):
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for command in (["mteb", "--benchmark", "LongEmbed"], ["eval", "--data", "mteb:LongEmbed"]):
        line = [sys.executable, "-m", "monarch_ops", *command, "--model", str(model), "-o", str(tmp_path / "out")]
        done = subprocess.run(line, env=offline, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        wanted = "Error: LEMBNarrativeQARetrieval: dwzhu/LongEmbed must be on the Hugging Face hub, and"
        assert done.stderr.splitlines()[-1].startswith(wanted)


def test_the_extra_that_is_missing_is_named(model, tmp_path, monkeypatch):
    name = "monarch_ops.retrieval.evaluation.mteb_tasks"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "mteb", None)  # as if it were not installed
    for command in (["mteb", "--task", "STS12"], ["eval", "--data", "mteb:SciFact"]):
        done = run(*command, "--model", model, "-o", tmp_path)
        assert done.exit_code != 0
        message = " ".join(done.stderr.replace("│", " ").split())
        assert "the tasks of mteb need mteb, which needs Python 3.11 (this is 3." in message
        assert "pip install --no-build-isolation 'monarch-ops[mteb]'" in message
