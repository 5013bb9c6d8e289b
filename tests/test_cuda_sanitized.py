"""The CUDA kernels in the emulator, built with AddressSanitizer and with ThreadSanitizer."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from emulator import replay
from emulator.driver import arguments
from emulator.samples import CASES, PADDINGS, channels_for, make_depthwise, make_mixer, make_rows, make_taps, random

pytestmark = pytest.mark.emulated


def calls_in_three_launches() -> list[tuple[str, dict]]:
    """On tensor cores: without a level and with one, with inner nodes of both sizes, there and back."""
    calls = []
    for seqlen, points, shared_memory in ((4093, 4096, 12000), (6200, 8192, 24000), (12001, 12288, 40000)):
        machine = {"shared_memory": shared_memory, "l2_bytes": 400_000, "tensor_cores": True}
        rows, filters = make_rows("two-sided", seqlen, torch.float16), random(channels_for(seqlen), 2 * points)
        calls.append(("conv", arguments(["y"], torch.float16, **rows, spectrum=filters, **machine)))
        case, _ = make_mixer(seqlen, torch.bfloat16, True, True, True)
        spectra = {"spectrum": filters, "residual_spectrum": filters}
        calls.append(("mixer", arguments(["y"], torch.bfloat16, **case, **spectra, **machine)))
        if points == 12288:
            machine["shared_memory"] = 60000  # or inner nodes are small on the way back
        # several channels in a launch, rows in several launches
        wide = {"multiprocessors": 4, "l2_bytes": 5 * 16 * points, "batch_slices": 1}
        grads = [*(f"grad_{name}" for name in rows if name != "lengths"), "spectrum_grad"]
        backward = {"grad": rows["u"], "spectrum": filters} | rows | machine | wide
        calls.append(("backward", arguments(grads, torch.float16, **backward)))
        calls.append(("backward", arguments(["spectrum_grad"], torch.float16, **backward)))
    # a head on the sums of a level, and a level below a head
    for points, dtype in ((196608, torch.bfloat16), (655360, torch.float16)):
        rows = {"u": random(1, 1, points, dtype=dtype), "spectrum": random(1, 2 * points)}
        calls.append(("conv", arguments(["y"], dtype, **rows, tensor_cores=True)))
    return calls


def depthwise_calls() -> list[tuple[str, dict]]:
    calls = []
    cases = [(33, *padding, 37, 3) for padding in PADDINGS]
    cases += [(33, 9, 8, 0, 37, 3), (2, 3, 0, 0, 6, 3)]  # taps in three readings; no outputs
    cases += [(151, 9, 7, 3, 70, 2), (151, 9, 7, 3, 6, 3)]  # channels in pairs, and those that do not lie in pairs
    cases += [(4500, 4, 3, 0, 2, 3)]  # more than a block's tile
    for layout in ("bhl", "blh"):
        for length, taps, left, right, channels, gap in cases:
            x, weight = make_depthwise(layout, taps, length, torch.float16, channels)
            shared = {"x": x, "pad_left": left, "channels_last": layout == "blh", "gap": gap}
            out_len = length + left + right - taps + 1
            grad = make_depthwise(layout, taps, out_len, torch.float16, channels)[0]
            if out_len > 0:
                forward = {"weight": weight, "bias": random(channels), "out_len": out_len}
                calls.append(("depthwise", arguments(["y"], torch.float16, **forward, **shared)))
            backward = {"grad": grad, "taps": taps, "slices": 2} | shared
            calls.append(("depthwise_weight_grad", arguments(["weight_grad"], torch.float16, **backward)))
    return calls


def one_call_per_path() -> list[tuple[str, dict]]:
    """Every function at least once, with all of its optional arguments."""
    calls: list[tuple[str, dict]] = []

    def call(function: str, outputs: list[str], dtype: torch.dtype = torch.float32, **named) -> None:
        calls.append((function, arguments(outputs, dtype, **named)))

    cut = {"shared_memory": 4700, "l2_bytes": 40000}
    for seqlen, dtype, machine in (
        (1, torch.float32, {}),
        (17, torch.bfloat16, {}),
        (48, torch.float16, {}),
        (257, torch.float32, {}),
        (500, torch.bfloat16, cut),
    ):
        for case in CASES:
            rows, taps = make_rows(case, seqlen, dtype), make_taps(case, seqlen)
            grads = [f"grad_{name}" for name in (*rows, *taps) if name not in ("lengths", "circular")]
            call("filter", ["spectrum"], seqlen=seqlen, **taps, **machine)
            call("conv", ["y"], dtype, **rows, **taps, **machine)
            call("backward", grads, dtype, grad=rows["u"], batch_slices=1, **rows, **taps, **machine)
            slices = 1 if machine else 2
            call("backward", ["spectrum_grad"], dtype, grad=rows["u"], batch_slices=slices, **rows, **taps, **machine)
    spectrum = random(channels_for(17), 2 * 32)
    call("filter_adjoint", ["grad_k", "grad_k_rev", "grad_skip"], spectrum=spectrum, seqlen=17, num_k=20, num_rev=20)
    alone = {"shared_memory": 150 << 10}  # no second block beside one: it asks for what comes next
    for seqlen, points, machine in (
        (253, 256, {}),
        (700, 768, {}),
        (4096, 4096, {}),
        (6200, 8192, {}),
        (12001, 12288, {}),
        (12001, 12288, alone),
        (32768, 32768, {}),
    ):
        rows = make_rows("two-sided", seqlen, torch.float16)
        filters = random(channels_for(seqlen), 2 * points)
        case, _ = make_mixer(seqlen, torch.bfloat16, True, True, True)
        shared = {"spectrum": filters, "tensor_cores": True} | machine
        call("conv", ["y"], torch.float16, **rows, **shared)
        call("mixer", ["y"], torch.bfloat16, **case, residual_spectrum=filters, **shared)
        grads = [*(f"grad_{name}" for name in rows if name != "lengths"), "spectrum_grad"]
        slices = 2 if seqlen < 20480 else 1
        call("backward", grads, torch.float16, grad=rows["u"], batch_slices=slices, **rows, **shared)
    calls += calls_in_three_launches()
    case, _ = make_mixer(17, torch.bfloat16, True, True, True)
    call("mixer", ["y"], torch.bfloat16, **case, spectrum=spectrum, residual_spectrum=spectrum)
    calls += depthwise_calls()
    rows = random(5, 260)
    call("glu", ["h"], a=rows)
    norm = {"norm_weight": rows[0].clone(), "norm_bias": rows[1].clone(), "eps": 1e-5}
    call("residual_norm", ["out"], y=rows, residual=rows, **norm)
    return calls


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_under_sanitizers(sanitizer):
    calls = [("monarch_emulator", *call) for call in one_call_per_path()]
    done = replay.run_sanitized(calls, sanitizer, ("random", 3))
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("sanitizer", "kernel", "report"),
    [
        ("address", "read_after_input", r"use-after-poison(.|\n)*READ of size 4"),
        ("address", "write_after_shared", r"use-after-poison(.|\n)*WRITE of size 4"),
        ("address", "matrix_after_shared", r"use-after-poison(.|\n)*READ of size 16"),
        ("address", "copy_after_input", r"use-after-poison(.|\n)*READ of size 16"),
        ("address", "prefetch_after_input", r"use-after-poison(.|\n)*READ of size 1"),
        ("thread", "missing_barrier_after_wait", "data race"),
        ("thread", "copy_too_early", "data race"),
        ("thread", "missing_barrier", "data race"),
        ("thread", "missing_second_barrier", "data race"),
        ("thread", "missing_warp_barrier", "data race"),
        ("thread", "missing_second_warp_barrier", "data race"),
    ],
)
def test_sanitizers_find_planted_faults(sanitizer, kernel, report):
    """In the lucky order too, in which the results are right."""
    call = ("monarch_emulator_selftest", kernel, {"x": np.zeros((3, 256), np.float32), "outputs": ["y"]})
    done = replay.run_sanitized([call], sanitizer, ("forward", 0))
    assert done.returncode != 0
    assert re.search(report, done.stderr.decode())
    assert b"selftest.cpp" in done.stderr
