"""M2-BERT on disk: saving and loading as transformers does it, and import of published checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE, parity_dir
from tolerance import relative_error
from torch import Tensor

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from tiny_m2bert import WORDS, lively, tiny, tiny_config, words
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from monarch_ops.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertModel, load_official
from monarch_ops.m2bert.checkpoint import config_from_official, convert_official, own_name

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- saving and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "auto"), [(M2BertModel, AutoModel), (M2BertForMaskedLM, AutoModelForMaskedLM)])
@torch.no_grad()
def test_round_trip(tmp_path: Path, made, auto) -> None:
    options = {"pooling": "mean", "hyena_w_mod": 2.0, "monarch_mlp_nblocks": 2}
    model, ids = lively(made(tiny_config(**options))), words(2, 20)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, M2BertConfig)
    assert {name: getattr(config, name) for name in options} == options
    for loader in (made, auto):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is made
        assert not loaded.training
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        assert torch.equal(loaded(ids)[0], model(ids)[0])


@torch.no_grad()
def test_encoder_and_language_model_share_checkpoints(tmp_path: Path) -> None:
    encoder, ids = tiny(), words(2, 20)
    encoder.save_pretrained(tmp_path)
    mlm = M2BertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(mlm.bert(ids)[0], encoder(ids)[0])
    assert torch.equal(mlm.LayerNorm.weight, torch.ones(64))  # the head, which the checkpoint lacks, starts afresh
    assert torch.equal(mlm.decoder_bias, torch.zeros(WORDS))
    assert mlm.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    mlm.save_pretrained(tmp_path)
    assert torch.equal(M2BertModel.from_pretrained(tmp_path)(ids)[0], encoder(ids)[0])


def test_what_a_checkpoint_lacks_gets_initial_values(tmp_path: Path) -> None:
    fresh = M2BertModel(tiny_config())
    kept = {name: value for name, value in fresh.state_dict().items() if ".layer.1." not in name}
    fresh.save_pretrained(tmp_path, state_dict=kept)
    loaded = M2BertModel.from_pretrained(tmp_path).state_dict()
    for name, value in fresh.state_dict().items():
        if ".layer.1." not in name or re.search(r"\.(z|t|deltas|freq|layernorm\.\w+|linear\.bias)$", name):
            assert torch.equal(loaded[name], value), name
        else:  # drawn again from the same distribution
            assert loaded[name].std().item() == pytest.approx(value.std().item(), rel=0.4), name


def test_filters_stay_float32_in_a_16_bit_model(tmp_path: Path) -> None:
    model, ids = tiny(), words(2, 20)
    model.save_pretrained(tmp_path)
    loaded = M2BertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in loaded.encoder.layer[0].attention.filter_fn.state_dict().values()} == {torch.float32}
    assert loaded.encoder.layer[0].attention.in_linear.weight.dtype == torch.bfloat16
    assert loaded(ids).last_hidden_state.dtype == torch.bfloat16
    assert relative_error(loaded(ids)[0], model(ids)[0]) < 8 * torch.finfo(torch.bfloat16).eps


def test_resized_vocabulary() -> None:
    model, ids = lively(M2BertForMaskedLM(tiny_config())), words(2, 9)
    with torch.no_grad():
        model.decoder_bias.normal_()
    before = model(ids).logits
    model.resize_token_embeddings(WORDS + 12, mean_resizing=False)
    assert model(ids).logits.shape == (2, 9, WORDS + 12)
    torch.testing.assert_close(model(ids).logits[..., :WORDS], before)
    assert model.config.vocab_size == WORDS + 12
    model.resize_token_embeddings(WORDS - 50)
    assert model(words(2, 9) % 50).logits.shape == (2, 9, WORDS - 50)


# ---- published checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture
def published() -> tuple[dict, dict[str, Tensor]]:
    """Options and weights of one of the small recordings under tests/data."""
    stem = HERE / "data" / "parity" / "07_short_input_on_lmax256"
    with np.load(stem.with_suffix(".npz")) as stored:
        weights = {k.removeprefix("param/"): torch.from_numpy(stored[k]) for k in stored.files if k[:6] == "param/"}
    return json.loads(stem.with_suffix(".json").read_text())["config"], weights


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model.module.", "module.model."])
def test_prefixes_of_published_checkpoints(published, prefix: str) -> None:
    options, weights = published
    config = config_from_official(options)
    expected = load_official(weights, config).state_dict()
    extra = {"bert.encoder.flashfft.f": torch.ones(3), "bert.embeddings.position_ids": torch.arange(256)[None]}
    loaded = load_official({prefix + k: v for k, v in (weights | extra).items()}, config)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in expected.items())
    assert not loaded.training


def test_published_checkpoints_without_aliases_or_head(published) -> None:
    """safetensors keeps one name per shared tensor; the retrieval checkpoints have no language-model head."""
    options, weights = published
    config = config_from_official(options)
    few = {k: v for k, v in weights.items() if not re.search(r"(rev\.1|[35])\.freq$", k)}
    assert len(weights) - len(few) == 2 * 2 * 5
    full = load_official(weights, config)
    assert all(torch.equal(v, full.state_dict()[k]) for k, v in load_official(few, config).state_dict().items())
    headless = load_official({k: v for k, v in few.items() if k.startswith("bert.")}, config)
    assert all(torch.equal(v, full.bert.state_dict()[k]) for k, v in headless.bert.state_dict().items())


def test_differing_frequencies_the_last_wins(published) -> None:
    options, weights = published
    key = "bert.encoder.layer.0.attention.filter_fn.implicit_filter_rev.5.freq"
    weights[key] = weights[key] + 1
    model = load_official(weights, config_from_official(options))
    assert torch.equal(model.bert.encoder.layer[0].attention.filter_fn.freq, weights[key][0])


def test_bad_checkpoints_are_refused(published) -> None:
    options, weights = published
    config = config_from_official(options)
    key = "bert.encoder.layer.1.attention.in_linear.bias"
    for change, message in (
        ({key: None}, r"missing \['bert.encoder.layer.1.attention.in_linear.bias'\]"),
        ({"bert.surplus": torch.ones(1)}, r"unknown \['bert.surplus'\]"),
        ({key: torch.ones(7)}, r"wrong shape \['bert.*in_linear.bias: \(7,\), not \(192,\)'\]"),
    ):
        changed = {k: v for k, v in (weights | change).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            load_official(changed, config)


def test_options_of_published_configurations() -> None:
    config = config_from_official({"hidden_size": 96, "long_conv_l_max": 40, "pool_all": True, "unheard_of": 3})
    assert (config.hidden_size, config.max_position_embeddings, config.pooling) == (96, 40, "mean")
    assert config.padding == "official"
    assert not hasattr(config, "unheard_of")
    assert config_from_official({}, padding="invariant").padding == "invariant"
    for options, message in (
        ({"attention_pooling": True}, "option 'attention_pooling' must be False, got True"),
        ({"sequence_token_planting": True}, "option 'sequence_token_planting' must be False, got True"),
        ({"monarch_mixer_sequence_mixing": False}, "option 'monarch_mixer_sequence_mixing' must be True, got False"),
        ({"long_conv_l_max": 40, "max_position_embeddings": 80}, "'long_conv_l_max' must be .*=80, got 40"),
    ):
        with pytest.raises(ValueError, match=message):
            config_from_official(options)


def test_every_published_key_is_converted_or_skipped_on_purpose(request: pytest.FixtureRequest) -> None:
    table = parity_dir(request.config) / "state_dict_80M_2k.tsv"
    if not table.exists():
        pytest.skip("the parity folder has no state_dict_80M_2k.tsv, the list of keys of a published checkpoint")
    rows = [line.split("\t")[:2] for line in table.read_text().splitlines()[1:]]
    shapes = {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, shape in rows}
    skipped = {key for key in shapes if own_name(key) is None}
    assert skipped == {
        "bert.embeddings.position_ids",
        "classifier.weight",
        "classifier.bias",
        "cls.predictions.decoder.weight",
    }
    with torch.device("meta"):
        model = M2BertForMaskedLM(M2BertConfig.preset("m2-bert-80m-2k"))
        converted = convert_official({key: torch.empty(shape) for key, shape in shapes.items()})
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in converted.items()} == own
    parameters = {name for name, _ in model.named_parameters()}
    kinds = {line.split("\t")[0]: line.split("\t")[3] for line in table.read_text().splitlines()[1:]}
    assert {own_name(key) for key, kind in kinds.items() if kind.startswith("parameter")} - {None} == parameters
