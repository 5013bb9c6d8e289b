"""M2-BERT as a model: padding, inputs and outputs, bad input, spectra kept between calls, sizes.

That its numbers are the published ones is the business of test_m2bert_parity.py; training, test_m2bert_training.py.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_matches, relative_error
from torch import Tensor, nn

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from tiny_m2bert import CLASSES, LONGEST, VARIETIES, lively, padded_batch, tiny, tiny_config, words
from transformers.utils import ModelOutput

from monarch_ops import fft_length, reference
from monarch_ops.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from monarch_ops.m2bert import model as m2bert_model
from monarch_ops.m2bert.filters import SpectrumCache
from monarch_ops.nn import HyenaFilter

pytestmark = pytest.mark.usefixtures("one_thread")

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
        r"ones followed by zeros.*got zeros only in row 1",
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


# ---- spectra kept between calls --------------------------------------------------------------------------------------


@pytest.fixture
def cache() -> SpectrumCache:
    return SpectrumCache(HyenaFilter(5, 400, order=8).eval())


def assert_fresh(cache: SpectrumCache) -> None:
    """What the cache returns now is what the filter makes now."""
    length = min(fft_length(30), cache.filter.max_len)
    assert torch.equal(cache(30, torch.float32).data, cache.filter.spectrum(length, torch.float32).data)


@torch.no_grad()
def test_spectrum_is_kept(cache: SpectrumCache) -> None:
    first = cache(30, torch.float32)
    assert cache(30, torch.float32) is first
    assert cache(fft_length(30), torch.float32) is first
    assert cache(fft_length(30) + 1, torch.float32) is not first
    assert cache(30, torch.float32) is first
    assert cache(30, torch.float64).dtype == torch.float64
    assert_fresh(cache)


@torch.no_grad()
def test_kept_spectra_are_bounded(cache: SpectrumCache) -> None:
    lengths = (10, 300, 400)  # 400 is the filter's own length, below the points of its transform
    kept = [cache(n, torch.float32) for n in lengths]
    assert len({s.seqlen for s in kept}) == 3
    assert kept[2].seqlen == 400
    cache.max_bytes = sum(s.data.nbytes for s in kept[1:])
    assert cache(400, torch.float32) is kept[2]
    assert cache(300, torch.float32) is kept[1]
    assert cache(10, torch.float32) is not kept[0]  # the oldest had to go
    cache.max_bytes = kept[1].data.nbytes - 1
    assert cache(300, torch.float32) is not cache(300, torch.float32)
    assert not cache._kept


@torch.no_grad()
def test_texts_of_mixed_lengths_share_filters() -> None:
    model, ids = tiny(max_position_embeddings=200), words(1, 200)
    lengths = (70, 90, 100, 120)
    assert len({fft_length(n) for n in lengths}) < len(lengths)
    for n in lengths:
        with torch.enable_grad():  # a filter of the text's own length
            exact = model(ids[:, :n]).last_hidden_state
        torch.testing.assert_close(model(ids[:, :n]).last_hidden_state, exact)
    caches = [m._spectrum for m in model.modules() if isinstance(m, m2bert_model.M2BertMixer)]
    assert all(len(c._kept) == len({fft_length(n) for n in lengths}) for c in caches)
    model.limit_filter_cache(0)
    model(ids)
    assert not any(c._kept for c in caches)


def test_no_spectrum_is_kept_in_training(cache: SpectrumCache) -> None:
    with torch.no_grad():
        kept = cache(30, torch.float32)
        cache.filter.train()
        assert cache(30, torch.float32) is not kept
        cache.filter.eval()
    recorded = cache(30, torch.float32)
    assert recorded is not kept
    assert cache(30, torch.float32) is not recorded
    recorded.data.sum().backward()
    assert all(p.grad is not None for p in cache.filter.parameters())


def change_in_place(filter: HyenaFilter) -> None:
    filter.bias.add_(1)


def change_one_value(filter: HyenaFilter) -> None:
    filter.z[3, 1] = 5


def change_buffer(filter: HyenaFilter) -> None:
    filter.deltas.mul_(2)


def load_state(filter: HyenaFilter) -> None:
    filter.load_state_dict({name: 2 * value for name, value in filter.state_dict().items()})


def replace_parameter(filter: HyenaFilter) -> None:
    filter.mlp_rev[0].bias = nn.Parameter(torch.ones_like(filter.mlp_rev[0].bias))


def replace_through_data(filter: HyenaFilter) -> None:
    """The old memory is free for the new tensor, whose address and number of changes may then be the old ones."""
    shape = filter.mlp[1].weight.shape
    filter.mlp[1].weight.data = torch.empty(0)
    filter.mlp[1].weight.data = torch.full(shape, 0.3)


def round_to_half(filter: HyenaFilter) -> None:
    filter.half().float()


def step_of_training(filter: HyenaFilter) -> None:
    optimizer = torch.optim.AdamW(filter.parameters(), lr=0.1)
    with torch.enable_grad():
        filter.spectrum(30).data.square().sum().backward()
    optimizer.step()


CHANGES = (change_in_place, change_one_value, change_buffer, load_state, replace_parameter, replace_through_data,
           round_to_half, step_of_training)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_changed_filter_gets_a_new_spectrum(cache: SpectrumCache, change) -> None:
    for _ in range(3):
        before = cache(30, torch.float32)
        change(cache.filter)
        assert cache(30, torch.float32) is not before
        assert_fresh(cache)


def test_filters_made_in_inference_mode_work() -> None:
    with torch.inference_mode():
        model = tiny()
        ids = words(2, 20)
        assert torch.equal(model(ids).pooler_output, model(ids).pooler_output)


@torch.no_grad()
def test_a_change_of_mode_forgets_spectra() -> None:
    """Averaged weights are often swapped in through .data, which no counter sees, and then the model is evaluated."""
    model, ids = tiny(), words(2, 20)
    before = model(ids).pooler_output
    model.encoder.layer[0].attention.filter_fn.bias.data.add_(1)
    changed = model.eval()(ids).pooler_output
    assert not torch.equal(changed, before)
    model.encoder.layer[0].attention.filter_fn2.bias.data.add_(1)
    assert not torch.equal(model.train().eval()(ids).pooler_output, changed)


@torch.no_grad()
def test_the_model_keeps_spectra_and_copies_start_without() -> None:
    model, ids = tiny(), words(2, 20)
    caches = [c for layer in model.encoder.layer for c in (layer.attention._spectrum, layer.attention._spectrum2)]
    with torch.enable_grad():
        uncached = model(ids).last_hidden_state
    assert [len(c._kept) for c in caches] == [0] * 4
    first = model(ids).last_hidden_state
    torch.testing.assert_close(first, uncached)
    assert [len(c._kept) for c in caches] == [1] * 4
    assert torch.equal(model(ids).last_hidden_state, first)
    twin = copy.deepcopy(model)
    assert not twin.encoder.layer[0].attention._spectrum._kept
    assert twin.encoder.layer[0].attention._spectrum.filter is twin.encoder.layer[0].attention.filter_fn
    assert torch.equal(twin(ids).last_hidden_state, first)
    torch.save(model, io.BytesIO())
    model.encoder.layer[0].attention.filter_fn.bias.add_(1)
    assert not torch.equal(model(ids).last_hidden_state, first)


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


@pytest.mark.parametrize("option", ["pooling", "padding"])
def test_unknown_options_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"'{option}' must be one of .*, got 'other'"):
        M2BertConfig(**{option: "other"})
