"""FilterSpectrum: what it knows, moving it, its derivatives; and what holds across threads, dtypes and compilers."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_matches, bound, relative_error

import monarch_ops as mo
from monarch_ops import reference

CPU_KERNELS = [
    v["name"]
    for v in mo.variants()
    if (v["family"], v["device"], v["compute"], v["available"]) == ("fft_conv", "cpu", "float32", True)
]


def taps(H: int, L: int):
    return torch.randn(H, L), torch.randn(H, L), torch.randn(H)


@pytest.mark.parametrize("L", [1, 2, 5, 100, 257, 1000])
def test_taps_come_back(L: int) -> None:
    k, k_rev, skip = taps(3, L)
    back, back_rev = mo.fft_filter(k, L, k_rev=k_rev[:, : L - 1], skip=skip).taps()
    full = k.clone()
    full[:, 0] += skip
    assert relative_error(back, full) < 1e-6
    if L > 1:
        assert relative_error(back_rev, k_rev[:, : L - 1]) < 1e-6
    assert relative_error(mo.fft_filter(k, L, circular=True).taps()[0], k) < 1e-6


def test_what_a_spectrum_knows() -> None:
    k, _, _ = taps(3, 50)
    s = mo.fft_filter(k, 50, dtype=torch.bfloat16)
    assert (s.seqlen, s.dtype, s.device, s.circular) == (50, torch.bfloat16, torch.device("cpu"), False)
    assert s.data.dtype == torch.float32
    assert s.data.shape[0] == 3
    assert s.variant in {v["name"] for v in mo.variants()}
    assert "seqlen=50" in repr(s)
    assert mo.fft_conv(torch.randn(2, 3, 50).bfloat16(), s).dtype == torch.bfloat16


def saved_and_loaded(spectrum: mo.FilterSpectrum) -> mo.FilterSpectrum:
    file = io.BytesIO()
    torch.save(spectrum, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("move", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), saved_and_loaded])
@pytest.mark.parametrize("variant", [None, *CPU_KERNELS])
@pytest.mark.parametrize("L", [8, 100, 3000])
def test_a_copy_keeps_the_kernel(move, variant: str | None, L: int) -> None:
    """Whatever the machine that made it would have chosen: `variant` is what that was."""
    u, k = torch.randn(2, 3, L), torch.randn(3, L)
    spectrum = mo.fft_filter(k, L, variant=variant)
    moved = move(spectrum)
    assert moved.variant == spectrum.variant == (variant or CPU_KERNELS[0])
    assert moved.variant_index == spectrum.variant_index >= 0
    assert torch.equal(mo.fft_conv(u, moved), mo.fft_conv(u, spectrum))
    assert relative_error(mo.fft_conv(u, moved), mo.fft_conv(u, k)) < 1e-5
    assert relative_error(moved.taps()[0], k) < 1e-5


def test_a_pickle_names_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    u, k = torch.randn(2, 3, 100), torch.randn(3, 100)
    state = mo.fft_filter(k, 100).__getstate__()
    assert state["variant"] == CPU_KERNELS[0]
    loaded = mo.FilterSpectrum.__new__(mo.FilterSpectrum)
    loaded.__setstate__(state | {"variant_index": 2})  # of a build with another table
    assert torch.equal(mo.fft_conv(u, loaded), mo.fft_conv(u, mo.fft_filter(k, 100)))
    for there in ("cuda", "sse9", None):  # from a GPU by map_location; from a future build; from version 0.1
        with pytest.raises(ValueError, match=rf"'variant' must be one of .*data on cpu, got .* for {there!r}"):
            loaded.__setstate__(state | {"variant": there})
    rows = [v | {"available": v["available"] and v["name"] != CPU_KERNELS[0]} for v in mo.variants()]
    monkeypatch.setattr(importlib.import_module("monarch_ops.ops.fft_filter"), "variants", lambda **_: rows)
    with pytest.raises(ValueError, match=f"got a spectrum prepared for '{CPU_KERNELS[0]}'"):
        pickle.loads(pickle.dumps(mo.fft_filter(k, 100)))


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("precision", ["fast", "precise"])
def test_options_may_repeat_what_was_prepared(circular: bool, precision: str) -> None:
    u, k = torch.randn(2, 3, 50), torch.randn(3, 50)
    spectrum = mo.fft_filter(k, 50, circular=circular, precision=precision)
    y = mo.fft_conv(u, spectrum, circular=circular, precision=precision)
    assert torch.equal(y, mo.fft_conv(u, spectrum))
    assert relative_error(y, mo.fft_conv(u, k, circular=circular, precision=precision)) < 1e-5


def test_moving_to_another_dtype() -> None:
    k, k_rev, skip = taps(3, 50)
    u = torch.randn(2, 3, 50)
    s = mo.fft_filter(k, 50, k_rev=k_rev, skip=skip)
    exact = reference.fft_conv(u.double(), k.double(), k_rev=k_rev.double(), skip=skip.double())
    half = s.to(dtype=torch.bfloat16)
    assert half.data.data_ptr() == s.data.data_ptr()
    wide = s.to(dtype=torch.float64)
    assert wide.data.dtype == torch.float64
    limit = bound(reference.fft_conv(u, k, k_rev=k_rev, skip=skip), exact)
    assert relative_error(mo.fft_conv(u.double(), wide), exact) < 2 * limit
    assert relative_error(mo.fft_conv(u, wide.to(dtype=torch.float32)), exact) < 3 * limit


def test_moving_keeps_the_graph() -> None:
    k = torch.randn(2, 30, requires_grad=True)
    wide = mo.fft_filter(k, 30).to(dtype=torch.float64)
    mo.fft_conv(torch.randn(1, 2, 30, dtype=torch.float64), wide).sum().backward()
    assert k.grad is not None
    assert k.grad.abs().sum() > 0


@pytest.mark.parametrize("L", [1, 3, 50, 99, 127])
@pytest.mark.parametrize("prepared", [127, 128, 2000])
def test_a_filter_serves_shorter_rows(L: int, prepared: int) -> None:
    k, k_rev, skip = taps(3, prepared)
    u, grad = torch.randn(2, 3, L, requires_grad=True), torch.randn(2, 3, L)
    lengths = torch.tensor([L, (L + 1) // 2])
    sides = {"k_rev": k_rev[:, : prepared - 1], "skip": skip}
    wide = {name: t.double() for name, t in sides.items()}
    ours = mo.fft_conv(u, mo.fft_filter(k, prepared, **sides), lengths=lengths)
    exact = reference.fft_conv(u.double(), k.double(), **wide, lengths=lengths)
    rounded = reference.fft_conv(u, k, **sides, lengths=lengths)
    # rounding is relative to the whole filter, of which a short row sees a part
    limit = bound(rounded, exact) * (prepared / L) ** 0.5
    assert relative_error(ours, exact) < limit
    gradients = [torch.autograd.grad(y, u, grad.to(y.dtype))[0] for y in (ours, exact)]
    assert relative_error(*gradients) < 2 * limit


def test_a_spectrum_at_any_address() -> None:
    """Kernels read it in vectors; a view into a larger tensor need not lie where those may."""
    u, k = torch.randn(2, 3, 100), torch.randn(3, 100)
    spectrum = mo.fft_filter(k, 100)
    data = spectrum.data
    shifted = torch.empty(data.numel() + 1)[1:].view(data.shape).copy_(data)
    moved = torch.ops.monarch_ops.fft_conv_spectrum(u, shifted, None, None, None, 100)
    torch.testing.assert_close(moved, mo.fft_conv(u, spectrum), rtol=0, atol=0)


def test_lengths_that_share_a_filter() -> None:
    lengths = [mo.fft_length(n) for n in range(1, 3000)]
    assert all(a >= n for n, a in enumerate(lengths, 1))
    assert lengths == sorted(lengths)
    assert len(set(lengths)) < 20
    assert all(mo.fft_length(points) == points for points in lengths)


@pytest.mark.parametrize("circular", [False, True])
def test_filter_derivatives(circular: bool) -> None:
    k = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(2, dtype=torch.float64, requires_grad=True)
    k_rev = None if circular else torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    inputs = (k, skip) if circular else (k, skip, k_rev)

    def spectrum(k, skip, k_rev=None):
        return mo.fft_filter(k, 6, k_rev=k_rev, skip=skip, circular=circular).data

    assert torch.autograd.gradcheck(spectrum, inputs)
    assert torch.autograd.gradgradcheck(spectrum, inputs)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 5),
    H=st.integers(1, 5),
    L=st.integers(1, 700),
    fraction=st.floats(0.01, 1.5),
    reverse=st.booleans(),
    gates=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    prepared=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(B, H, L, fraction, reverse, gates, dtype, prepared, transposed, seed) -> None:
    torch.manual_seed(seed)
    Lk = max(1, int(fraction * L))
    u, pre, post = torch.randn(3, B, H, L).to(dtype).unbind()
    if transposed:
        u = u.transpose(1, 2).contiguous().transpose(1, 2)
    k, lengths = torch.randn(H, Lk), torch.randint(0, L + 1, (B,))
    extra = {"pre_gate": pre, "post_gate": post, "lengths": lengths} if gates else {}
    filters = {"k_rev": torch.randn(H, Lk), "skip": torch.randn(H)} if reverse else {}
    y = (
        mo.fft_conv(u, mo.fft_filter(k, L, dtype=dtype, **filters), **extra)
        if prepared
        else mo.fft_conv(u, k, **filters, **extra)
    )

    def definition(wide):
        cast = {n: t.to(wide) if t.is_floating_point() else t for n, t in (filters | extra).items()}
        return reference.fft_conv(u.to(wide), k.to(wide), **cast)

    assert_matches(y, definition(torch.float64), definition(torch.float32).to(dtype))


def test_threads_do_not_change_the_result() -> None:
    """Neither the number of threads inside an op nor several callers at once."""
    u, k = torch.randn(5, 7, 777, requires_grad=True), torch.randn(7, 777, requires_grad=True)

    def run():
        y = mo.fft_conv(u, k)
        return (y, *torch.autograd.grad(y.square().sum(), (u, k)))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = run()
        torch.set_num_threads(4)
        several = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(single, several, strict=True))

    results: list = [None] * 6
    lengths = [100, 777, 1024, 777, 100, 333]

    def caller(i: int) -> None:
        results[i] = mo.fft_conv(u[..., : lengths[i]].detach(), k.detach())

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for L, y in zip(lengths, results, strict=True):
        assert torch.equal(y, mo.fft_conv(u[..., :L].detach(), k.detach()))


def test_autocast() -> None:
    u, k = torch.randn(2, 3, 64), torch.randn(3, 64)
    x, w = torch.randn(4, 8), torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = mo.fft_conv(u, k, post_gate=u), mo.depthwise_conv1d(u, k[:, :3])
        assert y.dtype == z.dtype == mo.blockdiag_matmul(x, w).dtype == torch.bfloat16
        assert mo.monarch_matmul(x, w, torch.randn(2, 3, 3)).dtype == torch.bfloat16
        assert mo.blockdiag_glu_mlp(x, torch.randn(2, 4, 4), torch.randn(2, 4, 2)).dtype == torch.bfloat16
        spectrum = mo.fft_filter(k, 64)
        mixed = mo.m2_mixer(torch.randn(2, 9, 64), u, torch.randn(9, 3), None, spectrum, spectrum)
        assert mo.fft_conv(u, spectrum).dtype == mixed.dtype == torch.bfloat16
        assert mo.fft_conv(u.double(), k).dtype == torch.float64
    # the taps keep their precision: the result is that of bfloat16 rows with the float32 filter
    assert torch.equal(y, mo.fft_conv(u.bfloat16(), k, post_gate=u.bfloat16()))
    with torch.autocast("cpu", torch.float16):
        assert mo.fft_conv(u, k).dtype == torch.float16
    leaf = u.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        mo.fft_conv(leaf, k).float().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float32


def test_compiled_with_dynamic_shapes() -> None:
    torch._dynamo.reset()
    k = torch.randn(3, 100)

    def function(u, n):
        return mo.fft_conv(torch.tanh(u), k, lengths=n) + mo.depthwise_conv1d(u, k[:, :3], activation="silu")

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for B, L in ((2, 40), (3, 51), (5, 100)):
        u, n = torch.randn(B, 3, L), torch.randint(0, L + 1, (B,))
        torch.testing.assert_close(compiled(u, n), function(u, n))


def test_compiled_questions_to_the_kernel_table() -> None:
    """Which kernel, how many points: of the extension module, into which no compiler looks."""
    torch._dynamo.reset()
    k, variant = torch.randn(3, 100), CPU_KERNELS[-1]

    def function(u):
        points = mo.fft_length(u.shape[-1])
        spectrum = mo.fft_filter(k, points, variant=variant)
        free = mo.fft_conv(u, mo.fft_filter(k, u.shape[-1]))
        forced = mo.fft_conv(u, k, variant=variant) + mo.depthwise_conv1d(u, k[:, :3], variant=variant)
        return free + forced + mo.fft_conv(u, spectrum) * points

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for L in (40, 51, 100):
        u = torch.randn(2, 3, L)
        torch.testing.assert_close(compiled(u), function(u))


@pytest.mark.filterwarnings("error:Dynamo")
def test_a_compiled_mixer_takes_kept_and_new_spectra() -> None:
    torch._dynamo.reset()
    k, short, kept = torch.randn(3, 40), torch.randn(9, 3), mo.fft_filter(torch.randn(3, 40), 40)

    def function(a):
        return mo.m2_mixer(a, a[:, :3], short, None, kept, mo.fft_filter(k, 40))

    a = torch.randn(2, 9, 40)
    torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(a), function(a))


def test_exported() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = torch.nn.Parameter(torch.randn(3, 40))
            self.w = torch.nn.Parameter(torch.randn(4, 10, 10))

        def forward(self, u):
            y = mo.fft_conv(u, mo.fft_filter(self.k, 40), pre_gate=u)
            return mo.blockdiag_matmul(y, self.w)

    model, u = Model(), torch.randn(2, 3, 40)
    program = torch.export.export(model, (u,))
    torch.testing.assert_close(program.module()(u), model(u))
    assert "monarch_ops.fft_conv_spectrum" in str(program.graph)


def variants_in(program: torch.export.ExportedProgram, op: str) -> list[int]:
    found = [node for node in program.graph.nodes if str(node.target) == f"monarch_ops.{op}.default"]
    schema = [argument.name for argument in getattr(torch.ops.monarch_ops, op).default._schema.arguments]
    return [dict(zip(schema, node.args, strict=False)).get("variant", -1) for node in found]


@pytest.mark.parametrize("strict", [False, True])
def test_exported_spectra_name_their_kernel(strict: bool) -> None:
    """... but not those that are prepared on the machine where the program runs."""

    class Holds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spectrum = mo.fft_filter(torch.randn(3, 100), 100)

        def forward(self, u):
            return mo.fft_conv(u, self.spectrum)

    class Makes(torch.nn.Module):
        def forward(self, u):
            return mo.fft_conv(u, mo.fft_filter(u[0], 100))

    held, made = (torch.export.export(m, (torch.randn(2, 3, 100),), strict=strict) for m in (Holds(), Makes()))
    assert variants_in(held, "fft_conv_spectrum") == [mo.fft_filter(torch.randn(3, 100), 100).variant_index] != [-1]
    assert variants_in(made, "fft_conv_spectrum") == variants_in(made, "fft_filter") == [-1]
