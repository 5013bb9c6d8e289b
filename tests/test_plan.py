"""The planner: lengths, radices, slices and the cost model. No kernel runs here."""

from __future__ import annotations

import math

import pytest

from monarch_ops import _C, variants

explain = _C.explain_fft_conv


@pytest.mark.parametrize("L", [*range(1, 300), 1000, 4097, 14113, 65537, 10**6, 4 * 2**20])
def test_transform_length(L: int) -> None:
    """The transform is at least as long as the row and at most 4/3 longer than needed, from 256 on."""
    plan = explain(1, 1, L)
    assert plan["points"] >= L
    assert plan["points"] == plan["codelet_points"] * math.prod(plan["radices"])
    assert set(plan["radices"]) <= {2, 3, 4, 5, 8}
    assert plan["spectrum_scalars"] == 2 * plan["points"]
    if L > 256:
        assert plan["points"] <= 4 / 3 * L + 128


def test_powers_of_two_are_not_padded() -> None:
    for n in range(7, 23):
        assert explain(1, 1, 2**n)["points"] == 2**n


def test_batch_slices_depend_on_the_sizes_alone() -> None:
    assert explain(64, 768, 100)["batch_slices"] == 1
    assert explain(64, 2, 100)["batch_slices"] == 8
    assert explain(3, 2, 100)["batch_slices"] == 3
    assert explain(0, 0, 100)["batch_slices"] == 1


def test_the_cpu_goes_back_as_it_goes_there() -> None:
    """On the CPU one kernel does both; tests/test_cuda_tensor_core_gradients.py has the plans of a GPU."""
    assert explain(1, 1, 4096, dtype="bfloat16")["gradients"] == explain(1, 1, 4096, dtype="bfloat16")["name"]


def test_cost_counts_compulsory_traffic() -> None:
    plan = explain(8, 3, 1024, gates=2, dtype="bfloat16")
    row, taps = 8 * 3 * 1024 * 2, 3 * 1024 * 4
    assert plan["prepared"]["bytes"] == 4 * row + 2 * taps  # u, two gates, y; a spectrum of complex numbers
    assert plan["from_taps"]["bytes"] == 4 * row + taps
    assert plan["backward"]["bytes"] == 7 * row + 2 * taps  # u, gates, gradient, three gradients; taps and theirs


def test_cost_counts_transforms() -> None:
    transform = 4 * 1024 * 10 + 6 * 1024
    without, with_gates = explain(8, 3, 1024), explain(8, 3, 1024, gates=2)
    assert without["prepared"]["flops"] == 24 * (2 * transform + 6 * 1024)
    assert without["from_taps"]["flops"] - without["prepared"]["flops"] == 3 * transform
    assert with_gates["prepared"]["flops"] - without["prepared"]["flops"] == 24 * 2 * 1024
    assert without["backward"]["flops"] == 24 * (3 * transform + 14 * 1024) + 6 * transform
    assert with_gates["backward"]["flops"] - without["backward"]["flops"] == 24 * (transform + 12 * 1024)


def test_the_planner_takes_the_first_row_that_runs() -> None:
    rows = [v for v in variants() if v["family"] == "fft_conv"]
    for compute in ("float32", "float64"):
        first = next(v for v in rows if v["available"] and v["device"] == "cpu" and v["compute"] == compute)
        assert explain(1, 1, 10, dtype=compute)["variant"] == first["index"]
    for row in rows:
        if row["available"]:
            assert (
                explain(1, 1, 1000, dtype=row["compute"], device=row["device"], variant=row["index"])["variant"]
                == row["index"]
            )
        elif row["device"] == "cpu":
            with pytest.raises(ValueError, match="'variant'"):
                explain(1, 1, 10, dtype=row["compute"], variant=row["index"])
    with pytest.raises(ValueError, match="'variant'"):
        explain(1, 1, 10, variant=len(rows))


def test_bad_plans_are_refused() -> None:
    for arguments, message in (
        ({"seqlen": 0}, "seqlen must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype must be .* got 'int8'"),
        ({"device": "tpu"}, "device must be cpu or cuda, got 'tpu'"),
        ({"device": "cuda", "device_index": 99}, r"cuda:99 is not there: the kernels see \d+ CUDA devices"),
    ):
        with pytest.raises(ValueError, match=message):
            explain(**({"batch": 1, "channels": 1, "seqlen": 8} | arguments))


def test_float64_runs_on_the_cpu_only() -> None:
    with pytest.raises(ValueError, match="no compiled kernel for float64 on CUDA"):
        explain(1, 1, 8, dtype="float64", device="cuda")
