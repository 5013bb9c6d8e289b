"""The long convolution on tensor cores, run on the CPU by the emulator of tests/emulator, under several schedules.

Its tolerance is a number: the arithmetic is half precision in parts, and no other implementation rounds in the same
places. Every row is held to it by itself.
"""

from __future__ import annotations

import math
import platform

import pytest
import torch
from emulator.driver import Emulator, dtype_name
from emulator.samples import (
    BATCH,
    CASES,
    channels_for,
    double,
    make_mixer,
    make_rows,
    make_spectrum,
    make_taps,
    random,
    reference_gradients,
)
from tolerance import relative_error
from torch import Tensor

from monarch_ops import reference

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator switches stacks on x86-64 only")

# One length per kind of tile, with the tile's head, parts and whether it has a level. 253 and 4093 are lengths at which
# the rows lie at multiples of 16 bytes.
NODES_BELOW_HEAD = {
    253: (1, 1, False),
    512: (2, 1, False),
    700: (3, 1, False),
    1000: (4, 1, False),
    1277: (5, 1, False),
    1500: (6, 1, False),
    2045: (8, 1, False),
    2500: (10, 1, False),
    3001: (12, 1, False),
    5000: (20, 1, False),
    6144: (24, 1, False),
}
LEVEL_AT_ROOT = {4093: (1, 1, True), 4096: (1, 1, True), 8189: (1, 2, True), 7000: (1, 2, True)}
LEVEL_BELOW_HEAD = {
    12001: (3, 1, True),
    16384: (4, 1, True),
    20000: (5, 1, True),
    24573: (6, 1, True),
    32765: (8, 1, True),
}
TILES = NODES_BELOW_HEAD | LEVEL_AT_ROOT | LEVEL_BELOW_HEAD
# Rows that take three launches, with the shared memory in bytes of a machine on which they do: the head and the levels
# of the outer part, points of an inner node, columns of a tile of the outer part.
SMALL_CUTS = {
    (1000, 9000): (4, 0, 256, 256),
    (4093, 12000): (16, 0, 256, 128),
    (5800, 24000): (24, 0, 256, 128),
    (8189, 24000): (2, 1, 256, 128),
    (12001, 24000): (3, 1, 256, 64),
    (12285, 40000): (3, 0, 4096, 256),
    (20000, 24000): (5, 1, 256, 64),
    (40000, 24000): (10, 1, 256, 32),
    (20480, 40000): (5, 0, 4096, 256),
}
H100 = 232448
LONG_CUTS = {
    (32769, H100): (10, 0, 4096, 256),
    (40000, 163 << 10): (10, 0, 4096, 256),
    (65536, H100): (16, 0, 4096, 256),
    (131072, H100): (2, 1, 4096, 256),
    (300000, H100): (5, 1, 4096, 128),
    (1 << 20, H100): (16, 1, 4096, 64),
    (1 << 21, H100): (2, 2, 4096, 32),
    (1 << 22, 163 << 10): (4, 2, 4096, 32),
}
CUTS = SMALL_CUTS | LONG_CUTS
DTYPES = (torch.bfloat16, torch.float16)

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def over_machines(*lengths: int | tuple[int, int]) -> pytest.MarkDecorator:
    """Lengths of rows on an H100, or (length, bytes of shared memory)."""
    given = [(n, {}) if isinstance(n, int) else (n[0], {"shared_memory": n[1]}) for n in lengths]
    ids = [" in ".join(map(str, (n, *machine.values()))) for n, machine in given]
    return pytest.mark.parametrize(("seqlen", "machine"), given, ids=ids)


# Relative L2 errors: of the arithmetic, for filters that decay over a row, and of rounding results.
ARITHMETIC_ERROR = 4.1e-4
ROUNDING_ERROR = {torch.float16: 2.1e-4, torch.bfloat16: 1.67e-3}
# Filters that do not decay, and cyclic ones: the transform computes the product modulo x^n + i, and as much of it as is
# asked for has gone into the imaginary part.
HALF_OF_IT = math.sqrt(2)


def check(got: Tensor, exact: Tensor, factor: float = 1, outer_levels: int = 0) -> None:
    """All rows together are right, each of them is nearly as good, and the check would notice if they were not.

    A level rounds once there and once back; the transform of a row that fits into a block rounds seven times.
    """
    assert got.shape == exact.shape
    arithmetic = ARITHMETIC_ERROR * math.sqrt((7 + 2 * outer_levels) / 7)
    limit = 1.03 * factor * math.hypot(ROUNDING_ERROR.get(got.dtype, 0), arithmetic)
    assert relative_error(got, exact) <= limit
    for ours, oracle in zip(got.flatten(0, -2), exact.flatten(0, -2), strict=True):
        assert relative_error(ours, oracle) <= 1.5 * limit
        if oracle.any():
            assert relative_error(torch.zeros_like(oracle), oracle) > 1.5 * limit
            assert relative_error(oracle.roll(1), oracle) > 1.5 * limit


def conv(emulator: Emulator, rows: dict, spectrum: Tensor, **machine) -> Tensor:
    return emulator("conv", ["y"], rows["u"].dtype, **rows, spectrum=spectrum, tensor_cores=True, **machine)["y"]


def reference_conv(rows: dict, taps: dict) -> Tensor:
    return reference.fft_conv(**double(rows), **double(taps), method="fft")


def test_lengths_reach_every_tile(emulator):
    found = {n: emulator.module.plan(seqlen=n)["matrix_tile"] for n in TILES}
    assert {n: (t["head"], t["parts"], t["level"]) for n, t in found.items()} == TILES
    for outside in (192, 300, 32769):  # transforms of 192 and 384 points have one pass of 16; longer rows do not fit
        assert emulator.module.plan(seqlen=outside)["matrix_tile"] is None


def test_lengths_reach_every_cut(emulator):
    for (seqlen, shared_memory), expected in CUTS.items():
        plan = emulator.module.plan(seqlen=seqlen, shared_memory=shared_memory)
        cut = plan["matrix_cut"]
        assert plan["matrix_tile"] is None
        assert (cut["head"], cut["levels"], cut["inner"], cut["columns"]) == expected
        assert cut["shared_bytes"] <= shared_memory
    for short in (192, 300):
        assert emulator.module.plan(seqlen=short)["matrix_cut"] is None
    for long, shared_memory in ((1 << 23, H100), (1 << 22, 99 << 10)):
        assert emulator.module.plan(seqlen=long, shared_memory=shared_memory)["matrix_cut"] is None


def test_blocks_are_small_enough_for_two_side_by_side(emulator):
    """... where rows are: 512 threads take all registers of a multiprocessor of an H100, which has 228 KB."""
    for seqlen in (*TILES, 32768):
        for rows in (1, 100_000):
            tile = emulator.module.plan(seqlen=seqlen, rows=rows)["matrix_tile"]
            two_fit = 2 * (tile["shared_bytes"] + 1024) <= 228 << 10
            assert two_fit == (seqlen <= 16384)
            assert tile["threads"] <= (256 if two_fit else 512)


def test_rows_of_16_bits_run_on_tensor_cores(emulator):
    def engine(seqlen: int, dtype: torch.dtype, **options) -> str:
        return emulator.module.plan(seqlen=seqlen, dtype=dtype_name(dtype), **options)["engine"]

    for dtype in DTYPES:
        assert {engine(n, dtype) for n in (193, 256, 385, *TILES, 32768)} == {"tensor_cores"}
        assert {engine(n, dtype, shared_memory=shared) for n, shared in CUTS} == {"tensor_cores"}
        assert {engine(n, dtype) for n in (1, 192, 300, 1 << 23)} == {"cuda"}
        assert {engine(n, dtype, precise=True) for n in (4096, 1 << 20)} == {"cuda"}
    launches = [emulator.module.plan(seqlen=n, dtype="float16")["launches"] for n in (4096, 32768, 32769, 1 << 22)]
    assert launches == [1, 1, 3, 3]
    assert engine(4096, torch.float32) == "cuda"


@pytest.mark.parametrize("seqlen", NODES_BELOW_HEAD | LEVEL_AT_ROOT)
@pytest.mark.parametrize("case", CASES)
@over_dtypes
def test_conv(emulator, seqlen, case, dtype):
    for decay, factor in ((5, HALF_OF_IT if case == "circular" else 1), (0, HALF_OF_IT)):
        rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen, decay)
        got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}))
        check(got, reference_conv(rows, taps), factor)


@pytest.mark.parametrize("seqlen", LEVEL_BELOW_HEAD)
@over_dtypes
def test_conv_of_long_rows(emulator, seqlen, dtype):
    rows, taps = make_rows("two-sided", seqlen, dtype), make_taps("two-sided", seqlen, 5)
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}))
    check(got, reference_conv(rows, taps))


@over_machines(*SMALL_CUTS)
@pytest.mark.parametrize("case", CASES)
@over_dtypes
def test_conv_in_three_launches(emulator, seqlen, machine, case, dtype):
    levels = CUTS[seqlen, machine["shared_memory"]][1]
    for decay, factor in ((5, HALF_OF_IT if case == "circular" else 1), (0, HALF_OF_IT)):
        rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen, decay)
        got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine)
        check(got, reference_conv(rows, taps), factor, levels)


@over_machines(*LONG_CUTS)
def test_conv_of_the_longest_rows(emulator, seqlen, machine):
    batch, channels = (3, 2) if seqlen < 200_000 else (1, 1)
    rows = {name: random(batch, channels, seqlen, dtype=torch.float16) for name in ("u", "pre_gate", "post_gate")}
    taps = {"k": random(channels, seqlen) * torch.exp(-5 * torch.arange(seqlen) / seqlen)}
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine)
    check(got, reference_conv(rows, taps), 1, CUTS[seqlen, machine["shared_memory"]][1])


@over_machines((4093, 12000), (8189, 24000), (12285, 40000))
@pytest.mark.parametrize("l2_bytes", [70_000, 400_000])
def test_chunks_of_rows(emulator, seqlen, machine, l2_bytes):
    """Rows and their neighbours in whichever launch: the bits are the same."""
    u, taps = random(7, 3, seqlen, dtype=torch.float16), make_taps("causal", seqlen, 5)
    spectrum = make_spectrum(emulator, seqlen, taps, {})
    together = conv(emulator, {"u": u}, spectrum, **machine)
    check(together, reference_conv({"u": u}, taps), 1, CUTS[seqlen, machine["shared_memory"]][1])
    assert torch.equal(conv(emulator, {"u": u}, spectrum, **machine, l2_bytes=l2_bytes), together)
    assert torch.equal(conv(emulator, {"u": u[5:6]}, spectrum, **machine), together[5:6])


@over_machines((4093, 12000), (8189, 24000), (12285, 40000))
@pytest.mark.parametrize("decades", [3, -3, 30])
def test_rows_that_rise_and_fall(emulator, seqlen, machine, decades):
    """Blocks of columns and inner nodes have scales of their own."""
    taps = make_taps("causal", seqlen, 5)
    rise = torch.logspace(0, decades, seqlen) if abs(decades) < 10 else torch.ones(seqlen)
    if decades == 30:  # one block of columns alone, all others far below it
        rise[1:] = 1e-30
    rows = {"u": (random(2, len(taps["k"]), seqlen) * rise).bfloat16()}
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine)
    check(got, reference_conv(rows, taps), HALF_OF_IT, CUTS[seqlen, machine["shared_memory"]][1])


@over_machines(700, (700, 9000))
@over_dtypes
def test_filter_prepared_for_longer_rows(emulator, seqlen, machine, dtype):
    rows, taps = make_rows("two-sided", seqlen, dtype), make_taps("two-sided", seqlen, 5)
    got = conv(emulator, rows, make_spectrum(emulator, 4000, taps, {}), prepared=4000, **machine)
    check(got, reference_conv(rows, taps))


@pytest.mark.parametrize("seqlen", [253, 1000, 4093])
def test_rows_do_not_depend_on_their_neighbours(emulator, seqlen):
    """However many rows a block takes side by side, and with whichever, the bits of a result are the same."""
    channels, batch = channels_for(seqlen), 40
    u, taps = random(batch, channels, seqlen, dtype=torch.float16), make_taps("causal", seqlen, 5)
    spectrum = make_spectrum(emulator, seqlen, taps, {})
    assert emulator.module.plan(seqlen=seqlen, rows=batch * channels)["matrix_tile"]["rows"] > 1
    together = conv(emulator, {"u": u}, spectrum)
    check(together, reference_conv({"u": u}, taps))
    few = {"shared_memory": (24 if seqlen < 4000 else 60) << 10}
    assert emulator.module.plan(seqlen=seqlen, rows=batch * channels, **few)["matrix_tile"]["rows"] < 8192 // seqlen
    assert torch.equal(conv(emulator, {"u": u}, spectrum, **few), together)
    assert torch.equal(conv(emulator, {"u": u[7:8]}, spectrum), together[7:8])


@over_machines(700, 4096, 8192, 16384, (4093, 12000), (12285, 40000))
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("size_of_filter", [1e-6, 1, 1e6])
def test_scales(emulator, seqlen, machine, scale, size_of_filter):
    """Inputs and filters of any size."""
    taps = make_taps("causal", seqlen, 5)
    taps["k"] *= size_of_filter
    u = random(1, len(taps["k"]), seqlen) * scale
    rows = {"u": u.bfloat16()}
    check(conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine), reference_conv(rows, taps))


@over_machines(700, 4096, 8192, 16384, (4093, 12000), (12285, 40000))
def test_products_out_of_range(emulator, seqlen, machine):
    """Gated rows and filters that float16 has no numbers for, and results that it has."""
    taps = make_taps("causal", seqlen, 5)
    taps["k"] *= 1e-8
    rows = {name: (random(1, len(taps["k"]), seqlen) * 1e4).half() for name in ("u", "pre_gate")}
    check(conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine), reference_conv(rows, taps))


@over_machines(700, 4096, 8192, 16384, (4093, 12000), (8189, 24000), (12285, 40000))
@pytest.mark.parametrize("name", ["one tap", "low-pass", "mean", "resonance"])
@over_dtypes
def test_filters(emulator, seqlen, machine, name, dtype):
    """Spectra with all their energy in a few bins, or spread evenly."""
    t = torch.arange(seqlen, dtype=torch.float64)
    k = {
        "one tap": (t == seqlen // 3).double(),
        "low-pass": torch.exp(-((t - 40) ** 2) / 200),
        "mean": torch.full((seqlen,), 1 / seqlen, dtype=torch.float64),
        "resonance": torch.cos(0.7 * t) * torch.exp(-t / seqlen),
    }[name]
    rows, taps = {"u": random(8, 1, seqlen, dtype=dtype)}, {"k": k.float()[None]}
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine)
    # where one bin has it all, its error is luck, and rows are few
    luck = {"mean": 3, "resonance": 2 if machine else HALF_OF_IT}.get(name, HALF_OF_IT)
    check(got, reference_conv(rows, taps), luck)


@over_machines(253, 4096, 8189, 12001, (4093, 12000), (8189, 24000), (12285, 40000))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(emulator, seqlen, machine, bad):
    u = random(3, 3, seqlen, dtype=torch.bfloat16)
    spectrum = make_spectrum(emulator, seqlen, {"k": random(3, seqlen)}, {})
    expected = conv(emulator, {"u": u}, spectrum, **machine)
    u[1, 2, seqlen // 2] = bad
    got = conv(emulator, {"u": u}, spectrum, **machine)
    assert not got[1, 2].isfinite().any()
    clean = torch.ones(3, 3, dtype=torch.bool)
    clean[1, 2] = False
    assert torch.equal(got[clean], expected[clean])


@over_machines(253, 4096, 8189, 12001, (4093, 12000), (8189, 24000), (12285, 40000))
def test_nothing_gives_nothing(emulator, seqlen, machine):
    """Rows and filters of zeros, which no power of two scales to 1."""
    u, k = random(2, 2, seqlen, dtype=torch.float16), random(2, seqlen)
    u[0, 0], k[1] = 0, 0
    got = conv(emulator, {"u": u}, make_spectrum(emulator, seqlen, {"k": k}, {}), **machine)
    assert not got[0, 0].any()
    assert not got[:, 1].any()
    assert got[1, 0].any()


@over_machines(253, 700, 4096, 8189, 12001, (4093, 12000), (8189, 24000), (12285, 40000))
@over_dtypes
@pytest.mark.parametrize(("bias", "residual", "with_lengths"), [(True, True, True), (False, False, False)])
def test_mixer(emulator, seqlen, machine, dtype, bias, residual, with_lengths):
    case, filters = make_mixer(seqlen, dtype, bias, residual, with_lengths, decay=5)
    wide = {name: None if taps is None else double(taps) for name, taps in filters.items()}
    exact = reference.m2_mixer(**double(case), **wide, method="fft")
    spectra = [None if taps is None else make_spectrum(emulator, seqlen, taps, {}) for taps in filters.values()]
    filters = dict(zip(("spectrum", "residual_spectrum"), spectra, strict=True))
    levels = CUTS[seqlen, machine["shared_memory"]][1] if machine else 0
    for l2_bytes in (50 << 20, 200_000):
        got = emulator("mixer", ["y"], dtype, **case, **filters, tensor_cores=True, l2_bytes=l2_bytes, **machine)
        check(got["y"], exact, 1, levels)


@over_machines(500, (500, 9000))
def test_bad_length_traps(emulator, seqlen, machine):
    lengths, rows = torch.tensor([seqlen, seqlen + 1, 0]), random(3, 2, seqlen, dtype=torch.float16)
    spectrum = make_spectrum(emulator, seqlen, {"k": random(2, seqlen)}, {})
    with pytest.raises(RuntimeError, match=r"__trap: thread \d+ of block \d+ at fft_rows.cuh:\d+"):
        conv(emulator, {"u": rows, "lengths": lengths}, spectrum, **machine)


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradients(emulator: Emulator, rows: dict, spectrum: Tensor, grad: Tensor, slices: int = 1, **machine) -> dict:
    """Of the rows, and the partial sums of that of the spectrum."""
    names = [f"grad_{name}" for name in rows if name != "lengths"]
    call = {"grad": grad, "batch_slices": slices, "spectrum": spectrum, "tensor_cores": True}
    return emulator("backward", [*names, "spectrum_grad"], rows["u"].dtype, **rows, **call, **machine)


def to_taps(emulator: Emulator, spectrum_grad: Tensor, seqlen: int, taps: dict) -> dict:
    """As ops/fft_conv.cpp does it."""
    names = [f"grad_{name}" for name in ("k", "k_rev", "skip") if name in taps]
    num_rev = taps["k_rev"].shape[1] if "k_rev" in taps else 0
    sizes = {"num_k": taps["k"].shape[1], "num_rev": num_rev, "circular": taps.get("circular", False)}
    return emulator("filter_adjoint", names, spectrum=spectrum_grad.sum(1), seqlen=seqlen, **sizes)


def check_gradients(emulator: Emulator, seqlen: int, case: str, dtype: torch.dtype, slices: int = 1) -> None:
    rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen, 5)
    grad = random(*rows["u"].shape, dtype=dtype)
    exact = reference_gradients(double(rows), double(taps), grad.double(), "fft")
    got = gradients(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), grad, slices)
    partial = got.pop("spectrum_grad")
    assert partial.shape[1] == slices
    got |= to_taps(emulator, partial, seqlen, taps)
    assert set(got) == set(exact)
    # a number per channel: sums of random signs, which may be small by chance
    if "grad_skip" in got:
        scale = (rows["u"].double().square().sum((0, 2)) * grad.double().square().sum((0, 2)) / seqlen).sqrt()
        assert ((got.pop("grad_skip") - exact.pop("grad_skip")).abs() < 1.5e-3 * scale / BATCH**0.5).all()
    for name, value in got.items():
        check(value, exact[name], HALF_OF_IT)


@pytest.mark.parametrize("seqlen", NODES_BELOW_HEAD | LEVEL_AT_ROOT)
@pytest.mark.parametrize("case", CASES)
@over_dtypes
def test_gradients(emulator, seqlen, case, dtype):
    check_gradients(emulator, seqlen, case, dtype)


@pytest.mark.parametrize("seqlen", [12001, 16384])
@over_dtypes
def test_gradients_of_long_rows(emulator, seqlen, dtype):
    check_gradients(emulator, seqlen, "two-sided", dtype)


@pytest.mark.parametrize("seqlen", [253, 1000, 4093])
@pytest.mark.parametrize("slices", [2, 3])
def test_gradients_in_slices(emulator, seqlen, slices):
    check_gradients(emulator, seqlen, "two-sided", torch.bfloat16, slices)


def test_rows_that_fit_with_their_gradients_run_on_tensor_cores(emulator):
    def engine(seqlen: int, **options) -> str:
        return emulator.module.plan(seqlen=seqlen, dtype="float16", **options)["gradients"]

    assert {engine(n) for n in (*NODES_BELOW_HEAD, *LEVEL_AT_ROOT, 12001, 20480)} == {"tensor_cores"}
    assert {engine(n) for n in (192, 300, 20481, 32768, 40000)} == {"cuda"}
    assert engine(4096, precise=True) == "cuda"
    assert engine(4096, shared_memory=40 << 10) == "cuda"


@pytest.mark.parametrize("seqlen", [253, 1000, 4093])
def test_gradients_do_not_depend_on_the_launch(emulator, seqlen):
    """However many rows lie side by side, those of the rows before and the order of the sums included."""
    batch, channels = 11, 2
    rows = {name: random(batch, channels, seqlen, dtype=torch.float16) for name in ("u", "pre_gate", "post_gate")}
    rows["u"] *= torch.logspace(0, -3, batch)[:, None, None]
    grad = random(batch, channels, seqlen, dtype=torch.float16)
    spectrum = make_spectrum(emulator, seqlen, {"k": random(channels, seqlen)}, {})
    together = gradients(emulator, rows, spectrum, grad)
    few = gradients(
        emulator, rows, spectrum, grad, shared_memory=(14 if seqlen < 1000 else 24 if seqlen < 4000 else 76) << 10
    )
    for name in together:
        assert torch.equal(few[name], together[name]), name
    alone = gradients(emulator, {name: t[7:8] for name, t in rows.items()}, spectrum, grad[7:8])
    for name in rows:
        assert torch.equal(alone[f"grad_{name}"], together[f"grad_{name}"][7:8]), name


def test_gradients_are_only_what_is_wanted(emulator):
    """Each output alone is what it is together with all others."""
    rows = make_rows("two-sided", 700, torch.bfloat16)
    spectrum = make_spectrum(emulator, 700, make_taps("two-sided", 700), {})
    call = {"grad": rows["u"].flip(0).contiguous(), "batch_slices": 1, "spectrum": spectrum, "tensor_cores": True}
    names = ["grad_u", "grad_pre_gate", "grad_post_gate", "spectrum_grad"]
    together = emulator("backward", names, torch.bfloat16, **rows, **call)
    for name in names:
        alone = emulator("backward", [name], torch.bfloat16, **rows, **call)
        assert list(alone) == [name]
        assert torch.equal(alone[name], together[name])


@pytest.mark.parametrize("seqlen", [700, 4096, 8192, 12001])
@pytest.mark.parametrize(("size_of_u", "size_of_grad"), [(1e-6, 1e6), (1e6, 1e-6), (1e6, 1e6), (1e-6, 1e-6)])
def test_scales_of_gradients(emulator, seqlen, size_of_u, size_of_grad):
    taps = make_taps("causal", seqlen, 5)
    u, grad = ((random(1, len(taps["k"]), seqlen) * size).bfloat16() for size in (size_of_u, size_of_grad))
    got = gradients(emulator, {"u": u}, make_spectrum(emulator, seqlen, taps, {}), grad)
    got |= to_taps(emulator, got["spectrum_grad"], seqlen, taps)
    exact = reference_gradients({"u": u.double()}, double(taps), grad.double(), "fft")
    check(got["grad_u"], exact["grad_u"], HALF_OF_IT)
    check(got["grad_k"], exact["grad_k"], HALF_OF_IT)


@pytest.mark.parametrize("seqlen", [253, 4096])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_stay_in_their_row(emulator, seqlen, bad):
    u, grad = (random(3, 2, seqlen, dtype=torch.bfloat16) for _ in range(2))
    spectrum = make_spectrum(emulator, seqlen, {"k": random(2, seqlen)}, {})
    expected = gradients(emulator, {"u": u}, spectrum, grad)
    grad[1, 1, seqlen // 2] = bad
    got = gradients(emulator, {"u": u}, spectrum, grad)
    assert not got["grad_u"][1, 1].isfinite().any()
    assert not got["spectrum_grad"][1].isfinite().any()
    assert torch.equal(got["spectrum_grad"][0], expected["spectrum_grad"][0])
    clean = torch.ones(3, 2, dtype=torch.bool)
    clean[1, 1] = False
    assert torch.equal(got["grad_u"][clean], expected["grad_u"][clean])


def test_no_gradients_of_nothing(emulator):
    """Rows of zeros, which no power of two scales to 1, and a batch of none."""
    u, grad = (random(2, 2, 700, dtype=torch.float16) for _ in range(2))
    u[:, 0], grad[0, 1] = 0, 0
    spectrum = make_spectrum(emulator, 700, {"k": random(2, 700)}, {})
    got = gradients(emulator, {"u": u}, spectrum, grad)
    assert not got["spectrum_grad"][0].any()
    assert got["spectrum_grad"][1].any()
    assert not got["grad_u"][0, 1].any()
    none = gradients(emulator, {"u": u[:0]}, spectrum, grad[:0])
    assert none["grad_u"].shape == (0, 2, 700)
    assert not none["spectrum_grad"].any()
