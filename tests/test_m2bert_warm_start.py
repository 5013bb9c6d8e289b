"""Models for longer inputs made of models for shorter ones: what must stay the same does, and the rest is as said."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from tolerance import assert_matches, relative_error
from torch import Tensor

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from tiny_m2bert import CLASSES, LONGEST, VARIETIES, lively, padded_batch, tiny, tiny_config, tiny_loss, words

from monarch_ops.m2bert import M2BertConfig, M2BertModel, warm_start
from monarch_ops.nn import HyenaFilter

pytestmark = pytest.mark.one_thread
LONGER = 150  # no multiple of LONGEST


@pytest.mark.parametrize("features", ["tile", "continue"])
@pytest.mark.parametrize("variety", VARIETIES)
def test_short_inputs_keep_their_outputs(variety: str, features: str) -> None:
    """With the decay per token: the same numbers for the same filters, round-off apart where spectra are shared."""
    model = tiny(**VARIETIES[variety])
    longer = warm_start(model, LONGER, decay="tokens", features=features)
    wide = copy.deepcopy(model).double()
    for length in (1, 2, 37, LONGEST):
        ids, mask = padded_batch([length, (length + 1) // 2], length)
        ours, old = longer(ids, mask), model(ids, mask)
        assert torch.equal(ours.last_hidden_state, old.last_hidden_state)
        assert torch.equal(ours.pooler_output, old.pooler_output)
        with torch.no_grad():
            texts = [each(ids, mask).pooler_output for each in (longer, wide, model)]
        assert_matches(*texts, what="pooled")


def test_padding_as_published_is_to_the_old_length() -> None:
    model = tiny(padding="official")
    longer = warm_start(model, LONGER, decay="tokens")
    ids, mask = padded_batch([20], LONGEST)
    assert torch.equal(longer(ids, mask).pooler_output, model(ids, mask).pooler_output)
    further = torch.nn.functional.pad(ids, (0, LONGER - LONGEST))
    assert relative_error(longer(further).pooler_output, model(ids).pooler_output) > 1e-3


@torch.no_grad()
def test_a_stretched_decay_changes_what_it_must() -> None:
    """Old features and MLPs, so every tap is the old one but for its window; lag 0 has none."""
    model = tiny()
    longer = warm_start(model, LONGER)  # the default, as published
    one, ids = words(3, 1), words(3, LONGEST)
    with torch.enable_grad():  # spectra of the text's own length
        assert torch.equal(longer(one).pooler_output, model(one).pooler_output)
    assert relative_error(longer(ids).pooler_output, model(ids).pooler_output) > 1e-3
    old, new = (m.encoder.layer[1].attention.filter_fn for m in (model, longer))
    lag = torch.arange(LONGEST, dtype=torch.float64)
    slower = torch.exp(old.deltas.double().abs()[:, None] * lag * (1 / (LONGEST - 1) - 1 / (LONGER - 1)))
    for ours, theirs in zip(new(LONGEST), old(LONGEST), strict=True):
        assert relative_error(ours, theirs * slower) < 1e-5
    for each in (model, longer):  # without a window nothing is left that could differ
        for module in each.modules():
            if isinstance(module, HyenaFilter):
                module.deltas.zero_()
    with torch.enable_grad():
        assert torch.equal(longer(ids).pooler_output, model(ids).pooler_output)


def trained(filter: HyenaFilter) -> HyenaFilter:
    """Features off their formula, times of another scale."""
    with torch.no_grad():
        filter.z += 0.1 * torch.randn(filter.z.shape)
        filter.t.mul_(1.5).add_(0.25)
    return filter


@pytest.mark.parametrize("decay", ["tokens", "stretch"])
@pytest.mark.parametrize("features", ["tile", "continue"])
def test_features_and_times(features: str, decay: str) -> None:
    old = trained(HyenaFilter(6, 40, order=8))
    new = copy.deepcopy(old)
    new.extend(100, decay, features)
    assert torch.equal(new.z[:40], old.z)
    if features == "tile":
        assert torch.equal(new.z[40:80], old.z)
        assert torch.equal(new.z[80:], old.z[:20])
    else:  # the formulas of the initial features, at lags 40 to 99 of a filter for 40
        n = torch.arange(40, 100, dtype=torch.float64)
        band = torch.tensor([1e-4, 1.0], dtype=torch.float64)
        angle = 2 * torch.pi * n[:, None] * band / 40
        expected = torch.cat([n[:, None] / 39, angle.cos(), -angle.sin()], 1)
        torch.testing.assert_close(new.z[40:], expected.float())
    step = 1.5 / (39 if decay == "tokens" else 99)
    torch.testing.assert_close(new.t, 0.25 + step * torch.arange(100))
    if decay == "tokens":
        assert torch.equal(new.t[:40], old.t)
    else:
        assert new.t[-1] == old.t[-1]
    k, k_rev = new(100)
    assert k.shape == k_rev.shape == (6, 100)


def test_initial_features_continue_what_they_were() -> None:
    """In one step or in two: a filter that is extended twice still has the features of its first length."""
    once, twice = HyenaFilter(6, 40, order=8), HyenaFilter(6, 40, order=8)
    twice.extend(70)
    twice.extend(100)
    once.extend(100)
    assert torch.equal(once.z, twice.z)
    torch.testing.assert_close(once.t, twice.t)
    fresh = HyenaFilter(6, 100, order=8, base_len=40)
    assert torch.equal(fresh.z, once.z)


@torch.no_grad()
def test_position_embeddings_are_tiled() -> None:
    model = tiny()
    longer = warm_start(model, LONGER)
    rows = longer.embeddings.position_embeddings.weight
    old = model.embeddings.position_embeddings.weight
    assert rows.shape == (LONGER, 64)
    assert all(torch.equal(rows[n], old[n % LONGEST]) for n in range(LONGER))


def test_published_sizes() -> None:
    """The 8k preset becomes as large as the 32k one."""
    with torch.device("meta"):
        model, other = (M2BertModel(M2BertConfig.preset(f"m2-bert-80m-{length}")) for length in ("8k", "32k"))
        longer = warm_start(model, 32768)
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (longer, other)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("made", CLASSES)
def test_a_whole_new_model(made, tmp_path: Path) -> None:
    """It takes long inputs, trains, is saved and loaded; the old model is as it was."""
    model = lively(made(tiny_config()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    longer = warm_start(model, LONGER, decay="tokens", features="continue")
    assert type(longer) is made
    assert not longer.training
    ids = words(2, LONGER)
    with pytest.raises(ValueError, match=r"1 <= L <= 64, got \(2, 150\)"):
        model(ids)
    tiny_loss(longer, ids).backward()
    assert [name for name, p in longer.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        for parameter in longer.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.config.max_position_embeddings, model.config.filter_base_length) == (LONGEST, None)
    longer.save_pretrained(tmp_path)
    loaded = made.from_pretrained(tmp_path)
    assert (loaded.config.max_position_embeddings, loaded.config.filter_base_length) == (LONGER, LONGEST)
    assert torch.equal(loaded(ids)[0], longer(ids)[0])
    again, direct = (warm_start(m, 2 * LONGER, "tokens", "continue").state_dict() for m in (loaded, longer))
    assert all(torch.equal(value, direct[name]) for name, value in again.items())


def test_what_is_frozen_stays_frozen() -> None:
    model = tiny().train()
    filter = model.encoder.layer[0].attention.filter_fn
    for parameter in (filter.z, model.embeddings.position_embeddings.weight):
        parameter.requires_grad_(False)
    longer = warm_start(model, LONGER)
    assert longer.training
    frozen = {name for name, p in longer.named_parameters() if not p.requires_grad}
    assert frozen == {"embeddings.position_embeddings.weight", "encoder.layer.0.attention.filter_fn.z"}


@torch.no_grad()
def test_spectra_of_the_old_model_are_not_used() -> None:
    model, ids = tiny(), words(2, LONGEST)
    model(ids)
    longer = warm_start(model, LONGER)
    with torch.enable_grad():
        expected: Tensor = longer(ids).last_hidden_state
    torch.testing.assert_close(longer(ids).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": LONGEST}, "'to' must be larger than 64, the longest input so far, got 64"),
        ({"to": 10}, "'to' must be larger than 64, .* got 10"),
        ({"to": 128, "decay": "token"}, "'decay' must be one of ('tokens', 'stretch'), got 'token'"),
        ({"to": 128, "features": "zero"}, "'features' must be one of ('continue', 'tile'), got 'zero'"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    pattern = message if ".*" in message else re.escape(message)
    with pytest.raises(ValueError, match=pattern):
        warm_start(M2BertModel(tiny_config()), **arguments)
