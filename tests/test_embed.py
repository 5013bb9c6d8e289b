"""Documents to an embeddings file and queries against it: `embed`, killed and resumed, and `search`."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tiny_encoder import TOO_LONG, save_checkpoint, texts, tiny_tokenizer
from tiny_m2bert import LONGEST
from typer.testing import CliRunner, Result

from monarch_ops import cli
from monarch_ops.retrieval import (
    Document,
    EmbeddingFile,
    EmbedOptions,
    Source,
    corpus,
    embed,
    embed_corpus,
    load_encoder,
    store,
)
from monarch_ops.retrieval.corpus import windows

pytestmark = pytest.mark.one_thread
DOCUMENTS = [*texts(150, seed=1), TOO_LONG]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder)
    return folder


@pytest.fixture
def documents(tmp_path) -> Path:
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(DOCUMENTS)))
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(*arguments: object) -> str:
    """The message of a command that fails as it should: on the error stream, without a traceback."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    return done.stderr.splitlines()[-1]


def files(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in EmbeddingFile(output).files}


def vectors(output: Path) -> tuple[list[str], np.ndarray]:
    blocks = list(EmbeddingFile(output).blocks(rows=40))
    return [name for ids, _ in blocks for name in ids], np.concatenate([rows for _, rows in blocks])


def test_commands_name_the_extra_that_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("monarch_ops.retrieval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    done = run("search", "documents.npy", "alpha")
    assert done.exit_code == 2
    message = " ".join(done.stderr.replace("│", " ").split())
    assert "needs pyarrow: pip install --no-build-isolation 'monarch-ops[retrieval]'" in message


# ---- reading documents -----------------------------------------------------------------------------------------------


def test_sources(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeffeins\r\n\n zwei \n".encode())
    with gzip.open(tmp_path / "deep" / "b.txt.gz", "wt") as file:
        file.write("drei\nvier")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    lines = [("1", "eins"), ("3", "zwei")]
    assert list(Source(tmp_path / "a.txt")) == lines
    assert list(Source(tmp_path / "a.txt", per_line=False)) == [("a.txt", "eins\r\n\n zwei \n")]
    assert list(Source(tmp_path)) == [("a.txt", "eins\r\n\n zwei \n"), ("deep/b.txt.gz", "drei\nvier")]
    assert list(Source(tmp_path, per_line=True)) == [
        ("a.txt:1", "eins"), ("a.txt:3", "zwei"), ("deep/b.txt.gz:1", "drei"), ("deep/b.txt.gz:2", "vier"),
    ]  # fmt: skip
    assert list(Source(tmp_path, glob="*.gz")) == [("deep/b.txt.gz", "drei\nvier")]

    rows = [{"_id": 7, "id": "x", "title": "T", "text": "one", "n": 1}, {"_id": 8, "id": "y", "title": "U", "text": ""}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for file in (tmp_path / "c.jsonl", tmp_path / "c.parquet"):
        assert list(Source(file)) == [("7", "one"), ("8", "")]
        assert list(Source(file, ("title", "text"), "id")) == [("x", "T one"), ("y", "U ")]
        assert list(Source(file, ("title",), "text")) == [("one", "T"), ("", "U")]
    (tmp_path / "d.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert list(Source(tmp_path / "d.jsonl")) == [("1", "one"), ("3", "two")]
    assert list(Source(tmp_path, glob="d.*")) == [("d.jsonl:1", "one"), ("d.jsonl:3", "two")]
    assert Source(tmp_path / "d.jsonl").check()[:2] == (2, 6)


BAD = {
    "bad.jsonl": (
        b'{"text": "a"}\n{"text": \n',
        """bad.jsonl, line 2: must be a JSON object, got '{"text":': Expecting value: line 1 column 9""",
    ),
    "list.jsonl": (b"[1]\n", "list.jsonl, line 1: must be a JSON object, got '[1]'"),
    "field.jsonl": (b'{"body": "a"}\n', "field.jsonl, line 1: must have a field 'text', got ['body']"),
    "null.jsonl": (b'{"text": null}\n', "null.jsonl, line 1: field 'text' must be a string, got null"),
    "ids.jsonl": (
        b'{"id": 1, "text": "a"}\n{"text": "a"}\n',
        "ids.jsonl, line 2: must have a field 'id', got ['text']",
    ),
    "float.jsonl": (b'{"id": 1.5, "text": "a"}\n', "field 'id' must be a string or an integer, got 1.5"),
    "twice.jsonl": (
        b'{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}\n',
        "ids of documents must differ, got 'x' twice in",
    ),
    "half.jsonl": (b'{"id": "x", "text": "\\ud800"}\n', "half.jsonl, line 1: field 'text' must be Unicode text"),
    "latin.txt": (b"one\ncaf\xe9\n", "latin.txt, line 2: must be UTF-8 text, got byte 0xe9 at 3"),
    "empty.txt": (b"\n \n", "the input must hold at least one document, got"),
    "broken.txt.gz": (b"no", "broken.txt.gz: must be a gzip file, got a broken one"),
    "no.parquet": (b"no", "no.parquet: must be a Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_embed_says_what_is_wrong_with_the_documents(name, model, tmp_path):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    assert message in refused("embed", model, tmp_path / name, "-o", tmp_path / "out.npy")
    assert not EmbeddingFile(tmp_path / "out.npy").exists()


def test_embed_says_what_is_wrong_with_a_folder_or_columns(model, tmp_path):
    out = tmp_path / "out.npy"
    assert "must be a file or folder, got" in refused("embed", model, tmp_path / "gone", "-o", out)
    (tmp_path / "in").mkdir()
    assert "must hold files that match '*', got" in refused("embed", model, tmp_path / "in", "-o", out)
    (tmp_path / "in" / "latin.txt").write_bytes(b"caf\xe9")
    assert "latin.txt: must be UTF-8 text" in refused("embed", model, tmp_path / "in", "-o", out)
    assert "must not be the input or lie in it" in refused("embed", model, tmp_path, "-o", out)
    pq.write_table(pa.table({"id": ["x"], "body": ["a"]}), tmp_path / "in.parquet")
    assert "in.parquet: must have a column 'text', got ['id', 'body']" in refused(
        "embed", model, tmp_path / "in.parquet", "-o", out
    )
    pq.write_table(pa.table({"id": ["x", "y"], "text": ["a", None]}), tmp_path / "in.parquet")
    itself = ("-o", tmp_path / "in.parquet", "--overwrite")
    assert "must not be the input or lie in it" in refused("embed", model, tmp_path / "in.parquet", *itself)
    assert "in.parquet, row 2: field 'text' must be a string, got null" in refused(
        "embed", model, tmp_path / "in.parquet", "-o", out
    )


# ---- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_embed_writes_vectors_ids_and_manifest(suffix, model, documents, tmp_path):
    output = tmp_path / "sub" / f"out.{suffix}"
    done = run("embed", model, documents, "-o", output, "--window", 300, "--no-normalize")
    assert done.exit_code == 0, done.output
    cut = sum(len(ids) > LONGEST for ids in tiny_tokenizer()(DOCUMENTS)["input_ids"])
    assert 0 < cut < len(DOCUMENTS)
    assert f"151 documents, 64 dimensions: {output}\n{cut} of them are longer than the model's 64 tokens" in done.stdout
    ids, found = vectors(output)
    assert ids == [f"d{i}" for i in range(len(DOCUMENTS))]
    np.testing.assert_allclose(found, load_encoder(model, "cpu").encode(DOCUMENTS), atol=5e-6)
    manifest = json.loads((tmp_path / "sub" / f"out.{suffix}.manifest.json").read_text())
    wanted = {"count": 151, "dim": 64, "normalized": False, "cut": cut, "model": str(model), "prompt": ""}
    assert {name: manifest[name] for name in wanted} == wanted
    assert manifest["source"]["path"] == str(documents)
    assert manifest["options"]["window"] == 300
    assert sorted(file.name for file in output.parent.iterdir()) == sorted(files(output))
    if suffix == "npy":
        assert np.array_equal(np.load(output), found)
    else:
        table = pq.read_table(output)
        assert table.column("id").to_pylist() == ids
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), 64)


def test_embed_puts_the_prompt_of_documents_before_them(model, documents, tmp_path):
    encoder = load_encoder(model, "cpu")
    encoder.prompts["document"] = "pi: "
    encoder.save(str(tmp_path / "model"))
    for options, prompt in (((), "pi: "), (("--prompt", "rho "), "rho ")):
        run("embed", tmp_path / "model", documents, "-o", tmp_path / "out.npy", "--overwrite", *options)
        assert EmbeddingFile(tmp_path / "out.npy").manifest()["prompt"] == prompt
        expected = encoder.encode([prompt + text for text in DOCUMENTS], prompt="", normalize_embeddings=True)
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=5e-6)


def test_embed_and_search_with_another_model_of_sentence_transformers(documents, tmp_path):
    """One whose tokenizer is none of transformers', and which knows no greatest length."""
    encoder = SentenceTransformer(modules=[StaticEmbedding(tiny_tokenizer().backend_tokenizer, embedding_dim=16)])
    encoder.save(str(tmp_path / "model"))
    output = tmp_path / "out.npy"
    assert run("embed", tmp_path / "model", documents, "-o", output).exit_code == 0
    np.testing.assert_allclose(np.load(output), encoder.encode(DOCUMENTS, normalize_embeddings=True), atol=1e-6)
    assert EmbeddingFile(output).manifest()["max_seq_length"] is None
    found = json.loads(run("search", output, DOCUMENTS[3], "-k", 1, "--json").stdout)
    assert found[0]["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_windows_hold_so_many_characters_and_documents():
    given = [Document(str(i), "x" * n) for i, n in enumerate((3, 4, 20, 1, 1, 1, 0))]
    cut = [[len(d.text) for d in window] for window in windows(iter(given), EmbedOptions(window=8, max_documents=3))]
    assert cut == [[3, 4], [20], [1, 1, 1], [0]]


# ---- interrupted -----------------------------------------------------------------------------------------------------


def test_killed_and_resumed_is_as_if_nothing_had_happened(model, documents, tmp_path, monkeypatch):
    """Twice: a run killed after some windows, and one that goes on after more of them."""
    output, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    command = ["embed", model, documents, "-o", output, "--window", 1, "--device", "cpu"]  # a window per document
    shards = EmbeddingFile(output).shards.folder
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # on which the last bits depend
    for resume, at_least in (((), 3), (("--resume",), 10)):
        process = subprocess.Popen([sys.executable, "-m", "monarch_ops", *map(str, command), *resume], env=threads)
        while process.poll() is None and len(list(shards.glob("*.parquet"))) < at_least:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before it was killed"
    kept = len(list(shards.glob("*.parquet")))
    assert not output.exists()

    embedded = []

    def watched(encoder: SentenceTransformer, texts: list[str], **options) -> np.ndarray:
        embedded.extend(texts)
        return embed(encoder, texts, **options)

    monkeypatch.setattr(corpus, "embed", watched)
    assert run(*command, "--resume").exit_code == 0
    assert embedded == DOCUMENTS[kept:]
    assert not shards.exists()
    embed_corpus(model, Source(documents), whole, EmbedOptions(window=1), device="cpu")
    assert list(files(output).values()) == list(files(whole).values())
    assert vectors(output)[0] == [f"d{i}" for i in range(len(DOCUMENTS))]


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_crash_while_the_output_is_written_loses_nothing(suffix, model, documents, tmp_path, monkeypatch):
    output = tmp_path / f"out.{suffix}"
    command = ["embed", model, documents, "-o", output, "--window", 2000]
    assert run(*command).exit_code == 0
    expected = files(output)
    write_json = store.write_json

    def crash(file: Path, value: object) -> None:
        if file.name.endswith("manifest.json"):
            raise MemoryError
        write_json(file, value)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", crash)
        assert isinstance(run(*command, "--overwrite").exception, MemoryError)
    assert output.exists()
    message = f"the embeddings {output} must be finished, got no out.{suffix}.manifest.json; its run was interrupted"
    assert message in refused("search", output, "alpha")
    monkeypatch.setattr(corpus, "embed", None)  # nothing is left to embed
    assert run(*command, "--resume").exit_code == 0
    assert files(output) == expected


def test_ctrl_c_says_how_to_go_on(model, documents, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "embed", interrupted)
    assert "stopped; the same command with --resume goes on" in refused(
        "embed", model, documents, "-o", tmp_path / "out.npy"
    )


def test_embed_does_not_touch_what_is_of_another_run(model, documents, tmp_path):
    output = tmp_path / "out.parquet"
    command = ["embed", model, documents, "-o", output]
    assert run(*command).exit_code == 0
    before = files(output)
    assert f"the output {output} exists: --resume goes on with it, --overwrite starts anew" in refused(*command)
    assert "one of --resume and --overwrite must be chosen, got both" in refused(*command, "--resume", "--overwrite")
    assert run(*command, "--resume").exit_code == 0
    other = refused(*command, "--resume", "--tokens-per-batch", 100, "--no-normalize")
    assert "the model, documents and options it began with, got normalized=False, not True; options" in other
    assert "options.tokens_per_batch=100, not 8192. --overwrite starts anew" in other
    documents.write_text(documents.read_text().replace("alpha", "omega", 1))
    assert "source.sha256=" in refused(*command, "--resume")
    save_checkpoint(tmp_path / "other", pooling="mean")
    assert "model_sha256=" in refused("embed", tmp_path / "other", documents, "-o", output, "--resume")
    assert files(output) == before
    assert run(*command, "--overwrite", "--no-normalize").exit_code == 0
    assert not EmbeddingFile(output).manifest()["normalized"]
    assert "must be named .parquet or .npy, got" in refused("embed", model, documents, "-o", tmp_path / "out.txt")
    assert "must be a folder with a model, got" in refused(
        "embed", tmp_path / "no", documents, "-o", tmp_path / "o.npy"
    )


# ---- search ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["npy", "parquet"])
def embeddings(request, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "documents.txt").write_text("\n".join(DOCUMENTS))
    output = folder / f"out.{request.param}"
    embed_corpus(model, Source(folder / "documents.txt"), output, device="cpu")
    return output


def test_search_ranks_by_cosine(embeddings, model, tmp_path, monkeypatch):
    blocks = EmbeddingFile.blocks
    monkeypatch.setattr(EmbeddingFile, "blocks", lambda self: blocks(self, rows=40))  # 151 documents: four blocks
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "rho sigma tau"}\n')
    done = run("search", embeddings, DOCUMENTS[70], "--queries", tmp_path / "queries.jsonl", "-k", 5, "--json",
               "-o", tmp_path / "found.json")  # fmt: skip
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "found.json").read_text())
    asked = [DOCUMENTS[70], "rho sigma tau"]
    assert [(query["id"], query["text"]) for query in found] == [("1", asked[0]), ("q", asked[1])]
    encoder = load_encoder(model, "cpu")
    cosines = encoder.similarity(encoder.encode(asked), encoder.encode(DOCUMENTS)).numpy()
    for query, row in zip(found, cosines, strict=True):
        best = np.argsort(-row)[:5]
        assert [hit["rank"] for hit in query["hits"]] == [1, 2, 3, 4, 5]
        assert [hit["id"] for hit in query["hits"]] == [str(i + 1) for i in best]  # lines are counted from 1
        np.testing.assert_allclose([hit["score"] for hit in query["hits"]], row[best], atol=1e-5)
    assert found[0]["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(json.loads(run("search", embeddings, "pi", "-k", 1000, "--json").stdout)[0]["hits"]) == len(DOCUMENTS)


def test_search_prints_tables(embeddings):
    done = run("search", embeddings, "rho [sigma]", DOCUMENTS[70], "-k", 2)
    assert done.exit_code == 0
    assert "rho [sigma]" in done.stdout
    assert "│ 1    │ 1.0000 │ 71" in done.stdout


def test_search_refuses(embeddings, model, documents, tmp_path):
    assert "at least one query must be given, got none" in refused("search", embeddings)
    assert "must be finished, got no gone.npy" in refused("search", tmp_path / "gone.npy", "alpha")
    save_checkpoint(tmp_path / "other", pooling="mean")
    message = refused("search", embeddings, "alpha", "--model", tmp_path / "other")
    assert "the model must be the one that embedded the documents, with SHA-256" in message
    model.rename(model.with_name("moved"))
    assert "the model's folder must be given (--model)" in refused("search", embeddings, "alpha")
    assert run("search", embeddings, "alpha", "--model", model.with_name("moved")).exit_code == 0
    model.with_name("moved").rename(model)
