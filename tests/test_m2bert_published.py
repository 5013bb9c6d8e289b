"""Published M2-BERT checkpoints and configurations, in every form they come in (with the weights of a parity case)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import parity_dir
from torch import Tensor

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from safetensors.torch import save_file
from tiny_m2bert import PUBLISHED_OPTIONS as OPTIONS
from tiny_m2bert import published_weights

from monarch_ops.m2bert import (
    M2BertConfig,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
    load_official,
)
from monarch_ops.m2bert.checkpoint import config_from_official, convert_official, own_name

Weights = dict[str, Tensor]


@pytest.fixture
def weights() -> Weights:
    return published_weights()


def without(weights: Weights, pattern: str) -> Weights:
    kept = {key: value for key, value in weights.items() if not re.search(pattern, key)}
    assert len(kept) < len(weights)
    return kept


def assert_same(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []
    assert type(model) is type(expected)
    assert not model.training


# ---- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model.module.", "module.model."])
def test_prefixes(weights: Weights, prefix: str) -> None:
    extra = {
        "bert.encoder.flashfft.f": torch.ones(3),
        "bert.encoder.layer.1.attention.filter_fn2.flashfft.twiddle_factors": torch.ones(3),
        "bert.embeddings.position_ids": torch.arange(256)[None],
    }
    ours = {prefix + key: value for key, value in (weights | extra).items()}
    assert_same(load_official(ours, OPTIONS), load_official(weights, OPTIONS))


def composer(weights: Weights) -> dict:
    prefixed = {f"model.{key}": value for key, value in weights.items()}
    return {"state": {"model": prefixed, "optimizers": {"lr": 0.1, "step": [1]}, "seed": 17}, "rng": [torch.ones(2)]}


def without_aliases(weights: Weights) -> Weights:
    """As safetensors' ``save_model`` leaves them: one name per tensor in memory."""
    return without(weights, r"filter\.[35]\.freq$|filter_rev\.[135]\.freq$|decoder\.weight$")


FORMS: dict[str, Callable[[Weights, Path], None]] = {
    "retrieval.pt": torch.save,
    "composer.pt": lambda weights, path: torch.save(composer(weights), path),
    "old_format.pt": lambda weights, path: torch.save(weights, path, _use_new_zipfile_serialization=False),
    "pytorch_model.bin": torch.save,
    "model.safetensors": lambda weights, path: save_file(without_aliases(weights), path),
    "model.bin": lambda weights, path: save_file(without_aliases(weights), path),  # published so, under this name
}


@pytest.mark.parametrize("name", FORMS)
def test_files(weights: Weights, name: str, tmp_path: Path) -> None:
    FORMS[name](weights, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert_same(load_official(path, OPTIONS), load_official(weights, OPTIONS))


def test_composer_in_memory(weights: Weights) -> None:
    assert_same(load_official(composer(weights), OPTIONS), load_official(weights, OPTIONS))


def test_half_precision_weights(weights: Weights) -> None:
    model = load_official({key: value.bfloat16() for key, value in weights.items()}, OPTIONS, M2BertModel)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    key = "bert.pooler.dense.weight"
    assert torch.equal(model.pooler.dense.weight, weights[key].bfloat16().float())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    for content in (b"", b"no checkpoint at all", b"\x05\0\0\0\0\0\0\0{oops", b"PK\x03\x04 nothing more"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pt is no checkpoint of PyTorch or safetensors"):
            load_official(path, OPTIONS)
    for missing in (tmp_path / "other.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"'checkpoint' must be a file, got {missing}$"):
            load_official(missing, OPTIONS)


class Planted:
    """Reading it back creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_files_that_would_run_code(weights: Weights, tmp_path: Path) -> None:
    torch.save(composer(weights) | {"callbacks": Planted(tmp_path / "planted")}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"more than tensors and plain values .*, and reading it would run code"):
        load_official(tmp_path / "checkpoint.pt", OPTIONS)
    assert not (tmp_path / "planted").exists()


def test_what_the_message_about_such_files_says_works(weights: Weights, tmp_path: Path) -> None:
    torch.save(composer(weights) | {"timestamp": datetime.timedelta(1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"plain values \(datetime\.timedelta\)") as error:
        load_official(tmp_path / "checkpoint.pt", OPTIONS)
    command = str(error.value).partition("of their own: ")[2].replace("weights.pt", str(tmp_path / "weights.pt"))
    exec(command, {"torch": torch})
    assert_same(load_official(tmp_path / "weights.pt", OPTIONS), load_official(weights, OPTIONS))


@pytest.mark.parametrize("held", [{}, {"epoch": 3}, {"state": {"optimizers": {}}}, [torch.ones(2)]])
def test_files_without_tensors(held: object, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"'checkpoint' must hold named tensors, .*, got (\[.*\]|list|NoneType)$"):
        load_official(tmp_path / "weights.pt", OPTIONS)


# ---- names -----------------------------------------------------------------------------------------------------------

ALIASES = [f"implicit_filter{rev}.{i}.freq" for rev in ("", "_rev") for i in (1, 3, 5)]


@pytest.mark.parametrize("kept", ALIASES)
def test_frequencies_under_any_name(weights: Weights, kept: str) -> None:
    few = {k: v for k, v in weights.items() if not k.endswith(".freq") or k.endswith(f".{kept}")}
    assert len(weights) - len(few) == 2 * 2 * 5
    assert_same(load_official(few, OPTIONS), load_official(weights, OPTIONS))


@pytest.mark.parametrize("backwards", [False, True])
def test_differing_frequencies_the_last_wins(weights: Weights, backwards: bool) -> None:
    """The last of the modules, whatever the order of the file."""
    for i, name in enumerate(ALIASES):
        key = f"bert.encoder.layer.0.attention.filter_fn.{name}"
        weights[key] = weights[key] + i
    ordered = dict(reversed(weights.items())) if backwards else weights
    model = load_official(ordered, OPTIONS, M2BertModel)
    assert torch.equal(model.encoder.layer[0].attention.filter_fn.freq, weights[key][0])


def test_the_decoder_is_the_word_embedding(weights: Weights) -> None:
    table, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    expected = load_official(weights, OPTIONS)
    for name in (table, decoder):
        assert_same(load_official(without(weights, f"^{name}$"), OPTIONS), expected)
    with pytest.raises(ValueError, match=f"two different values for {table}, one of them {decoder}"):
        load_official(weights | {decoder: weights[decoder] + 1}, OPTIONS)
    with pytest.raises(ValueError, match=r"two different values for bert\.pooler\.dense\.bias, one of them module"):
        load_official(weights | {"module.bert.pooler.dense.bias": torch.ones(64)}, OPTIONS)


def test_bad_checkpoints_are_refused(weights: Weights) -> None:
    key = "bert.encoder.layer.1.attention.in_linear.bias"
    for change, message in (
        ({key: None}, r"M2BertForMaskedLM: missing \['bert.encoder.layer.1.attention.in_linear.bias'\]$"),
        ({"bert.surplus": torch.ones(1)}, r"unknown \['bert.surplus'\]$"),
        ({key: torch.ones(7)}, r"wrong shape \['bert.*in_linear.bias: \(7,\), not \(192,\)'\]$"),
        ({key: None, "other": torch.ones(1)}, r"missing \['.*in_linear.bias'\]; unknown \['other'\]$"),
    ):
        changed = {k: v for k, v in (weights | change).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            load_official(changed, OPTIONS)


def test_what_is_wrong_in_every_layer_is_said_once(weights: Weights) -> None:
    with pytest.raises(ValueError, match="does not fit M2BertModel") as error:
        load_official(without(weights, r"layer\.\d\.mlp\.wo\.bias"), OPTIONS | {"hidden_size": 80}, M2BertModel)
    message = str(error.value)
    assert "missing ['bert.encoder.layer.{0,1}.mlp.wo.bias']; " in message
    assert "'bert.encoder.layer.{0,1}.attention.in_linear.bias: (192,), not (240,)'" in message
    assert "layer.1" not in message


def test_every_missing_parameter_is_noticed(weights: Weights) -> None:
    whole = without_aliases(weights)
    for key in whole:
        if key.startswith("classifier.") or own_name(key) is None:
            continue
        made = M2BertForMaskedLM if key.startswith("cls.") else M2BertModel
        with pytest.raises(ValueError, match=r"missing \['[\w.]+'\]$"):
            load_official({k: v for k, v in whole.items() if k != key}, OPTIONS, made)


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_a_model_is_what_the_checkpoint_holds(weights: Weights) -> None:
    """A pretraining checkpoint has no pooler, a retrieval checkpoint no head, a classifier may be left over."""
    pretraining = without(weights, r"^bert\.pooler\.|^classifier\.")
    retrieval = without(weights, r"^cls\.")
    assert_same(load_official(pretraining, OPTIONS), load_official(weights, OPTIONS, M2BertForMaskedLM))
    assert_same(load_official(retrieval, OPTIONS), load_official(weights, OPTIONS, M2BertModel))
    assert_same(load_official(without(retrieval, "^classifier"), OPTIONS), load_official(retrieval, OPTIONS))


@torch.no_grad()
def test_classifier(weights: Weights) -> None:
    model = load_official(weights, OPTIONS, M2BertForSequenceClassification)
    assert torch.equal(model.classifier.weight, weights["classifier.weight"])
    assert torch.equal(model.classifier.bias, weights["classifier.bias"])
    ids = torch.randint(120, (2, 30))
    encoder = load_official(weights, OPTIONS, M2BertModel)
    assert torch.equal(model.bert(ids).pooler_output, encoder(ids).pooler_output)


@pytest.mark.parametrize(
    ("made", "missing"),
    [
        (M2BertModel, "bert.pooler.dense.bias', 'bert.pooler.dense.weight"),
        (M2BertForMaskedLM, "LayerNorm.bias', 'LayerNorm.weight', 'decoder_bias', 'dense.bias', 'dense.weight"),
        (M2BertForSequenceClassification, "bert.pooler.dense.bias', .*, 'classifier.bias', 'classifier.weight"),
    ],
)
def test_no_head_is_made_up(weights: Weights, made, missing: str) -> None:
    encoder = without(weights, r"^cls|^classifier|pooler")
    with pytest.raises(ValueError, match=rf"does not fit {made.__name__}: missing \['{missing}'\]$"):
        load_official(encoder, OPTIONS, made)


# ---- configurations --------------------------------------------------------------------------------------------------


def test_options() -> None:
    config = config_from_official(
        {"hidden_size": 96, "long_conv_l_max": 40, "pool_all": True, "num_labels": 10, "unheard_of": 3}
    )
    assert (config.hidden_size, config.max_position_embeddings, config.pooling) == (96, 40, "mean")
    assert (config.padding, config.num_labels) == ("official", 10)
    assert not hasattr(config, "unheard_of")
    assert config_from_official({}, padding="invariant").padding == "invariant"
    for options, message in (
        ({"attention_pooling": True}, "option 'attention_pooling' must be False, got True"),
        ({"sequence_token_planting": True}, "option 'sequence_token_planting' must be False, got True"),
        ({"use_flash_mm": True}, "option 'use_flash_mm' must be False, got True"),
        ({"monarch_mixer_sequence_mixing": False}, "option 'monarch_mixer_sequence_mixing' must be True, got False"),
        ({"long_conv_l_max": 40, "max_position_embeddings": 80}, "'long_conv_l_max' must be .*=80, got 40"),
        ({"hidden_size": "${width}"}, r"option 'hidden_size' must be a value or .* whole file, got '\$\{width\}'"),
    ):
        with pytest.raises(ValueError, match=message):
            config_from_official(options)


def test_what_a_file_does_not_say_is_as_published() -> None:
    config = config_from_official({"hidden_size": 96})
    assert config.vocab_size == 30528  # of bert-base-uncased, rounded up
    assert (config.use_monarch_mlp, config.use_positional_encodings, config.residual_long_conv) == (False,) * 3
    assert (config.hyena_filter_order, config.max_position_embeddings) == (64, 512)
    assert config_from_official({"vocab_size": 100}).vocab_size == 104


def test_options_without_meaning_here_are_not_looked_at() -> None:
    """References to what is not there included, and what belongs to another kind of model."""
    config = config_from_official({"precision": "${precision}", "model_type": "bert", "architectures": ["Bert"]})
    assert config.model_type == config.to_dict()["model_type"] == "m2-bert"
    assert config.architectures is None
    assert not hasattr(config, "precision")


def test_a_whole_file() -> None:
    """Nested and with references to other keys, as the files are; YAML readers leave 1e-12 a string."""
    options = {"max_position_embeddings": "${max_seq_len}", "long_conv_l_max": "${max_seq_len}", "hidden_size": 96}
    model = {"name": "bert", "model_config": options | {"layer_norm_eps": "1e-6", "hyena_w": 7}}
    config = config_from_official({"max_seq_len": 8192, "model": model, "precision": "bf16"})
    assert (config.max_position_embeddings, config.hidden_size) == (8192, 96)
    assert (config.layer_norm_eps, config.hyena_w) == (1e-6, 7)


def test_every_published_key_is_converted_or_skipped_on_purpose(request: pytest.FixtureRequest) -> None:
    table = parity_dir(request.config) / "state_dict_80M_2k.tsv"
    if not table.exists():
        pytest.skip("the parity folder has no state_dict_80M_2k.tsv, the list of keys of a published checkpoint")
    rows = [line.split("\t")[:2] for line in table.read_text().splitlines()[1:]]
    shapes = {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, shape in rows}
    skipped = {key for key in shapes if own_name(key) is None}
    assert skipped == {"bert.embeddings.position_ids"}
    with torch.device("meta"):
        config = M2BertConfig.preset("m2-bert-80m-2k", num_labels=10)
        models = M2BertForMaskedLM(config), M2BertForSequenceClassification(config)
    converted = convert_official({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()})
    own = {name: tuple(value.shape) for model in models for name, value in model.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in converted.items()} == own
    parameters = {name for model in models for name, _ in model.named_parameters()}
    kinds = {line.split("\t")[0]: line.split("\t")[3] for line in table.read_text().splitlines()[1:]}
    assert {own_name(key) for key, kind in kinds.items() if kind.startswith("parameter")} - {None} == parameters
