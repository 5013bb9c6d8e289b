"""Gradients of the long convolution on tensor cores, run on the CPU by the emulator, under several schedules.

Filter gradients are sums over a batch and come back through the float32 kernels. Input gradients meet the filter the
other way around, of which as much has gone into the imaginary part as of a filter that does not decay.
"""

from __future__ import annotations

import math

import pytest
import torch
from emulator.driver import Emulator
from emulator.samples import (
    BATCH,
    CASES,
    double,
    make_rows,
    make_spectrum,
    make_taps,
    random,
    reference_gradients,
)
from emulator.tensor_cores import (
    H100,
    HALF_OF_IT,
    LEVEL_AT_ROOT,
    LEVEL_OF_FEW,
    check,
    limit_for,
    over_dtypes,
    over_machines,
    roundings,
)
from tolerance import relative_error
from torch import Tensor

pytestmark = pytest.mark.emulated

# Rows that take three launches on the way back, with the shared memory in bytes of a machine on which they do: the head
# and the levels of the outer part, points of an inner node, columns of a tile of the outer part.
SHORT_CUTS = {
    (1000, 10100): (4, 0, 256, 256),
    (8189, 24000): (32, 0, 256, 64),
    (12285, 60000): (3, 0, 4096, 256),
}
CUTS = SHORT_CUTS | {
    (4093, 12000): (16, 0, 256, 128),
    (12285, 40000): (48, 0, 256, 128),  # on the way there, nodes are larger
    (16381, 44000): (64, 0, 256, 128),
    (12001, 90000): (3, 0, 4096, 256),  # on the way there, a row fits into a block
    (24573, H100): (6, 0, 4096, 256),
    (32765, H100): (8, 0, 4096, 256),
    (65536, H100): (16, 0, 4096, 256),
    (131071, H100): (32, 0, 4096, 256),
    (300000, H100): (80, 0, 4096, 128),
    (1 << 21, H100): (32, 1, 4096, 32),
}
# Bytes of shared memory with which gradients of 4,096 points have room for so many of the tensors a row comes from.
ROOM_FOR_4096 = {H100: 2, 140 << 10: 1, 110 << 10: 0}
# Enough blocks for a launch to have several channels.
WIDE = {"multiprocessors": 12}


def roundings_of(seqlen: int, machine: dict) -> int:
    return roundings(CUTS[seqlen, machine["shared_memory"]]) if "shared_memory" in machine else 0


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


def check_gradients(emulator: Emulator, rows: dict, taps: dict, slices: int = 1, **machine) -> None:
    seqlen = rows["u"].shape[-1]
    grad = random(*rows["u"].shape, dtype=rows["u"].dtype)
    exact = reference_gradients(double(rows), double(taps), grad.double(), "fft")
    got = gradients(emulator, rows, make_spectrum(emulator, seqlen, taps, {}), grad, slices, **machine)
    partial = got.pop("spectrum_grad")
    assert partial.shape[1] == slices
    got |= to_taps(emulator, partial, seqlen, taps)
    assert set(got) == set(exact)
    # a number per channel: sums of random signs, which may be small by chance
    if "grad_skip" in got:
        scale = (rows["u"].double().square().sum((0, 2)) * grad.double().square().sum((0, 2)) / seqlen).sqrt()
        assert ((got.pop("grad_skip") - exact.pop("grad_skip")).abs() < 1.5e-3 * scale / BATCH**0.5).all()
    for name, value in got.items():
        check(value, exact[name], HALF_OF_IT, roundings_of(seqlen, machine))


def check_case(emulator: Emulator, seqlen: int, case: str, dtype: torch.dtype, slices: int = 1, **machine) -> None:
    check_gradients(emulator, make_rows(case, seqlen, dtype), make_taps(case, seqlen, 5), slices, **machine)


@pytest.mark.parametrize("seqlen", LEVEL_OF_FEW | LEVEL_AT_ROOT)
@pytest.mark.parametrize("case", CASES)
@over_dtypes
def test_gradients(emulator, seqlen, case, dtype):
    check_case(emulator, seqlen, case, dtype)


@pytest.mark.parametrize("seqlen", [12001, 16384])
@over_dtypes
def test_gradients_of_long_rows(emulator, seqlen, dtype):
    check_case(emulator, seqlen, "two-sided", dtype)


def test_lengths_reach_every_cut(emulator):
    for (seqlen, shared_memory), expected in CUTS.items():
        plan = emulator.module.plan(seqlen=seqlen, shared_memory=shared_memory, rows=2)
        cut = plan["gradient_cut"]
        assert plan["gradient_tile"] is None
        assert (cut["head"], cut["levels"], cut["inner"], cut["columns"]) == expected
        assert cut["rows"] in (2, 4)  # one row of the two or both, each with its gradient
        assert cut["shared_bytes"] <= shared_memory
    plan = emulator.module.plan(seqlen=12285, shared_memory=40000)
    assert plan["matrix_cut"]["inner"] > plan["gradient_cut"]["inner"]
    assert emulator.module.plan(seqlen=12001, shared_memory=100000)["matrix_tile"] is not None


def test_what_comes_next_has_room(emulator):
    """Where a block is alone on a multiprocessor of an H100: rows and gates, as long as they fit beside the rows."""

    def streams(plan: str, seqlen: int, **machine) -> int:
        return emulator.module.plan(seqlen=seqlen, rows=64, **machine)[plan]["streams"]

    small = (256, 1024)  # several blocks of few threads
    assert {n: streams("gradient_tile", n) for n in (*small, 1280, 2048, 4096, 8192, 12288, 16384, 20480)} == {
        256: 0, 1024: 0, 1280: 2, 2048: 2, 4096: 2, 8192: 2, 12288: 2, 16384: 0, 20480: 0
    }  # fmt: skip
    assert {n: streams("gradient_cut", n) for n in (24576, 65536, 1 << 20)} == {24576: 2, 65536: 2, 1 << 20: 2}
    for shared_memory, expected in ROOM_FOR_4096.items():
        plan = emulator.module.plan(seqlen=4096, rows=64, shared_memory=shared_memory)["gradient_tile"]
        assert (plan["streams"], plan["rows"]) == (expected, 4)


@pytest.mark.parametrize("seqlen", [4089, 4093, 4096])
@pytest.mark.parametrize("case", ["causal", "two-sided"])
@over_dtypes
def test_rows_from_wherever_they_come(emulator, seqlen, case, dtype):
    """Copied while the rows before are worked on, or only the row but not its gate, or not at all: the same bits. Rows
    that do not begin on a boundary of 16 bytes, and the rest of those whose length is no multiple of eight points.
    """
    rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen, 5)
    grad, spectrum = random(*rows["u"].shape, dtype=dtype), make_spectrum(emulator, seqlen, taps, {})
    copied, half, read = (
        gradients(emulator, rows, spectrum, grad, 1, shared_memory=machine) for machine in ROOM_FOR_4096
    )
    for name, value in copied.items():
        assert torch.equal(value, half[name])
        assert torch.equal(value, read[name])


@over_machines(*SHORT_CUTS)
@pytest.mark.parametrize("case", CASES)
@over_dtypes
def test_gradients_in_three_launches(emulator, seqlen, machine, case, dtype):
    check_case(emulator, seqlen, case, dtype, **machine, **WIDE)


@over_machines(*(cut for cut in CUTS if cut not in SHORT_CUTS and cut[0] < 65536))
def test_gradients_of_long_rows_in_three_launches(emulator, seqlen, machine):
    check_case(emulator, seqlen, "two-sided", torch.float16, **machine)


@over_machines(*(cut for cut in CUTS if cut[0] >= 65536))
def test_gradients_of_the_longest_rows(emulator, seqlen, machine):
    decay = torch.exp(-5 * torch.arange(seqlen) / seqlen)
    if seqlen < 200_000:
        rows = {name: random(2, 1, seqlen, dtype=torch.bfloat16) for name in ("u", "pre_gate", "post_gate")}
        rows["lengths"] = torch.tensor([seqlen, seqlen // 3])
        taps = {name: random(1, seqlen) * decay for name in ("k", "k_rev")}
    else:
        rows, taps = {"u": random(1, 1, seqlen, dtype=torch.float16)}, {"k": random(1, seqlen) * decay}
    check_gradients(emulator, rows, taps, **machine)


def test_the_check_notices_wrong_gradients():
    """What a wrong kernel might compute: at least twice as far off as is allowed, with bfloat16 results."""
    seqlen = 1000
    rows, taps = make_rows("two-sided", seqlen, torch.bfloat16), make_taps("two-sided", seqlen, 5)
    grad = random(*rows["u"].shape, dtype=torch.bfloat16).double()
    del rows["lengths"]

    def of(rows: dict, taps: dict, grad: Tensor = grad) -> dict[str, Tensor]:
        return reference_gradients(double(rows), double(taps), grad, "fft")

    exact = of(rows, taps)
    without = {"k_rev": torch.zeros_like(taps["k_rev"]), "skip": torch.zeros_like(taps["skip"])}
    turned = {"k": torch.cat([taps["skip"][:, None], taps["k_rev"]], 1), "k_rev": taps["k"][:, 1:]}
    last = {name: t[:-1] for name, t in rows.items()}
    wrong = [
        *(("grad_u", of(rows, taps | {name: zeros})) for name, zeros in without.items()),
        ("grad_u", of(rows, turned)),  # the filter, not its adjoint
        ("grad_u", of(rows | {"pre_gate": rows["post_gate"]}, taps)),
        ("grad_pre_gate", of(rows | {"u": rows["u"].flip(0)}, taps)),
        ("grad_post_gate", of(rows, taps, grad.flip(0))),
        ("grad_k", of(last, taps, grad[:-1])),  # a batch row that is not in the sum
        ("grad_k_rev", of(rows, taps, grad.roll(1, -1))),
    ]
    for name, results in wrong:
        limit = 1.5 * limit_for(exact[name].dtype if name.startswith("grad_k") else torch.bfloat16, HALF_OF_IT, 2)
        assert relative_error(results[name], exact[name]) > 2 * limit, name


@pytest.mark.parametrize("seqlen", [253, 1000, 4093])
@pytest.mark.parametrize("slices", [2, 3])
def test_gradients_in_slices(emulator, seqlen, slices):
    check_case(emulator, seqlen, "two-sided", torch.bfloat16, slices)


@over_machines((1000, 10100), 1 << 20)
def test_long_rows_have_one_slice(emulator, seqlen, machine):
    """Their pieces keep a machine busy, and each slice would hold another filter's worth of memory."""
    for dtype in ("float16", "float32"):
        assert emulator.module.plan(seqlen=seqlen, dtype=dtype, **machine)["batch_slices"] == 1
        assert emulator.module.plan(seqlen=100, dtype=dtype)["batch_slices"] == 64


def test_slices_of_long_rows_are_refused(emulator):
    """By both engines: what the planner says of slices is what the kernels take."""
    rows = make_rows("two-sided", 1000, torch.bfloat16)
    spectrum = make_spectrum(emulator, 1000, make_taps("two-sided", 1000), {})
    call = {"grad": rows["u"], "spectrum": spectrum, "batch_slices": 2, "shared_memory": 10100}
    for tensor_cores in (False, True):
        with pytest.raises(RuntimeError, match="batch_slices must be 1"):
            emulator("backward", ["spectrum_grad"], torch.bfloat16, **rows, **call, tensor_cores=tensor_cores)


def test_engines_of_gradients(emulator):
    def engine(seqlen: int, **options) -> tuple[str, bool]:
        plan = emulator.module.plan(seqlen=seqlen, dtype="float16", **options)
        return plan["gradients"], plan["whole_gradients"]

    whole = {engine(n) for n in (*LEVEL_OF_FEW, *LEVEL_AT_ROOT, 12001, 20480)}
    assert whole == {("tensor_cores", True)}
    in_three = {engine(n) for n in (20481, 32768, 40000, 1 << 22)} | {engine(n, shared_memory=m) for n, m in CUTS}
    assert in_three == {("tensor_cores", False)}
    assert {engine(n) for n in (192, 300)} == {("cuda", True)}
    assert {engine(4096, precise=True), engine(1 << 20, precise=True)} == {("cuda", True), ("cuda", False)}
    assert engine(1 << 23) == ("cuda", False)


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


@over_machines((1000, 10100), (12285, 60000))
def test_chunks_of_gradients(emulator, seqlen, machine):
    """Rows in one launch or in several, of one channel or of more: the bits are the same, and those of the sums."""
    batch, channels = 4, 3
    rows = {name: random(batch, channels, seqlen, dtype=torch.float16) for name in ("u", "post_gate")}
    rows["u"] *= torch.logspace(0, -3, batch)[:, None, None]
    grad = random(batch, channels, seqlen, dtype=torch.float16)
    spectrum = make_spectrum(emulator, seqlen, {"k": random(channels, seqlen)}, {})

    def of(**options) -> dict[str, Tensor]:
        return gradients(emulator, rows, spectrum, grad, **machine, **options)

    together = of()
    cache = 16 * emulator.module.plan(seqlen=seqlen)["points"]  # for the workspace to hold a row of floats
    # a row of a channel at a time; three of a channel, then the last; two of as many channels as are in a launch
    for options in ({"l2_bytes": cache}, {"l2_bytes": 4 * cache}, {"l2_bytes": 8 * cache, **WIDE}):
        some = of(**options)
        for name in together:
            assert torch.equal(some[name], together[name]), (name, options)


@over_machines(700, (1000, 10100))
def test_gradients_are_only_what_is_wanted(emulator, seqlen, machine):
    """Each output alone is what it is together with all others."""
    rows = make_rows("two-sided", seqlen, torch.bfloat16)
    spectrum = make_spectrum(emulator, seqlen, make_taps("two-sided", seqlen), {})
    call = {"grad": rows["u"].flip(0).contiguous(), "batch_slices": 1, "spectrum": spectrum, "tensor_cores": True}
    names = ["grad_u", "grad_pre_gate", "grad_post_gate", "spectrum_grad"]
    together = emulator("backward", names, torch.bfloat16, **rows, **call, **machine)
    for name in names:
        alone = emulator("backward", [name], torch.bfloat16, **rows, **call, **machine)
        assert list(alone) == [name]
        assert torch.equal(alone[name], together[name])


@over_machines((1000, 10100))
@over_dtypes
def test_gradients_of_a_filter_prepared_for_longer_rows(emulator, seqlen, machine, dtype):
    rows, taps = make_rows("two-sided", 700, dtype), make_taps("two-sided", 700, 5)
    grad = random(*rows["u"].shape, dtype=dtype)
    exact = reference_gradients(double(rows), double(taps), grad.double(), "fft")
    spectrum = make_spectrum(emulator, seqlen, taps, {})
    got = gradients(emulator, rows, spectrum, grad, prepared=seqlen, **machine)
    for name in rows.keys() - {"lengths"}:
        check(got[f"grad_{name}"], exact[f"grad_{name}"], HALF_OF_IT)
    del taps["skip"]
    for name, value in to_taps(emulator, got["spectrum_grad"], seqlen, taps).items():
        valid = slice(0, 700 if name == "grad_k" else 699)  # taps further away meet no position
        check(value[:, valid], exact[name][:, valid], HALF_OF_IT)


@over_machines(700, 4096, 8192, 12001, (8189, 24000), (12285, 60000))
@pytest.mark.parametrize(("size_of_u", "size_of_grad"), [(1e-6, 1e6), (1e6, 1e-6), (1e6, 1e6), (1e-6, 1e-6)])
def test_scales_of_gradients(emulator, seqlen, machine, size_of_u, size_of_grad):
    taps = make_taps("causal", seqlen, 5)
    u, grad = ((random(1, len(taps["k"]), seqlen) * size).bfloat16() for size in (size_of_u, size_of_grad))
    got = gradients(emulator, {"u": u}, make_spectrum(emulator, seqlen, taps, {}), grad, **machine)
    got |= to_taps(emulator, got["spectrum_grad"], seqlen, taps)
    exact = reference_gradients({"u": u.double()}, double(taps), grad.double(), "fft")
    more = roundings_of(seqlen, machine)
    check(got["grad_u"], exact["grad_u"], HALF_OF_IT, more)
    check(got["grad_k"], exact["grad_k"], HALF_OF_IT, more)


@over_machines((8189, 24000), (12285, 60000))
@pytest.mark.parametrize("size_of_filter", [1e-6, 1e6])
@pytest.mark.parametrize("decades", [3, -3])
def test_gradients_of_rows_that_rise_and_fall(emulator, seqlen, machine, size_of_filter, decades):
    """Blocks of columns and inner nodes have scales of their own, gradients others than inputs."""
    taps = make_taps("causal", seqlen, 5)
    taps["k"] *= size_of_filter
    rise = torch.logspace(0, decades, seqlen)
    u, grad = ((random(1, len(taps["k"]), seqlen) * by).bfloat16() for by in (rise, rise.flip(0)))
    got = gradients(emulator, {"u": u}, make_spectrum(emulator, seqlen, taps, {}), grad, **machine)
    exact = reference_gradients({"u": u.double()}, double(taps), grad.double(), "fft")
    check(got["grad_u"], exact["grad_u"], HALF_OF_IT, roundings_of(seqlen, machine))


@over_machines(253, 700, 1277, 2500, 4096, 5000, (1000, 10100))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_stay_in_their_row(emulator, seqlen, machine, bad):
    u, grad = (random(3, 2, seqlen, dtype=torch.bfloat16) for _ in range(2))
    spectrum = make_spectrum(emulator, seqlen, {"k": random(2, seqlen)}, {})
    expected = gradients(emulator, {"u": u}, spectrum, grad, **machine)
    grad[1, 0, seqlen // 2] = bad  # before other rows in the same place
    got = gradients(emulator, {"u": u}, spectrum, grad, **machine)
    assert not got["grad_u"][1, 0].isfinite().any()
    assert not got["spectrum_grad"][0].isfinite().any()
    assert torch.equal(got["spectrum_grad"][1], expected["spectrum_grad"][1])
    clean = torch.ones(3, 2, dtype=torch.bool)
    clean[1, 0] = False
    assert torch.equal(got["grad_u"][clean], expected["grad_u"][clean])


@over_machines(700, (1000, 10100), (12285, 60000))
def test_no_gradients_of_nothing(emulator, seqlen, machine):
    """Rows of zeros, which no power of two scales to 1, and a batch of none."""
    u, grad = (random(2, 2, seqlen, dtype=torch.float16) for _ in range(2))
    u[:, 0], grad[0, 1] = 0, 0
    spectrum = make_spectrum(emulator, seqlen, {"k": random(2, seqlen)}, {})
    got = gradients(emulator, {"u": u}, spectrum, grad, **machine)
    assert not got["spectrum_grad"][0].any()
    assert got["spectrum_grad"][1].any()
    assert not got["grad_u"][0, 1].any()
    none = gradients(emulator, {"u": u[:0]}, spectrum, grad[:0], **machine)
    assert none["grad_u"].shape == (0, 2, seqlen)
    assert not none["spectrum_grad"].any()


def test_bad_length_traps(emulator):
    rows, lengths = random(3, 2, 500, dtype=torch.float16), torch.tensor([500, 501, 0])
    spectrum = make_spectrum(emulator, 500, {"k": random(2, 500)}, {})
    with pytest.raises(RuntimeError, match=r"__trap: thread \d+ of block \d+ at fft_rows.cuh:\d+"):
        gradients(emulator, {"u": rows, "lengths": lengths}, spectrum, rows, shared_memory=10100)
