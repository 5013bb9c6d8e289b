"""The filters of M2-BERT: spectra kept between calls, for as long as the filter is what it was."""

from __future__ import annotations

import copy
import io
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from tiny_m2bert import tiny, words

from monarch_ops import fft_length
from monarch_ops.m2bert import model as m2bert_model
from monarch_ops.m2bert.filters import SpectrumCache
from monarch_ops.nn import HyenaFilter

pytestmark = pytest.mark.one_thread


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


def test_threads_share_a_cache_that_evicts(cache: SpectrumCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds one spectrum less than they use, so what one looks up another throws away."""
    with torch.no_grad():
        made = {n: cache.filter.spectrum(n, torch.float32) for n in (64, 128, 256)}
    monkeypatch.setattr(cache.filter, "spectrum", lambda seqlen, dtype: made[seqlen])
    cache.max_bytes = sum(s.data.nbytes for s in made.values()) - 1

    @torch.no_grad()
    def work(seed: int) -> None:
        for n in torch.tensor(list(made))[torch.randint(3, (4000,), generator=torch.Generator().manual_seed(seed))]:
            assert cache(int(n), torch.float32) is made[int(n)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


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


def change_through_data(filter: HyenaFilter) -> None:
    """As averaged weights are often swapped in; no counter sees it."""
    filter.freq.data.copy_(2 * filter.freq.data)


def change_through_numpy(filter: HyenaFilter) -> None:
    filter.t.numpy()[:] *= 2


def replace_through_data(filter: HyenaFilter) -> None:
    """The old memory is free for the new tensor, whose address and number of changes may then be the old ones."""
    shape = filter.mlp[1].weight.shape
    filter.mlp[1].weight.data = torch.empty(0)
    filter.mlp[1].weight.data = torch.rand(shape)


def round_to_half(filter: HyenaFilter) -> None:
    filter.half().float()


def step_of_training(filter: HyenaFilter) -> None:
    optimizer = torch.optim.AdamW(filter.parameters(), lr=0.1)
    with torch.enable_grad():
        filter.spectrum(30).data.square().sum().backward()
    optimizer.step()


CHANGES = (change_in_place, change_one_value, change_buffer, load_state, replace_parameter, change_through_data,
           change_through_numpy, replace_through_data, round_to_half, step_of_training)  # fmt: skip


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
def test_changes_that_a_gpu_does_not_count_need_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of mode, which is what an evaluation begins with, or asking for it; nothing is compared there."""
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    model, ids = tiny(), words(2, 20)
    for forget in (model.eval, lambda: model.train().eval(), model.clear_filter_cache):
        for attention in (layer.attention for layer in model.encoder.layer):
            before = model(ids).pooler_output
            attention.filter_fn.bias.data.add_(1)
            attention.filter_fn2.bias.data.add_(1)
            assert (model(ids).pooler_output == before).all()
            forget()
            assert not (model(ids).pooler_output == before).all()


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
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert not loaded.encoder.layer[0].attention._spectrum._kept
    assert torch.equal(loaded(ids).last_hidden_state, first)
    model.encoder.layer[0].attention.filter_fn.bias.add_(1)
    assert not torch.equal(model(ids).last_hidden_state, first)
