"""M2-BERT as a model: padding, inputs and outputs, bad input, sizes.

That its numbers are the published ones is the business of test_m2bert_parity.py; training, test_m2bert_training.py;
spectra kept between calls, test_m2bert_filters.py.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_matches, relative_error
from torch import Tensor

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from tiny_m2bert import CLASSES, LONGEST, VARIETIES, lively, padded_batch, tiny, tiny_config, words
from transformers.utils import ModelOutput

from monarch_ops import reference
from monarch_ops.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from monarch_ops.m2bert import model as m2bert_model
from monarch_ops.nn import HyenaFilter

pytestmark = pytest.mark.one_thread

ROUND_OFF = 64 * torch.finfo(torch.float32).eps  # two layers, of the greatest value

# ---- padding ---------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths of the texts of a batch and the width it is padded to."""
    lengths = draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=6))
    return lengths, draw(st.integers(max(lengths), LONGEST))


@pytest.mark.parametrize("variety", VARIETIES)
@given(batch=batches(), seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
@torch.no_grad()
def test_padding_changes_nothing(variety: str, batch: tuple[list[int], int], seed: int) -> None:
    """A text in any batch, padded to any width with anything, has the hidden states that it has alone.

    Both are as far from a float64 model as float32 makes them, on the whole and at the worst element.
    """
    torch.manual_seed(seed)
    lengths, width = batch
    model = tiny(**VARIETIES[variety])
    wide = copy.deepcopy(model).double()
    ids, mask = padded_batch(lengths, width)
    out = model(ids, mask)
    alone = [model(row[None, :n]) for row, n in zip(ids, lengths, strict=True)]
    exact = [wide(row[None, :n]) for row, n in zip(ids, lengths, strict=True)]
    ours = torch.cat([row[:n] for row, n in zip(out.last_hidden_state, lengths, strict=True)])
    states = [torch.cat([text.last_hidden_state[0] for text in texts]) for texts in (exact, alone)]
    assert_matches(ours, *states, what="hidden states")
    vectors = [torch.cat([text.pooler_output for text in texts]) for texts in (exact, alone)]
    assert_matches(out.pooler_output, *vectors, what="pooled")
    for name, here, there in (("hidden states", ours, states[1]), ("pooled", out.pooler_output, vectors[1])):
        worst = (here - there).abs().max().item()
        assert worst <= ROUND_OFF * there.abs().max().item(), f"{name}: differ by {worst:.1e}"


@torch.no_grad()
def test_nothing_at_padding_reaches_a_text() -> None:
    """Not even NaN."""
    for variety in VARIETIES.values():
        model = tiny(**variety)
        ids, mask = padded_batch([20, 7, 33], 40)
        vectors = model.embeddings.word_embeddings(ids)
        expected = model(inputs_embeds=vectors, attention_mask=mask)
        vectors[mask == 0] = torch.nan
        out = model(inputs_embeds=vectors, attention_mask=mask)
        assert torch.equal(out.last_hidden_state[mask == 1], expected.last_hidden_state[mask == 1])
        assert torch.equal(out.pooler_output, expected.pooler_output)


@torch.no_grad()
def test_official_padding_is_another_thing() -> None:
    """The comparison above notices padding tokens that take part."""
    model = tiny()
    ids, mask = padded_batch([20], 40)
    alone = model(ids[:, :20]).pooler_output
    assert relative_error(model(ids, mask).pooler_output, alone) < 1e-5
    model.config.padding = "official"
    assert relative_error(model(ids, mask).pooler_output, alone) > 1e-2
    assert torch.equal(model(ids, mask).pooler_output, model(ids).pooler_output)  # the mask is not looked at


def plain_pytorch(patch: pytest.MonkeyPatch) -> None:
    """The model on the references of the ops, which take taps where the ops take spectra."""

    def taps(self: HyenaFilter, seqlen: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
        k, k_rev = self(seqlen)
        return {"k": k, "k_rev": k_rev, "skip": self.bias}

    patch.setattr(HyenaFilter, "spectrum", taps)
    patch.setattr(m2bert_model, "m2_mixer", reference.m2_mixer)
    patch.setattr(m2bert_model, "blockdiag_glu_mlp", reference.blockdiag_glu_mlp)


@pytest.mark.parametrize("variety", VARIETIES)
@pytest.mark.parametrize("length", [1, 2, 3, LONGEST])
def test_any_length(length: int, variety: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(**VARIETIES[variety]), words(3, length)
    out = model(ids, torch.ones(3, length))
    out.pooler_output.sum().backward()
    with monkeypatch.context() as patch:
        plain_pytorch(patch)
        baseline, exact = model(ids), copy.deepcopy(model).double()(ids)
    assert_matches(out.last_hidden_state, exact.last_hidden_state, baseline.last_hidden_state, "hidden states")
    assert_matches(out.pooler_output, exact.pooler_output, baseline.pooler_output, "pooled")


def test_no_text() -> None:
    assert tiny()(words(0, 9), torch.ones(0, 9)).pooler_output.shape == (0, 64)


@torch.no_grad()
def test_token_types() -> None:
    model = tiny()
    ids = words(2, 9)
    zeros, ones = torch.zeros_like(ids), torch.ones_like(ids)
    unnamed = model(ids).pooler_output
    assert torch.equal(model(ids, token_type_ids=zeros).pooler_output, unnamed)
    assert relative_error(model(ids, token_type_ids=ones).pooler_output, unnamed) > 1e-3
    table = model.embeddings.token_type_embeddings.weight
    table[1] = table[0]
    assert torch.equal(model(ids, token_type_ids=ones).pooler_output, unnamed)


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states() -> None:
    model = tiny(num_hidden_layers=3)
    ids, mask = padded_batch([20, 13], 20)
    assert model(ids, mask).hidden_states is None
    out = model(ids, mask, output_hidden_states=True)
    assert len(out.hidden_states) == 4
    assert torch.equal(out.hidden_states[0], model.embeddings(ids, None))
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    for layer, before, after in zip(model.encoder.layer, out.hidden_states, out.hidden_states[1:], strict=False):
        assert torch.equal(layer(before, mask.sum(1)), after)
    model.config.output_hidden_states = True
    assert len(model(ids, mask).hidden_states) == 4
    assert model(ids, mask, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("made", CLASSES)
@torch.no_grad()
def test_outputs_as_in_transformers(made) -> None:
    """Tuples on request, hidden states, word vectors instead of ids."""
    model, ids = lively(made(tiny_config())), words(2, 20)
    out = model(ids, output_hidden_states=True, output_attentions=False)
    assert isinstance(out, ModelOutput)
    assert len(out.hidden_states) == 3
    as_tuple = model(input_ids=ids, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], out[0])
    vectors = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=vectors)[0], out[0])
    model.config.return_dict = False
    assert torch.equal(model(ids)[0], out[0])
    with pytest.raises(TypeError, match="position_ids"):
        model(ids, position_ids=torch.arange(20))


def test_token_classifier_sizes() -> None:
    model = M2BertForSequenceClassification(tiny_config(num_labels=5, classifier_dropout=0.3))
    assert model(words(2, 9)).logits.shape == (2, 5)
    assert model.dropout.p == 0.3
    assert M2BertForSequenceClassification(tiny_config(hidden_dropout_prob=0.2)).dropout.p == 0.2


def test_models_without_pooler() -> None:
    model = M2BertModel(tiny_config(), add_pooling_layer=False)
    assert model(words(2, 9)).pooler_output is None
    assert not [name for name, _ in M2BertForMaskedLM(tiny_config()).named_parameters() if "pooler" in name]


# ---- bad input -------------------------------------------------------------------------------------------------------


def mask_with(row: list[int]) -> Tensor:
    return torch.tensor([[1, 1, 1, 1], row])


BAD_INPUTS = {
    "left-padding": (
        lambda: {"input_ids": words(2, 4), "attention_mask": mask_with([0, 1, 1, 1])},
        r"right padding\), got a zero before a one in row 1",
    ),
    "hole": (
        lambda: {"input_ids": words(2, 4), "attention_mask": mask_with([1, 0, 1, 1])},
        r"right padding\), got a zero before a one in row 1",
    ),
    "no-token": (
        lambda: {"input_ids": words(2, 4), "attention_mask": mask_with([0, 0, 0, 0])},
        r"ones followed by zeros.*got zeros only \(a text without a token\) in row 1",
    ),
    "mask-shape": (
        lambda: {"input_ids": words(2, 5), "attention_mask": mask_with([1, 1, 1, 1])},
        r"'attention_mask' must have .* \(2, 5\), got \(2, 4\)",
    ),
    "too-long": (
        lambda: {"input_ids": words(1, 65)},
        r"'input_ids' must have shape \(B, L\) with 1 <= L <= 64, got \(1, 65\); .*warm_start makes",
    ),
    "empty-text": (lambda: {"input_ids": words(1, 0)}, r"1 <= L <= 64, got \(1, 0\)$"),
    "rank": (lambda: {"input_ids": words(7)}, r"'input_ids' must have shape \(B, L\) .*got \(7,\)$"),
    "dtype": (lambda: {"input_ids": words(1, 7).float()}, r"'input_ids' must be int64 or int32, got torch.float32"),
    "nothing": (dict, r"one of the arguments \['input_ids', 'inputs_embeds'\] is needed, got 0"),
    "both": (
        lambda: {"input_ids": words(1, 7), "inputs_embeds": torch.ones(1, 7, 64)},
        r"one of the arguments \['input_ids', 'inputs_embeds'\] is needed, got 2",
    ),
    "width": (
        lambda: {"inputs_embeds": torch.ones(1, 7, 63)},
        r"'inputs_embeds' must have shape \(B, L, 64\) with 1 <= L <= 64, got \(1, 7, 63\)$",
    ),
    "vectors-dtype": (
        lambda: {"inputs_embeds": torch.ones(1, 7, 64, dtype=torch.long)},
        "'inputs_embeds' must be floating, got torch.int64",
    ),
    "vectors-too-long": (lambda: {"inputs_embeds": torch.ones(1, 65, 64)}, r"got \(1, 65, 64\); .*warm_start"),
    "attentions": (
        lambda: {"input_ids": words(1, 7), "output_attentions": True},
        "'output_attentions' must be false",
    ),
}


@pytest.mark.parametrize("made", CLASSES)
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused(name: str, made) -> None:
    inputs, message = BAD_INPUTS[name]
    for options in ({}, {"padding": "official"}, {"pooling": "mean", "padding": "official"}):
        with pytest.raises(ValueError, match=message):
            made(tiny_config(**options))(**inputs())


def test_an_untied_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="'tie_word_embeddings' must be True, got False"):
        M2BertForMaskedLM(tiny_config(tie_word_embeddings=False))


def test_int32_ids_are_welcome() -> None:
    model, ids = tiny(), words(2, 9)
    assert torch.equal(model(ids.int()).pooler_output, model(ids).pooler_output)


# ---- sizes -----------------------------------------------------------------------------------------------------------

COUNTED = {
    "m2-bert-80m-128": 80_235_264,
    "m2-bert-80m-2k": 81_940_224,
    "m2-bert-80m-8k": 87_396_096,
    "m2-bert-80m-32k": 109_219_584,
}


@pytest.mark.parametrize("name", COUNTED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = M2BertModel(M2BertConfig.preset(name))
    assert sum(p.numel() for p in model.parameters()) == COUNTED[name]


@pytest.mark.parametrize(("size", "hidden"), [("80m", 768), ("110m", 960), ("260m", 1536), ("341m", 1792)])
@pytest.mark.parametrize(("length", "tokens"), [("128", 128), ("2k", 2048), ("8k", 8192), ("32k", 32768)])
def test_presets(size: str, hidden: int, length: str, tokens: int) -> None:
    config = M2BertConfig.preset(f"m2-bert-{size}-{length}", pooling="mean")
    assert (config.hidden_size, config.intermediate_size) == (hidden, 4 * hidden)
    assert (config.max_position_embeddings, config.num_hidden_layers, config.pooling) == (tokens, 12, "mean")


@pytest.mark.parametrize("name", ["", "m2-bert", "m2-bert-80m", "m2-bert-80m-4k", "80m-2k", "m2-bert-90m-2k"])
def test_unknown_presets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'name' must be one of .*m2-bert-80m-32k.*, got '{name}'"):
        M2BertConfig.preset(name)


@pytest.mark.parametrize("option", ["pooling", "padding", "hidden_act"])
def test_unknown_options_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"'{option}' must be one of .*, got 'other'"):
        M2BertConfig(**{option: "other"})


def test_a_model_without_data_gives_shapes() -> None:
    model = tiny().to("meta")
    ids, mask = (t.to("meta") for t in padded_batch([9, 4], 9))
    for training in (True, False):
        with torch.set_grad_enabled(training):
            out = model.train(training)(ids, mask)
        assert out.last_hidden_state.shape == (2, 9, model.config.hidden_size)
        assert out.pooler_output.device.type == "meta"
