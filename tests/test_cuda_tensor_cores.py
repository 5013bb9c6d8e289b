"""The long convolution on tensor cores, run on the CPU by the emulator of tests/emulator, under several schedules."""

from __future__ import annotations

import math

import pytest
import torch
from emulator.driver import Emulator, dtype_name
from emulator.samples import CASES, channels_for, double, make_mixer, make_rows, make_spectrum, make_taps, random
from emulator.tensor_cores import (
    DTYPES,
    H100,
    HALF_OF_IT,
    LEVEL_AND_HEAD,
    LEVEL_AT_ROOT,
    LEVEL_OF_FEW,
    TILES,
    check,
    over_dtypes,
    over_machines,
    roundings,
)
from tolerance import assert_matches, relative_error
from torch import Tensor

from monarch_ops import reference

pytestmark = pytest.mark.emulated

# Rows that take three launches, with the shared memory in bytes of a machine on which they do: the head and the levels
# of the outer part, points of an inner node, columns of a tile of the outer part.
SMALL_CUTS = {
    (1000, 9000): (4, 0, 256, 256),
    (4093, 12000): (16, 0, 256, 128),
    (5800, 24000): (24, 0, 256, 128),
    (8189, 24000): (32, 0, 256, 64),
    (12001, 24000): (3, 1, 256, 64),
    (12285, 40000): (3, 0, 4096, 256),
    (20000, 24000): (5, 1, 256, 64),
    (40000, 24000): (10, 1, 256, 32),
    (20480, 40000): (5, 0, 4096, 256),
}
LONG_CUTS = {
    (32769, H100): (10, 0, 4096, 256),
    (40000, 163 << 10): (10, 0, 4096, 256),
    (65536, H100): (16, 0, 4096, 256),
    (131072, H100): (32, 0, 4096, 256),
    (150000, H100): (48, 0, 4096, 128),
    (262144, H100): (64, 0, 4096, 128),
    (300000, H100): (80, 0, 4096, 128),
    (390000, H100): (96, 0, 4096, 128),
    (524285, H100): (128, 0, 4096, 128),
    (600000, H100): (10, 1, 4096, 64),
    (1 << 20, H100): (16, 1, 4096, 64),
    (1 << 21, H100): (32, 1, 4096, 32),
    (1 << 22, 163 << 10): (64, 1, 4096, 32),
}
CUTS = SMALL_CUTS | LONG_CUTS


def conv(emulator: Emulator, rows: dict, spectrum: Tensor, **machine) -> Tensor:
    return emulator("conv", ["y"], rows["u"].dtype, **rows, spectrum=spectrum, tensor_cores=True, **machine)["y"]


def reference_conv(rows: dict, taps: dict) -> Tensor:
    return reference.fft_conv(**double(rows), **double(taps), method="fft")


def test_lengths_reach_every_tile(emulator):
    found = {n: emulator.module.plan(seqlen=n)["matrix_tile"] for n in TILES}
    assert {n: (t["nodes"], t["room"], t["head"]) for n, t in found.items()} == TILES
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
            assert two_fit == (seqlen <= 16384) == (not tile["alone"])
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


@pytest.mark.parametrize("seqlen", LEVEL_OF_FEW | LEVEL_AT_ROOT)
@pytest.mark.parametrize("case", CASES)
@over_dtypes
def test_conv(emulator, seqlen, case, dtype):
    for decay, factor in ((5, HALF_OF_IT if case == "circular" else 1), (0, HALF_OF_IT)):
        rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen, decay)
        got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}))
        check(got, reference_conv(rows, taps), factor)


@pytest.mark.parametrize("seqlen", [*LEVEL_AND_HEAD, 32768])
@pytest.mark.parametrize("case", ["causal", "two-sided", "circular"])
@over_dtypes
def test_conv_of_long_rows(emulator, seqlen, case, dtype):
    rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen, 5)
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}))
    check(got, reference_conv(rows, taps), HALF_OF_IT if case == "circular" else 1)


@over_machines(*SMALL_CUTS)
@pytest.mark.parametrize("case", CASES)
@over_dtypes
def test_conv_in_three_launches(emulator, seqlen, machine, case, dtype):
    more = roundings(CUTS[seqlen, machine["shared_memory"]])
    for decay, factor in ((5, HALF_OF_IT if case == "circular" else 1), (0, HALF_OF_IT)):
        rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen, decay)
        got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine)
        check(got, reference_conv(rows, taps), factor, more)


@over_machines(*LONG_CUTS)
def test_conv_of_the_longest_rows(emulator, seqlen, machine):
    batch, channels = (3, 2) if seqlen < 200_000 else (1, 1)
    rows = {name: random(batch, channels, seqlen, dtype=torch.float16) for name in ("u", "pre_gate", "post_gate")}
    taps = {"k": random(channels, seqlen) * torch.exp(-5 * torch.arange(seqlen) / seqlen)}
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine)
    check(got, reference_conv(rows, taps), 1, roundings(CUTS[seqlen, machine["shared_memory"]]))


@pytest.mark.parametrize("seqlen", [32769, 65537, 131072, 150000])
def test_padded_batches_of_the_longest_rows(emulator, seqlen):
    """With everything that comes with them."""
    rows, taps = make_rows("two-sided", seqlen, torch.bfloat16), make_taps("two-sided", seqlen, 5)
    cut = emulator.module.plan(seqlen=seqlen)["matrix_cut"]
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}))
    check(got, reference_conv(rows, taps), 1, roundings((cut["head"], cut["levels"])))


@over_machines((4093, 12000), (8189, 24000), (12285, 40000))
@pytest.mark.parametrize("l2_bytes", [70_000, 400_000])
def test_chunks_of_rows(emulator, seqlen, machine, l2_bytes):
    """Rows and their neighbours in whichever launch: the bits are the same."""
    u, taps = random(7, 3, seqlen, dtype=torch.float16), make_taps("causal", seqlen, 5)
    spectrum = make_spectrum(emulator, seqlen, taps, {})
    together = conv(emulator, {"u": u}, spectrum, **machine)
    check(together, reference_conv({"u": u}, taps), 1, roundings(CUTS[seqlen, machine["shared_memory"]]))
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
    check(got, reference_conv(rows, taps), HALF_OF_IT, roundings(CUTS[seqlen, machine["shared_memory"]]))


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


@pytest.mark.parametrize("seqlen", [512, 768, 1280, 2048, 2560, 4096, 5120, 8192])
def test_matrices_of_levels_have_two_parts(emulator, seqlen):
    """With halves alone the error would be 4.35e-4 and more."""
    taps = make_taps("causal", seqlen, 5)
    rows = {"u": random(24, len(taps["k"]), seqlen, dtype=torch.float16)}
    got = conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}))
    assert relative_error(got, reference_conv(rows, taps)) < 4.25e-4


@over_machines(700, 2048, 4096, 5000, 8192, 16384, (4093, 12000), (12285, 40000))
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("size_of_filter", [1e-6, 1, 1e6])
def test_scales(emulator, seqlen, machine, scale, size_of_filter):
    """Inputs and filters of any size."""
    taps = make_taps("causal", seqlen, 5)
    taps["k"] *= size_of_filter
    u = random(1, len(taps["k"]), seqlen) * scale
    rows = {"u": u.bfloat16()}
    check(conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine), reference_conv(rows, taps))


@over_machines(700, 2048, 4096, 5000, 8192, 16384, (4093, 12000), (12285, 40000))
def test_products_out_of_range(emulator, seqlen, machine):
    """Gated rows and filters that float16 has no numbers for, and results that it has."""
    taps = make_taps("causal", seqlen, 5)
    taps["k"] *= 1e-8
    rows = {name: (random(1, len(taps["k"]), seqlen) * 1e4).half() for name in ("u", "pre_gate")}
    check(conv(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), **machine), reference_conv(rows, taps))


@over_machines(700, 2048, 4096, 5000, 8192, 16384, (4093, 12000), (8189, 24000), (12285, 40000))
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


@pytest.mark.parametrize("seqlen", [4096, 32768])
def test_where_results_cancel(emulator, seqlen):
    """A tone that a mean takes away is lost among halves: precision="precise" is for such filters."""
    turns = (seqlen // 8 + 0.3) / seqlen * torch.arange(seqlen, dtype=torch.float64)
    rows = {"u": torch.cos(2 * math.pi * turns)[None, None].half()}
    taps = {"k": (torch.arange(seqlen) < seqlen // 2).float()[None] * 2 / seqlen}
    spectrum, exact = make_spectrum(emulator, seqlen, taps, {}), reference_conv(rows, taps)
    precise = emulator("conv", ["y"], torch.float16, **rows, spectrum=spectrum)["y"]
    assert_matches(precise, exact, reference.fft_conv(**rows, **taps))
    assert relative_error(conv(emulator, rows, spectrum), exact) > 20 * relative_error(precise, exact)


@over_machines(253, 700, 1277, 2500, 4096, 5000, 8189, 12001, (4093, 12000), (8189, 24000), (12285, 40000))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(emulator, seqlen, machine, bad):
    u = random(3, 3, seqlen, dtype=torch.bfloat16)
    spectrum = make_spectrum(emulator, seqlen, {"k": random(3, seqlen)}, {})
    expected = conv(emulator, {"u": u}, spectrum, **machine)
    u[1, 0, seqlen // 2] = bad  # before other rows in the same place
    got = conv(emulator, {"u": u}, spectrum, **machine)
    assert not got[1, 0].isfinite().any()
    clean = torch.ones(3, 3, dtype=torch.bool)
    clean[1, 0] = False
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


@over_machines(253, 700, 4096, 8189, 12001, 32768, (4093, 12000), (8189, 24000), (12285, 40000))
@over_dtypes
@pytest.mark.parametrize(("bias", "residual", "with_lengths"), [(True, True, True), (False, False, False)])
def test_mixer(emulator, seqlen, machine, dtype, bias, residual, with_lengths):
    case, filters = make_mixer(seqlen, dtype, bias, residual, with_lengths, decay=5)
    wide = {name: None if taps is None else double(taps) for name, taps in filters.items()}
    exact = reference.m2_mixer(**double(case), **wide, method="fft")
    spectra = [None if taps is None else make_spectrum(emulator, seqlen, taps, {}) for taps in filters.values()]
    filters = dict(zip(("spectrum", "residual_spectrum"), spectra, strict=True))
    more = roundings(CUTS[seqlen, machine["shared_memory"]]) if machine else 0
    for l2_bytes in (50 << 20, 200_000):
        got = emulator("mixer", ["y"], dtype, **case, **filters, tensor_cores=True, l2_bytes=l2_bytes, **machine)
        check(got["y"], exact, 1, more)


@over_machines(500, (500, 9000))
def test_bad_length_traps(emulator, seqlen, machine):
    lengths, rows = torch.tensor([seqlen, seqlen + 1, 0]), random(3, 2, seqlen, dtype=torch.float16)
    spectrum = make_spectrum(emulator, seqlen, {"k": random(2, seqlen)}, {})
    with pytest.raises(RuntimeError, match=r"__trap: thread \d+ of block \d+ at fft_rows.cuh:\d+"):
        conv(emulator, {"u": rows, "lengths": lengths}, spectrum, **machine)
