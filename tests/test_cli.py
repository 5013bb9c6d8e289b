"""The command line, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import monarch_ops as mo
from monarch_ops.demo.corpus import hold_out, read_modules


def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monarch_ops", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_info_names_what_is_there():
    found = json.loads(run("info", "--json").stdout)
    assert found["version"] == mo.__version__
    for row in mo.variants():
        names = found["CPU kernels" if row["device"] == "cpu" else "CUDA kernels"][f"{row['family']} {row['compute']}"]
        assert (row["name"] in names) == row["available"]
    assert found["CPU instruction set"] in {row["name"] for row in mo.variants() if row["available"]}
    assert run("--version").stdout == f"{mo.__version__}\n"
    table = run("info").stdout
    for name in found:
        assert name in table


# ---- the demo --------------------------------------------------------------------------------------------------------

MODULE = '''"""Tools about {word}: this module reads {word} files, checks {word} values and writes {word} reports."""

def read_{word}(path):
    """Read the {word} values of a file."""
    with open(path) as file:
        return [parse_{word}(line) for line in file]

class {word}Report:
    """A report about all {word} values."""
    rows = []
'''
PADDING = "".join(f"    value_{i} = check(total, {i}, 'text that makes the module long enough')\n" for i in range(60))


@pytest.fixture
def documents(tmp_path) -> Path:
    folder = tmp_path / "sources"
    (folder / "tests").mkdir(parents=True)
    for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta"):
        (folder / f"{word}.py").write_text(MODULE.format(word=word) + PADDING)
    (folder / "tests" / "test_it.py").write_text(MODULE.format(word="omega"))
    (folder / "broken.py").write_text("def broken(:\n")
    (folder / "latin.py").write_bytes(b"# caf\xe9\n")
    return folder


def test_corpus_separates_queries_from_documents(documents):
    modules = {m.name: m for m in read_modules(documents)}
    assert sorted(modules) == ["alpha.py", "beta.py", "delta.py", "epsilon.py", "gamma.py", "zeta.py"]
    alpha = modules["alpha.py"]
    assert alpha.docstring.startswith("Tools about alpha")
    assert "Tools about alpha" not in alpha.text
    assert "def read_alpha" in alpha.text
    (query, body), (class_query, _) = alpha.pairs
    assert query == "Read the alpha values of a file."
    assert "parse_alpha" in body
    assert query not in body
    assert class_query == "A report about all alpha values."
    training, held = hold_out(list(modules.values()), 2)
    assert len(held) == 2
    assert len(training) == 4
    assert not {m.name for m in training} & {m.name for m in held}


def test_demo_leaves_what_it_says(documents, tmp_path):
    output = tmp_path / "out"
    options = {"--documents": documents, "--output": output, "--steps": 2, "--held-out": 3}
    done = run("demo", *(str(word) for option in options.items() for word in option), "--no-speed")
    for expected in ("6 Python modules", "3 modules held out", "BM25", "untrained", "trained here", "Done in"):
        assert expected in done.stdout
    results = json.loads((output / "results.json").read_text())
    assert results["ndcg@10"]["BM25"] == pytest.approx(1.0)
    assert len(results["losses"]) == 2
    assert np.load(output / "embeddings.npy").shape == (3, 128)
    found = json.loads(run("search", str(output / "embeddings.npy"), "read alpha values", "--json").stdout)
    assert len(found[0]["hits"]) == 3
    assert (output / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert not (output / "training.pt").exists()

    from transformers import AutoModel, AutoTokenizer

    import monarch_ops.m2bert  # noqa: F401  registers the model

    model, tokenizer = (auto.from_pretrained(output / "model") for auto in (AutoModel, AutoTokenizer))
    text = tokenizer("read alpha", return_tensors="pt", return_token_type_ids=False)
    assert model(**text).pooler_output.shape == (1, 128)


def test_demo_refuses_a_folder_without_documents(tmp_path):
    done = run("demo", "--documents", str(tmp_path), "--output", str(tmp_path / "out"), check=False)
    assert done.returncode != 0
    assert "'documents' must be a folder with Python modules" in " ".join(
        (done.stdout + done.stderr).replace("│", " ").split()
    )
