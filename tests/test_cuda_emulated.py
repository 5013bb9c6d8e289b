"""The CUDA kernels of the library, run on the CPU by the emulator of tests/emulator, under several schedules."""

from __future__ import annotations

import pytest
import torch
from emulator.driver import Emulator, dtype_name
from emulator.samples import (
    BATCH,
    CASES,
    PADDINGS,
    double,
    make_depthwise,
    make_mixer,
    make_rows,
    make_spectrum,
    make_taps,
    method_for,
    random,
    reference_gradients,
)
from tolerance import assert_matches, relative_error
from torch import Tensor
from torch.nn import functional as F

from monarch_ops import reference

pytestmark = pytest.mark.emulated

LENGTHS = (1, 2, 17, 48, 64, 67, 96, 100, 129, 161, 193, 257, 321, 384, 600)
# machines on which the rows of a length do not fit into a block, or the workspace does not hold all channels: shared
# memory and L2 cache, in bytes
SMALL_MACHINES = {
    (100, 232448, 4096): "chunks of channels and rows",
    (300, 3000, 16000): "head, then levels",
    (500, 4700, 40000): "backward cut otherwise than forward",
    (500, 2700, 40000): "half as many columns",
    (1000, 5500, 50000): "head, then two levels, backward too",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MACHINES = {str(n): (n, {}) for n in LENGTHS} | {
    f"{n} in {shared} bytes": (n, {"shared_memory": shared, "l2_bytes": l2}) for n, shared, l2 in SMALL_MACHINES
}
over_lengths = pytest.mark.parametrize(("seqlen", "machine"), MACHINES.values(), ids=MACHINES)
# of the batch: long rows have one
over_slices = pytest.mark.parametrize(
    ("seqlen", "machine", "slices"),
    [
        pytest.param(*given, slices, id=f"{slices}-{name}")
        for slices in (1, 2, 3)
        for name, given in MACHINES.items()
        if slices == 1 or given[1].get("shared_memory", 232448) == 232448
    ],
)
over_cases = pytest.mark.parametrize("case", CASES)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def check(got: Tensor, exact: Tensor, rounded: Tensor) -> None:
    """The policy of tolerance.py with a floor of two float32 ulps for every dtype: arithmetic is float32."""
    assert got.shape == exact.shape
    limit = 2 * relative_error(rounded, exact) + 2.5e-7
    assert relative_error(got, exact) <= limit
    shifted = exact.flatten().roll(1).view_as(exact)
    for wrong in (torch.zeros_like(exact), shifted):
        if not torch.equal(wrong, exact):
            assert relative_error(wrong, exact) > limit


# ---- FFT convolution -------------------------------------------------------------------------------------------------


def test_lengths_reach_every_radix(emulator):
    assert {emulator.module.plan(seqlen=n)["radices"][0] for n in LENGTHS} == {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24}


def test_small_machines_cut_rows(emulator):
    for n, shared, l2 in SMALL_MACHINES:
        plan = emulator.module.plan(seqlen=n, shared_memory=shared, l2_bytes=l2)
        assert plan["whole_buffers"] == (2 if n == 100 else 0)


def splits(radix: int) -> list[int]:
    """The odd factor, then twos."""
    odd = radix // (radix & -radix)
    return [odd] * (odd > 1) + [2] * ((radix & -radix).bit_length() - 1)


def reference_spectrum(emulator: Emulator, seqlen: int, k, k_rev=None, skip=None, circular=False) -> Tensor:
    """The spectrum from its definition: the filter's polynomial at the leaves of the tree of math/rightangle.h."""
    plan = emulator.module.plan(seqlen=seqlen)
    angle = torch.tensor([0.25], dtype=torch.float64)
    for radix in (split for r in plan["radices"] for split in splits(r)):
        angle = ((angle[:, None] + torch.arange(radix)) / radix).flatten()
    # in memory: nodes of 16 points, these and 16 neighbouring nodes by angle; pairs of points outermost
    by_angle = torch.tensor([int(f"{i:04b}"[::-1], 2) for i in range(16)])
    angle = angle.view(-1, 16)[:, by_angle]
    if len(angle) % 16 == 0:
        angle = angle.view(-1, 16, 16)[:, by_angle]
    angle = angle.view(-1, 8, 2).transpose(0, 1).flatten()
    taps = reference.two_sided(k, seqlen, k_rev, skip, circular)
    lag = torch.arange(-(seqlen - 1), seqlen)
    roots = torch.exp(2j * torch.pi * angle[:, None] * (lag % plan["points"]))
    weights = roots * torch.where(lag < 0, -1j, 1) / plan["points"]
    complex_dtype = torch.complex128 if k.dtype == torch.float64 else torch.complex64
    return torch.view_as_real(taps.to(complex_dtype) @ weights.T.to(complex_dtype)).flatten(1)


@over_lengths
@over_cases
def test_filter_and_adjoint(emulator, seqlen, machine, case):
    taps = make_taps(case, seqlen)
    got = emulator("filter", ["spectrum"], seqlen=seqlen, **taps, **machine)["spectrum"]
    wide = double(taps)
    leaves = {name: t for name, t in wide.items() if isinstance(t, Tensor)}
    narrow_leaves = {name: taps[name] for name in leaves}
    for t in (*leaves.values(), *narrow_leaves.values()):
        t.requires_grad_()
    exact, rounded = (reference_spectrum(emulator, seqlen, **t) for t in (wide, taps))
    check(got, exact, rounded)

    grad = random(*got.shape)
    exact_grads = torch.autograd.grad(exact, leaves.values(), grad.double())
    rounded_grads = torch.autograd.grad(rounded, narrow_leaves.values(), grad)
    names = [f"grad_{name}" for name in leaves]
    num_rev = taps["k_rev"].shape[1] if "k_rev" in taps else 0
    sizes = {"seqlen": seqlen, "num_k": taps["k"].shape[1], "num_rev": num_rev, "circular": taps["circular"]}
    got = emulator("filter_adjoint", names, spectrum=grad, **sizes, **machine)
    for name, *expected in zip(names, exact_grads, rounded_grads, strict=True):
        check(got[name], *expected)


@over_lengths
@over_cases
@over_dtypes
def test_conv(emulator, seqlen, machine, case, dtype):
    rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen)
    exact = reference.fft_conv(**double(rows), **double(taps), method=method_for(seqlen))
    rounded = reference.fft_conv(**rows, **taps)
    from_taps = emulator("conv", ["y"], dtype, **rows, **taps, **machine)["y"]
    check(from_taps, exact, rounded)
    from_spectrum = emulator(
        "conv", ["y"], dtype, **rows, spectrum=make_spectrum(emulator, seqlen, taps, machine), **machine
    )["y"]
    check(from_spectrum, exact, rounded)


@over_dtypes
def test_filter_prepared_for_longer_rows(emulator, dtype):
    rows, taps = make_rows("two-sided", 100, dtype), make_taps("two-sided", 100)
    spectrum = make_spectrum(emulator, 160, taps, {})
    got = emulator("conv", ["y"], dtype, **rows, spectrum=spectrum, prepared=160)["y"]
    check(got, reference.fft_conv(**double(rows), **double(taps)), reference.fft_conv(**rows, **taps))


@pytest.mark.parametrize("shared", [72 << 10, 40 << 10], ids=["16 columns", "8 columns"])
def test_two_outer_levels(emulator, shared):
    """The longest cut there is: a head and two levels, then two levels."""
    u, k = random(1, 1, 131072), random(1, 131072)
    plan = {"shared_memory": shared}
    assert emulator.module.plan(seqlen=131072, **plan)["radices"] == [2, 16, 16, 16, 16]
    got = emulator("conv", ["y"], u=u, k=k, **plan)["y"]
    check(got, reference.fft_conv(u.double(), k.double()), reference.fft_conv(u, k))


@pytest.mark.parametrize("seqlen", [4096, 12000, 65537, 1 << 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_long_rows(emulator, seqlen, dtype):
    """There and back by the policy of tolerance.py itself, as on a GPU: what twiddles round adds up with the levels."""
    channels = 3 if seqlen < 20_000 else 1
    rows = {name: random(2, channels, seqlen, dtype=dtype) for name in ("u", "pre_gate", "post_gate")}
    decay = torch.exp(-5 * torch.arange(seqlen) / seqlen) / seqlen**0.5
    taps = {name: random(channels, seqlen) * decay for name in ("k", "k_rev")}
    options = {"lengths": torch.tensor([seqlen, seqlen // 3])}
    exact = reference.fft_conv(**double(rows | taps), **options, method="fft")
    got = emulator("conv", ["y"], dtype, **rows, **taps, **options)["y"]
    assert_matches(got, exact, reference.fft_conv(**rows, **taps, **options))
    grad = random(2, channels, seqlen, dtype=dtype)
    exact_grads = reference_gradients(double(rows) | options, double(taps), grad.double(), "fft")
    rounded = reference_gradients(rows | options, taps, grad, "fft")
    got = emulator("backward", list(exact_grads), dtype, grad=grad, batch_slices=1, **rows, **taps, **options)
    for name in exact_grads:
        assert_matches(got[name], exact_grads[name], rounded[name], name)


@over_lengths
@over_cases
@over_dtypes
def test_backward(emulator, seqlen, machine, case, dtype):
    rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen)
    grad = random(*rows["u"].shape, dtype=dtype)
    exact = reference_gradients(double(rows), double(taps), grad.double(), method_for(seqlen))
    rounded = reference_gradients(rows, taps, grad, "fft")
    got = emulator("backward", list(exact), dtype, grad=grad, batch_slices=1, **rows, **taps, **machine)
    assert set(got) == set(exact)
    for name in exact:
        check(got[name], exact[name], rounded[name])


@over_slices
@over_cases
def test_backward_in_slices(emulator, seqlen, machine, case, slices):
    """To the spectrum, in partial sums over the batch, then to the taps, as ops/fft_conv.cpp does it."""
    rows, taps = make_rows(case, seqlen, torch.float32), make_taps(case, seqlen)
    grad = random(*rows["u"].shape)
    exact = reference_gradients(double(rows), double(taps), grad.double(), method_for(seqlen))
    rounded = reference_gradients(rows, taps, grad, "fft")
    filter_names = [f"grad_{name}" for name in ("k", "k_rev", "skip") if name in taps]
    row_names = [name for name in exact if name not in filter_names]
    num_rev = taps["k_rev"].shape[1] if "k_rev" in taps else 0
    sizes = {"seqlen": seqlen, "num_k": taps["k"].shape[1], "num_rev": num_rev, "circular": taps["circular"]}
    sources = {"from taps": taps, "from a spectrum": {"spectrum": make_spectrum(emulator, seqlen, taps, machine)}}
    for source in sources.values():
        got = emulator(
            "backward", [*row_names, "spectrum_grad"], grad=grad, batch_slices=slices, **rows, **source, **machine
        )
        partial = got.pop("spectrum_grad")
        assert partial.shape[1] == slices
        got |= emulator("filter_adjoint", filter_names, spectrum=partial.sum(1), **sizes, **machine)
        for name in exact:
            check(got[name], exact[name], rounded[name])


def test_backward_writes_only_what_is_wanted(emulator):
    """Each output alone is what it is together with all others."""
    rows, taps = make_rows("two-sided", 17, torch.float32), make_taps("two-sided", 17)
    call = {"grad": random(*rows["u"].shape), "batch_slices": 1, **rows, **taps}
    names = ["grad_u", "grad_pre_gate", "grad_post_gate", "grad_k", "grad_k_rev", "grad_skip"]
    together = emulator("backward", names, **call)
    for name in names:
        alone = emulator("backward", [name], **call)
        assert list(alone) == [name]
        assert torch.equal(alone[name], together[name])


@over_lengths
@over_dtypes
@pytest.mark.parametrize(
    ("bias", "residual", "with_lengths"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, True)],
)
def test_mixer(emulator, seqlen, machine, dtype, bias, residual, with_lengths):
    case, filters = make_mixer(seqlen, dtype, bias, residual, with_lengths)
    wide = {name: None if taps is None else double(taps) for name, taps in filters.items()}
    exact = reference.m2_mixer(**double(case), **wide, method=method_for(seqlen))
    rounded = reference.m2_mixer(**case, **filters)
    spectra = [None if taps is None else make_spectrum(emulator, seqlen, taps, machine) for taps in filters.values()]
    got = emulator("mixer", ["y"], dtype, **case, spectrum=spectra[0], residual_spectrum=spectra[1], **machine)
    check(got["y"], exact, rounded)


@pytest.mark.parametrize("bad", [-1, 18])
@pytest.mark.parametrize("function", ["conv", "backward", "mixer"])
def test_bad_length_traps(emulator, function, bad):
    lengths = torch.tensor([17, bad, 0])
    rows, spectrum = random(BATCH, 2, 17), random(2, 2 * 32)
    output, inputs = {
        "conv": ("y", {"u": rows}),
        "backward": ("grad_u", {"u": rows, "grad": rows, "batch_slices": 1}),
        "mixer": ("y", {"a": random(BATCH, 6, 17), "short_weight": random(6, 3)}),
    }[function]
    with pytest.raises(RuntimeError, match=r"__trap: thread \d+ of block \d+ at fft_rows.cuh:\d+"):
        emulator(function, [output], spectrum=spectrum, lengths=lengths, **inputs)


# ---- depthwise convolution -------------------------------------------------------------------------------------------

over_paddings = pytest.mark.parametrize(("taps", "left", "right"), PADDINGS)
over_layouts = pytest.mark.parametrize("layout", ["bhl", "blh"])


def reference_depthwise(x: Tensor, weight: Tensor, left: int, right: int, layout: str, **options) -> Tensor:
    padded = F.pad(x, (left, right) if layout == "bhl" else (0, 0, left, right))
    return reference.depthwise_conv1d(padded, weight, padding=0, layout=layout, **options)


@pytest.mark.parametrize(("taps", "left", "right"), [*PADDINGS, (1100, 1099, 0)])
@over_layouts
@over_dtypes
@pytest.mark.parametrize(("with_bias", "activation"), [(True, None), (False, "silu")])
def test_depthwise(emulator, taps, left, right, layout, dtype, with_bias, activation):
    x, weight = make_depthwise(layout, taps, 100, dtype)
    bias = random(37) if with_bias else None
    options = {"left": left, "right": right, "layout": layout, "activation": activation}
    exact = reference_depthwise(x.double(), weight.double(), bias=bias.double() if with_bias else None, **options)
    rounded = reference_depthwise(x, weight, bias=bias, **options)
    tensors = {"x": x, "weight": weight, "bias": bias}
    flags = {"channels_last": layout == "blh", "silu": activation == "silu"}
    out_len = 100 + left + right - taps + 1
    got = emulator("depthwise", ["y"], dtype, pad_left=left, out_len=out_len, **tensors, **flags)
    check(got["y"], exact, rounded)


@over_dtypes
def test_depthwise_tiles(emulator, dtype):
    """Rows longer than a block's tile, from addresses of every alignment."""
    x, weight = make_depthwise("bhl", 3, 4500, dtype)
    got = emulator("depthwise", ["y"], dtype, x=x, weight=weight, pad_left=2, out_len=4500)
    options = {"left": 2, "right": 0, "layout": "bhl"}
    check(
        got["y"],
        reference_depthwise(x.double(), weight.double(), **options),
        reference_depthwise(x, weight, **options),
    )


def check_weight_grad(emulator, layout, taps, left, right, length, dtype, channels=37, **options):
    x, weight = make_depthwise(layout, taps, length, dtype, channels)
    grad = make_depthwise(layout, taps, length + left + right - taps + 1, dtype, channels)[0]

    def gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        weight.requires_grad_()
        return torch.autograd.grad(reference_depthwise(x, weight, left, right, layout), weight, grad)[0]

    options = {"taps": taps, "pad_left": left, "channels_last": layout == "blh"} | options
    got = emulator("depthwise_weight_grad", ["weight_grad"], dtype, x=x, grad=grad, **options)
    check(got["weight_grad"], gradient(x.double(), weight.double(), grad.double()), gradient(x, weight, grad))


@pytest.mark.parametrize(("taps", "left", "right"), [*PADDINGS, (9, 8, 0), (40, 39, 0)])
@over_layouts
@over_dtypes
@pytest.mark.parametrize("slices", [1, 3])
def test_depthwise_weight_grad(emulator, taps, left, right, layout, dtype, slices):
    check_weight_grad(emulator, layout, taps, left, right, 100, dtype, slices=slices)


# rows of fewer positions than a block takes at once, and of more
@pytest.mark.parametrize(("length", "channels"), [(1000, 5), (4500, 5), (9000, 2)])
@over_layouts
@over_dtypes
def test_depthwise_weight_grad_of_long_rows(emulator, layout, dtype, length, channels):
    check_weight_grad(emulator, layout, 4, 3, 0, length, dtype, channels, slices=5)


def test_depthwise_weight_grad_of_many_channels(emulator):
    """Whose blocks have fewer threads."""
    check_weight_grad(emulator, "bhl", 4, 3, 0, 4500, torch.bfloat16, 600)


# Channels in pairs: not at all, but for rows that begin between two, in two blocks. Of nine taps, the window of a run
# ends just beyond a row of this length.
@pytest.mark.parametrize(("channels", "gap"), [(1, 3), (6, 3), (70, 2)])
@pytest.mark.parametrize("taps", [3, 9])
@over_layouts
@over_dtypes
def test_depthwise_channels(emulator, layout, dtype, channels, gap, taps):
    x, weight = make_depthwise(layout, taps, 151, dtype, channels)
    left, right = taps - 2, 3
    options = {"left": left, "right": right, "layout": layout}
    exact = reference_depthwise(x.double(), weight.double(), **options)
    flags = {"pad_left": left, "channels_last": layout == "blh", "gap": gap, "out_len": exact.numel() // 2 // channels}
    got = emulator("depthwise", ["y"], dtype, x=x, weight=weight, **flags)
    check(got["y"], exact, reference_depthwise(x, weight, **options))
    check_weight_grad(emulator, layout, taps, left, right, 151, dtype, channels, gap=gap, slices=2)


@over_layouts
def test_depthwise_meets_nothing_beyond_its_taps(emulator, layout):
    """Taps come in fours: what the fourth one of three would meet may be infinite."""
    x, weight = make_depthwise(layout, 3, 100, torch.float32)
    axis = 2 if layout == "bhl" else 1
    x.select(axis, 50).fill_(torch.inf)
    got = emulator("depthwise", ["y"], x=x, weight=weight, pad_left=2, out_len=100, channels_last=layout == "blh")
    finite = got["y"].isfinite().all(dim=0).all(dim=2 - axis)
    assert finite.nonzero().flatten().tolist() == [t for t in range(100) if t not in (50, 51, 52)]


@over_layouts
@over_dtypes
def test_depthwise_weight_grad_of_no_outputs(emulator, layout, dtype):
    x, grad = (make_depthwise(layout, 3, length, dtype)[0] for length in (2, 0))
    options = {"taps": 3, "pad_left": 0, "channels_last": layout == "blh"}
    got = emulator("depthwise_weight_grad", ["weight_grad"], dtype, x=x, grad=grad, **options)
    assert torch.equal(got["weight_grad"], torch.zeros(37, 3))


# ---- MLP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [0, 1, 70, 130])
@over_dtypes
def test_glu(emulator, inner, dtype):
    def gated(a: Tensor) -> Tensor:  # the reference MLP between identity matrices
        return reference.blockdiag_glu_mlp(a, torch.eye(2 * inner)[None].to(a), torch.eye(inner)[None].to(a))

    a = random(5, 2 * inner, dtype=dtype)
    check(emulator("glu", ["h"], dtype, a=a)["h"], gated(a.double()), gated(a))


@pytest.mark.parametrize("features", [1, 3, 256, 257, 700])
@pytest.mark.parametrize(
    ("with_bias", "with_residual", "with_norm"),
    [(True, True, True), (False, True, True), (True, True, False), (False, True, False), (False, False, True)],
)
@pytest.mark.parametrize("in_place", [False, True])
@over_dtypes
def test_residual_norm(emulator, features, with_bias, with_residual, with_norm, in_place, dtype):
    y = random(4, features, dtype=dtype) + 1
    residual = random(4, features, dtype=dtype) if with_residual else None
    bias = random(features, dtype=dtype) if with_bias else None
    weight, norm_bias = (random(features), random(features)) if with_norm else (None, None)

    def expected(wide: torch.dtype) -> Tensor:
        z = sum(t.to(wide) for t in (y, bias, residual) if t is not None)
        return z if weight is None else F.layer_norm(z, (features,), weight.to(wide), norm_bias.to(wide), 1e-5)

    outputs = [] if in_place else ["out"]
    tensors = {"y": y, "bias": bias, "residual": residual, "norm_weight": weight, "norm_bias": norm_bias}
    got = emulator("residual_norm", outputs, dtype, **tensors, eps=1e-5, in_place=in_place)
    check(got["y" if in_place else "out"], expected(torch.float64), expected(torch.float32).to(dtype))
