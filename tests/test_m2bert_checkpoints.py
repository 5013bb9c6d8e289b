"""M2-BERT on disk: saving, loading and sharing as transformers does it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tolerance import relative_error

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from tiny_m2bert import CLASSES, WORDS, lively, tiny, tiny_config, words
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from monarch_ops.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

pytestmark = pytest.mark.one_thread
AUTO = dict(zip(CLASSES, (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification), strict=True))


@pytest.mark.parametrize("made", CLASSES)
@torch.no_grad()
def test_round_trip(tmp_path: Path, made) -> None:
    options = {"pooling": "mean", "hyena_w_mod": 2.0, "monarch_mlp_nblocks": 2, "num_labels": 3}
    model, ids = lively(made(tiny_config(**options))), words(2, 20)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, M2BertConfig)
    assert {name: getattr(config, name) for name in options} == options
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == dict(model.named_parameters()).keys() | dict(model.named_buffers()).keys()
    assert config.architectures == [made.__name__]
    for loader in (made, AUTO[made]):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is made
        assert not loaded.training
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        assert torch.equal(loaded(ids)[0], model(ids)[0])


@torch.no_grad()
def test_the_decoder_stays_the_word_embedding(tmp_path: Path) -> None:
    """One table in the file, and one in the model that is loaded from it."""
    lively(M2BertForMaskedLM(tiny_config())).save_pretrained(tmp_path)
    tables = [name for name, t in load_file(tmp_path / "model.safetensors").items() if t.shape == (WORDS, 64)]
    assert tables == ["bert.embeddings.word_embeddings.weight"]
    model, ids = M2BertForMaskedLM.from_pretrained(tmp_path), words(2, 9) % 50
    before = model(ids).logits
    model.get_input_embeddings().weight[70] += 1  # a word that is not in the text
    changed = (model(ids).logits != before).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == [70]


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
    again = M2BertModel.from_pretrained(tmp_path)
    assert torch.equal(again(ids)[0], encoder(ids)[0])
    assert again.pooler.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)  # the language model has none
    classifier = M2BertForSequenceClassification.from_pretrained(tmp_path, num_labels=7)
    assert torch.equal(classifier.bert(ids)[0], encoder(ids)[0])
    assert classifier(ids).logits.shape == (2, 7)


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
    expected, taps = model(ids)[0], model.encoder.layer[0].attention.filter_fn(20)[0]
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        new = AutoModel.from_config(model.config, dtype=dtype)
        same = [M2BertModel.from_pretrained(tmp_path, dtype=dtype), copy.deepcopy(model).to(dtype),
                copy.deepcopy(model).double().to("cpu", dtype)]  # fmt: skip
        for made in (new, *same):
            attention = made.encoder.layer[0].attention
            assert {t.dtype for t in attention.filter_fn.state_dict().values()} == {torch.float32}
            assert torch.equal(attention.filter_fn.z, model.encoder.layer[0].attention.filter_fn.z)
            assert attention.in_linear.weight.dtype == dtype
            assert made(ids).last_hidden_state.dtype == dtype
        for made in same:
            assert torch.equal(made.encoder.layer[0].attention.filter_fn(20)[0], taps)
            assert relative_error(made(ids)[0], expected) < 8 * torch.finfo(dtype).eps
    model.half().float()
    assert torch.equal(model.encoder.layer[0].attention.filter_fn(20)[0], taps)


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


@pytest.mark.parametrize("made", CLASSES)
def test_push_to_hub(tmp_path: Path, made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be uploaded is a whole model; the client of the hub is replaced where it would open a connection."""
    uploaded: dict[str, bytes] = {}

    def create_repo(self: HfApi, repo_id: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self: HfApi, repo_id: str, operations: list[CommitOperationAdd], **_: object) -> str:
        for each in operations:
            with each.as_file() as file:
                uploaded[each.path_in_repo] = file.read()
        return f"commit to {repo_id}"

    def no_card(*_: object, **__: object) -> None:
        raise EntryNotFoundError("README.md")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(ModelCard, "load", no_card)
    model, ids = lively(made(tiny_config())), words(2, 9)
    assert model.push_to_hub("someone/tiny") == "commit to someone/tiny"
    assert uploaded.keys() == {"config.json", "model.safetensors", "README.md"}
    assert json.loads(uploaded["config.json"])["model_type"] == "m2-bert"
    for name, content in uploaded.items():
        (tmp_path / name).write_bytes(content)
    assert torch.equal(AUTO[made].from_pretrained(tmp_path)(ids)[0], model(ids)[0])
