"""The ops on a GPU: values, gradients, streams, graphs. Without one everything here is skipped.

``--device cpu`` runs on the CPU what does not need a GPU, which shows that these tests themselves are right.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from cases import LARGE, OPS, SMALL, Case, call, call_reference, gradients, oracle
from tolerance import assert_matches
from torch import Tensor

import monarch_ops as mo
from monarch_ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return chosen


def move(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: t.to(device) for name, t in tensors.items()}


def check(case: Case, tensors: dict[str, Tensor], got: Tensor) -> None:
    assert_matches(got.cpu(), oracle(case, tensors), call_reference(case, tensors))


@over_dtypes
@pytest.mark.parametrize("case", SMALL + LARGE, ids=str)
def test_value(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    tensors = case.tensors(dtype)
    check(case, tensors, call(case, move(tensors, device)))


@over_dtypes
@pytest.mark.parametrize("case", [c for c in LARGE if OPS[c.op].family == "fft_conv"], ids=str)
def test_every_engine(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    tensors = case.tensors(dtype)
    rows = [v["name"] for v in mo.variants() if v["family"] == "fft_conv" and v["device"] == device.type]
    for name in sorted(set(rows)):
        try:
            got = call(case, move(tensors, device), name)
        except ValueError as refused:  # a row of the table that these tensors do not fit
            if "'variant'" not in str(refused):
                raise
            continue
        check(case, tensors, got)


@over_dtypes
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_gradient(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    tensors = case.tensors(dtype)
    weight = torch.randn_like(call(case, tensors)).double()
    ours = gradients(lambda t: call(case, t), move(tensors, device), weight.to(device))
    base = gradients(lambda t: call_reference(case, t), tensors, weight)
    wide = gradients(lambda t: call_reference(case, t), {n: t.double() for n, t in tensors.items()}, weight)
    # what comes of rows that were transformed in half precision is as good as 16-bit numbers, even if it is float32
    kept = dtype if OPS[case.op].family == "fft_conv" else None
    for name in tensors:
        got, baseline = (t.to(kept or t.dtype) for t in (ours[name].cpu(), base[name]))
        assert_matches(got, wide[name], baseline, f"gradient of {name}")


# One length for every kind of tile, then for the cuts in three launches.
LENGTHS = (250, 500, 1000, 1300, 3000, 4096, 5000, 8192, 12000, 16384, 30000, 32768)
LENGTHS += (65536, 1 << 17, 200000, 1 << 20, 1 << 22)


def over_lengths(*lengths: int) -> pytest.MarkDecorator:
    """With every dtype; with one where the reference alone takes ten seconds."""
    pairs = [(n, dtype) for n in lengths for dtype in (DTYPES if n <= 1 << 20 else DTYPES[-1:])]
    return pytest.mark.parametrize(("seqlen", "dtype"), pairs, ids=str)


@over_lengths(*LENGTHS)
def test_enough_rows_for_the_whole_machine(seqlen: int, dtype: torch.dtype, device: torch.device) -> None:
    """More rows than there are blocks, gated, with lengths; taps that decay, as those of a model do."""
    channels = max(2, min(700, (1 << 21) // seqlen))
    u, gate = (torch.randn(3, channels, seqlen).to(dtype) for _ in range(2))
    k = torch.randn(channels, seqlen) * torch.exp(-5 * torch.arange(seqlen) / seqlen) / seqlen**0.5
    options = {"lengths": torch.tensor([seqlen, seqlen // 3, 0]), "skip": torch.randn(channels)}
    rows = {"u": u, "pre_gate": gate, "post_gate": gate.flip(1).contiguous()}
    got = mo.fft_conv(**move(rows, device), k=k.to(device), **move(options, device))
    exact = reference.fft_conv(**{n: t.double() for n, t in rows.items()}, k=k.double(), **options, method="fft")
    base = reference.fft_conv(**rows, k=k, **options)
    assert_matches(got.cpu(), exact, base)
    precise = mo.fft_conv(**move(rows, device), k=k.to(device), **move(options, device), precision="precise")
    assert_matches(precise.cpu(), exact, base)


@over_lengths(4096, 12000, 20481, 32768, 65536, 1 << 17, 200000, 1 << 20, 1 << 21)
def test_gradients_of_enough_rows_for_the_whole_machine(seqlen: int, dtype: torch.dtype, device: torch.device) -> None:
    channels = max(2, min(300, (1 << 20) // seqlen))
    rows = {name: torch.randn(3, channels, seqlen).to(dtype) for name in ("u", "pre_gate", "post_gate")}
    decay = torch.exp(-5 * torch.arange(seqlen) / seqlen) / seqlen**0.5
    tensors = rows | {name: torch.randn(channels, seqlen) * decay for name in ("k", "k_rev")}
    weight = torch.randn(3, channels, seqlen).to(dtype)
    lengths = torch.tensor([seqlen, seqlen // 3, 0])
    ours = gradients(lambda t: mo.fft_conv(**t, lengths=lengths.to(device)), move(tensors, device), weight.to(device))

    def of_reference(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return gradients(lambda t: reference.fft_conv(**t, lengths=lengths, method="fft"), tensors, weight)

    exact, base = of_reference({n: t.double() for n, t in tensors.items()}), of_reference(tensors)
    for name in tensors:  # what comes of transforms in half precision is as good as 16-bit numbers
        assert_matches(ours[name].cpu().to(dtype), exact[name], base[name].to(dtype), f"gradient of {name}")


@over_dtypes
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_strides(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    tensors = case.tensors(dtype)
    turned = {n: t.to(device).transpose(0, -1).contiguous().transpose(0, -1) for n, t in tensors.items()}
    check(case, tensors, call(case, turned))
    sliced = {n: t.to(device).repeat_interleave(2, -1)[..., ::2] for n, t in tensors.items()}
    check(case, tensors, call(case, sliced))


@over_dtypes
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_results_are_the_same_every_time(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    tensors = move(case.tensors(dtype), device)
    weight = torch.randn_like(call(case, tensors))
    first, second = (gradients(lambda t: call(case, t), tensors, weight) for _ in range(2))
    for name in tensors:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_second_derivatives(case: Case, device: torch.device) -> None:
    """Of the first ones, times numbers of their own."""
    tensors = case.tensors(torch.float32)
    weight = torch.randn_like(call_reference(case, tensors))
    factors = {name: torch.randn_like(t) for name, t in tensors.items()}

    def of(function: Callable[..., Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        like = next(iter(leaves.values()))
        out = function(case, leaves)
        first = torch.autograd.grad(out, list(leaves.values()), weight.to(like), create_graph=True)
        total = sum((g * f.to(like)).sum() for g, f in zip(first, factors.values(), strict=True))
        second = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(leaves.items(), second, strict=True)
        }

    ours = of(call, move(tensors, device))
    base, exact = of(call_reference, tensors), of(call_reference, {n: t.double() for n, t in tensors.items()})
    for name in tensors:
        assert_matches(ours[name].cpu(), exact[name], base[name], f"second derivative by {name}")


@over_dtypes
@pytest.mark.parametrize("seqlen", [100, 4096, 65537])
def test_no_rows(seqlen: int, dtype: torch.dtype, device: torch.device) -> None:
    u = torch.ones(0, 2, seqlen, dtype=dtype, device=device, requires_grad=True)
    k = torch.ones(2, seqlen, device=device, requires_grad=True)
    y = mo.fft_conv(u, k)
    assert y.shape == u.shape
    of_u, of_k = torch.autograd.grad(y, (u, k), torch.ones_like(y))
    assert of_u.shape == u.shape
    assert not of_k.any()


@over_dtypes
@pytest.mark.parametrize(("seqlen", "prepared"), [(700, 1000), (3000, 4096), (40000, 70000)])
def test_filter_prepared_for_longer_rows(seqlen: int, prepared: int, dtype: torch.dtype, device: torch.device) -> None:
    u, k = torch.randn(2, 3, seqlen).to(dtype), torch.randn(3, seqlen) / seqlen**0.5
    spectrum = mo.fft_filter(k.to(device), prepared, dtype=dtype)
    got = mo.fft_conv(u.to(device), spectrum).cpu()
    assert_matches(got, reference.fft_conv(u.double(), k.double(), method="fft"), reference.fft_conv(u, k))


@over_dtypes
def test_compiled(dtype: torch.dtype, device: torch.device) -> None:
    """Traced, forward and backward, with whatever kernels: the ops are what is looked at."""
    tensors = move({"u": torch.randn(2, 3, 5000).to(dtype), "k": torch.randn(3, 5000) / 70}, device)
    weight = torch.randn(2, 3, 5000, device=device)
    compiled = torch.compile(lambda t: mo.fft_conv(**t), backend="aot_eager", fullgraph=True)
    ours, expected = gradients(compiled, tensors, weight), gradients(lambda t: mo.fft_conv(**t), tensors, weight)
    for name in tensors:
        assert torch.equal(ours[name], expected[name]), name


def test_autocast(device: torch.device) -> None:
    u, k = torch.randn(2, 3, 5000, device=device), torch.randn(3, 5000, device=device) / 70
    with torch.autocast(device.type, torch.bfloat16):
        got = mo.fft_conv(u, k)
    assert torch.equal(got, mo.fft_conv(u.bfloat16(), k))


TO_CAPTURE = ("L1024", "two-sided-L640", "two-sided-L4096", "longest", "mixer-512", "L257-silu", "m2bert", "n64")
ROWS = [c for c in LARGE if c.label in TO_CAPTURE]


@needs_a_gpu
@over_dtypes
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_runs_on_the_current_stream(case: Case, dtype: torch.dtype) -> None:
    """Inputs that are still being made on it when the op is called; and the host waits for nothing."""
    tensors = move(case.tensors(dtype), torch.device("cuda"))
    options = case.extra(tensors)
    expected = call(case, tensors)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)  # cycles: some 250 ms, more than the host needs for the call
        late = {name: t.clone() for name, t in tensors.items()}
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = OPS[case.op].call(**late, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not stream.query()
    torch.cuda.synchronize()
    assert torch.equal(got, expected)


@needs_a_gpu
@over_dtypes
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_cuda_graphs(case: Case, dtype: torch.dtype) -> None:
    """A captured call, forward and backward, computes anew when it is replayed."""
    tensors = move(case.tensors(dtype), torch.device("cuda"))
    options, weight = case.extra(tensors), torch.randn_like(call(case, tensors))

    def step() -> dict[str, Tensor]:
        return gradients(lambda t: OPS[case.op].call(**t, **options), tensors, weight)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for name, t in case.tensors(dtype, seed=1).items():
        tensors[name].copy_(t)
    graph.replay()
    expected = step()
    for name in tensors:
        assert torch.equal(captured[name], expected[name]), name


@needs_a_gpu
def test_workspace_is_torchs() -> None:
    """A row of 4,194,304 points does not fit into a block; where it is kept, the allocator knows."""
    u, k = torch.randn(1, 2, 1 << 22, device="cuda"), torch.randn(2, 1 << 22, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    free = torch.cuda.mem_get_info()[0]
    y = mo.fft_conv(u, k)
    assert torch.cuda.max_memory_allocated() - before > y.nbytes
    del y
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] >= free - (64 << 20)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_other_devices(case: Case) -> None:
    tensors = case.tensors(torch.bfloat16)
    other = torch.device("cuda", torch.cuda.device_count() - 1)
    got = call(case, move(tensors, other))
    assert got.device == other
    assert torch.cuda.current_device() == 0
    check(case, tensors, got)


@needs_a_gpu
@pytest.mark.parametrize("bad", [-1, 101])
def test_a_bad_length_stops_the_kernel(bad: int) -> None:
    """In a process of its own: nothing on the device can be used after it."""
    program = (
        "import torch, monarch_ops as mo\n"
        f"lengths = torch.tensor([{bad}], device='cuda')\n"
        "mo.fft_conv(torch.ones(1, 1, 100, device='cuda'), torch.ones(1, 100, device='cuda'), lengths=lengths)\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert "CUDA error" in done.stderr


@needs_a_gpu
def test_out_of_memory() -> None:
    """What callers that then try smaller batches look for is in the message; PyTorch's type does not get here."""
    u = torch.zeros(1, 1, 1 << 20, device="cuda").expand(1 << 20, 1, -1)
    with pytest.raises(RuntimeError, match=r"could not allocate 4.1e\+03 GiB: .*CUDA out of memory"):
        mo.fft_conv(u, torch.zeros(1, 1, device="cuda"))


@needs_a_gpu
def test_a_child_process_can_use_cuda_after_work_on_the_cpu() -> None:
    program = (
        "import copy, os, torch, monarch_ops as mo\n"
        "prepared = mo.fft_filter(torch.ones(1, 100), mo.fft_length(100), variant='generic')\n"
        "mo.fft_conv(torch.ones(1, 1, 100), copy.deepcopy(prepared))\n"
        "if child := os.fork():\n"
        "    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "mo.fft_conv(torch.ones(1, 1, 100, device='cuda'), torch.ones(1, 100, device='cuda')).sum().item()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_a_gpu
def test_too_many_rows() -> None:
    u = torch.zeros(1, 1, 1, device="cuda").expand(1 << 16, 1 << 15, 1)
    with pytest.raises(ValueError, match=r"at most 2\^30 rows, B\*H, got 2147483648"):
        mo.fft_conv(u, torch.zeros(1 << 15, 1, device="cuda"))
