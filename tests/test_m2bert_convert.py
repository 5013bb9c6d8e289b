"""``monarch-ops convert``: published weights in, a folder for transformers out, all of it or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

import yaml
from safetensors.torch import load_file
from tiny_m2bert import PUBLISHED_OPTIONS, published_weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from monarch_ops.cli import app
from monarch_ops.m2bert import M2BertForMaskedLM, M2BertModel, load_official, warm_start

pytestmark = pytest.mark.one_thread


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights and configuration as they are published; the configuration refers to other keys of its file."""
    weights = published_weights() | {f"bert.encoder.flashfft.t{i}": torch.ones(2) for i in range(3)}
    torch.save({"state": {"model": {f"model.{key}": value for key, value in weights.items()}}}, tmp_path / "model.pt")
    options = PUBLISHED_OPTIONS | dict.fromkeys(("max_position_embeddings", "long_conv_l_max"), "${max_seq_len}")
    file = {"max_seq_len": 256, "model": {"name": "bert", "model_config": options}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(file))
    return tmp_path


def tokenizer(folder: Path, words: int = 100, pad: str = "word0") -> Path:
    vocabulary = {f"word{i}": i for i in range(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="word1"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, unk_token="word1", padding_side="left")
    fast.save_pretrained(folder)
    return folder


def convert(folder: Path, *options: object, output: str = "out") -> tuple[int, str]:
    """Exit status and what is printed, as one line."""
    arguments = [folder / "model.pt", folder / output, "--config", folder / "model.yaml", *options]
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "400"})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


def expected(made: type = M2BertForMaskedLM) -> torch.nn.Module:
    return load_official(published_weights(), PUBLISHED_OPTIONS, made)


def assert_same(model: torch.nn.Module, other: torch.nn.Module) -> None:
    assert type(model) is type(other)
    ids = torch.randint(1, 100, (2, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(ids)[0], other(ids)[0])


# ---- what it makes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("auto", AutoModelForMaskedLM),
        ("language-model", AutoModelForMaskedLM),
        ("encoder", AutoModel),
        ("classifier", AutoModelForSequenceClassification),
    ],
)
def test_models(folder: Path, name: str, auto: Any) -> None:
    status, printed = convert(folder, "--model", name)
    assert status == 0, printed
    assert {file.name for file in (folder / "out").iterdir()} == {"config.json", "model.safetensors"}
    loaded = auto.from_pretrained(folder / "out")
    assert_same(loaded, expected(type(loaded)))
    assert loaded.config.padding == "official"
    assert type(loaded).__name__ in printed
    assert ("classifier.weight" in printed) == (name != "classifier")
    assert ("cls.predictions.decoder.bias" in printed) == (name in ("encoder", "classifier"))
    assert "3 tables of FlashFFTConv" in printed
    assert f"{sum(p.numel() for p in loaded.parameters()):,} parameters" in printed
    size = (folder / "out" / "model.safetensors").stat().st_size
    assert f"model.safetensors ({size:,} bytes)" in printed


def test_padding_that_changes_nothing(folder: Path) -> None:
    status, _ = convert(folder, "--padding", "invariant")
    assert status == 0
    assert json.loads((folder / "out" / "config.json").read_text())["padding"] == "invariant"


def test_tokenizer(folder: Path) -> None:
    status, printed = convert(folder, "--tokenizer", tokenizer(folder / "words"))
    assert status == 0, printed
    assert "100 words, cuts at 256 tokens" in printed
    loaded = AutoTokenizer.from_pretrained(folder / "out")
    ids = loaded(["word7 word9", "word3"], padding=True)["input_ids"]
    assert ids == [[7, 9], [3, 0]]
    assert len(loaded("word2 " * 300, truncation=True)["input_ids"]) == 256


def test_warm_start(folder: Path) -> None:
    options = ("--model", "encoder", "--extend-to", 600, "--decay", "tokens", "--features", "continue")
    status, printed = convert(folder, *options, "--tokenizer", tokenizer(folder / "words"))
    assert status == 0, printed
    assert "600 tokens" in printed
    assert_same(AutoModel.from_pretrained(folder / "out"), warm_start(expected(M2BertModel), 600, "tokens", "continue"))
    assert AutoTokenizer.from_pretrained(folder / "out").model_max_length == 600


def test_presets(folder: Path) -> None:
    """By name; their sizes are not those of the small weights, which is said with every shape."""
    status, printed = convert(folder, "--config", "m2-bert-80m-2k")
    assert status != 0
    assert "bert.pooler" not in printed  # the language model has none
    assert "decoder_bias: (120,), not (30528,)" in printed
    status, printed = convert(folder, "--config", "m2-bert-80m-3k")
    assert status != 0
    assert "there is no file m2-bert-80m-3k, and as a preset: " in printed
    assert "m2-bert-80m-32k" in printed


def test_as_a_program(folder: Path) -> None:
    arguments = [folder / "model.pt", folder / "new" / "out", "--config", folder / "model.yaml"]
    command = [sys.executable, "-m", "monarch_ops", "convert", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "M2BertForMaskedLM" in done.stdout
    assert load_file(folder / "new" / "out" / "model.safetensors")


# ---- what it refuses -------------------------------------------------------------------------------------------------


def break_weights(folder: Path) -> tuple:
    weights = published_weights()
    del weights["bert.encoder.layer.1.mlp.wo.bias"]
    torch.save(weights | {"surplus": torch.ones(1)}, folder / "model.pt")
    return ()


def fill_output(folder: Path) -> tuple:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("three years of work")
    return ()


def break_yaml(folder: Path) -> tuple:
    (folder / "model.yaml").write_text("model: [")
    return ()


def empty_yaml(folder: Path) -> tuple:
    (folder / "model.yaml").write_text("")
    return ()


def unsupported_option(folder: Path) -> tuple:
    (folder / "model.yaml").write_text("attention_pooling: true")
    return ()


def remove_weights(folder: Path) -> tuple:
    (folder / "model.pt").unlink()
    return ()


REFUSED = {
    "weights": (break_weights, "missing ['bert.encoder.layer.1.mlp.wo.bias']; unknown ['surplus']"),
    "output": (fill_output, "the output must be a new or an empty folder"),
    "yaml": (break_yaml, "is no YAML file"),
    "empty-yaml": (empty_yaml, "must hold options by name, got NoneType"),
    "option": (unsupported_option, "option 'attention_pooling' must be False, got True"),
    "no-weights": (remove_weights, "'checkpoint' must be a file"),
    "no-tokenizer": (lambda folder: ("--tokenizer", folder / "none"), "the tokenizer must be a folder"),
    "empty-tokenizer": (
        lambda folder: ("--tokenizer", folder),
        "holds no tokenizer that transformers can read",
    ),
    "many-words": (
        lambda folder: ("--tokenizer", tokenizer(folder / "words", words=121)),
        "must have at most 120 words as the model, got 121",
    ),
    "other-padding": (
        lambda folder: ("--tokenizer", tokenizer(folder / "words", pad="word5")),
        "must pad with id 0 as the model, got 5",
    ),
    "shorter": (lambda folder: ("--extend-to", 256), "'to' must be larger than 256"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_nothing_written(folder: Path, name: str) -> None:
    prepare, message = REFUSED[name]
    options = prepare(folder)
    before = sorted(folder.rglob("*"))
    status, printed = convert(folder, *options)
    assert status != 0
    assert message in printed, printed
    assert sorted(folder.rglob("*")) == before


def test_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two files; the next attempt succeeds."""
    before = sorted(folder.rglob("*"))
    with monkeypatch.context() as patch:

        def stop(self: PreTrainedTokenizerFast, path: Path) -> None:
            assert (path / "model.safetensors").exists()
            raise KeyboardInterrupt

        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", stop)
        patch.setattr("monarch_ops.m2bert.convert.read_tokenizer", lambda *_: object.__new__(PreTrainedTokenizerFast))
        done = CliRunner().invoke(
            app,
            [
                *("convert", str(folder / "model.pt"), str(folder / "out")),
                *("--config", str(folder / "model.yaml"), "--tokenizer", str(folder)),
            ],
        )
        assert done.exit_code != 0
    assert sorted(folder.rglob("*")) == before
    (folder / "out").mkdir()  # an empty folder is as good as none
    assert convert(folder)[0] == 0
