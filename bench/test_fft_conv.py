"""Long convolution against real FFTs of twice the length, and against our own plain form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measure import DEVICES
from peers import PEERS, Peer
from torch import Tensor
from torch.nn import functional as F

import monarch_ops as mo
from monarch_ops import _C
from monarch_ops.demo.speed import torch_fft_conv

Shape = tuple[int, int, int]
SHAPES: dict[str, list[Shape]] = {
    "cpu": [
        (8, 768, 128),
        (4, 768, 1024),
        (1, 768, 4096),
        (1, 768, 8192),
        (1, 768, 32768),
        (1, 64, 262144),
        (1, 8, 1048576),
        (1, 2, 4194304),
    ],
    "cuda": [
        *((64, 768, 1 << n) for n in range(8, 16)),
        (16, 768, 65536),
        (4, 768, 262144),
        (8, 48, 1048576),
        (2, 48, 4194304),
    ],
}
OWN_SHAPES = {"cpu": [(8, 768, 128), (1, 768, 4096), (1, 64, 262144)], "cuda": SHAPES["cuda"][2::3]}
PEER_SHAPES = {"cpu": [(8, 768, 128), (4, 768, 1024), (1, 768, 8192), (1, 64, 262144)], "cuda": SHAPES["cuda"]}
QUICK = [(8, 768, 128), (4, 768, 1024), (1, 768, 8192), (64, 768, 2048)]
WIDEST = next(v["name"] for v in mo.variants() if v["available"] and v["device"] == "cpu")


def over(shapes: dict[str, list[Shape]]) -> pytest.MarkDecorator:
    """Every device with its own shapes."""
    pairs = [
        pytest.param(device, shape, id=f"{device}-{shape}", marks=[pytest.mark.quick] * (shape in QUICK))
        for device in DEVICES
        for shape in shapes[device]
    ]
    return pytest.mark.parametrize(("device", "shape"), pairs, indirect=["device"])


def usual_dtype(device: torch.device) -> torch.dtype:
    """Of the rows that models have there."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def problem(shape: Shape, device: torch.device, count: int, dtype: torch.dtype) -> list[Tensor]:
    """`count` rows tensors, then taps and skip weight."""
    _, H, L = shape
    rows = [torch.randn(shape, device=device, dtype=dtype) for _ in range(count)]
    return [*rows, torch.randn(H, L, device=device) / L**0.5, torch.randn(H, device=device)]


def exact(u: Tensor, k: Tensor, skip: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
    """The first row of the batch in float64."""
    x = u[:1].double() if pre is None else u[:1].double() * pre[:1].double()
    y = torch_fft_conv(x, k.double(), skip.double())
    return y if post is None else y * post[:1]


def cost(shape: Shape, kind: str, gates: int, dtype: torch.dtype, device: torch.device) -> dict:
    """Of `kind` "prepared", "from_taps" or "backward", as csrc/plan/cost.h counts it."""
    name = str(dtype).removeprefix("torch.")
    counted = _C.explain_fft_conv(*shape, gates=gates, dtype=name, device=device.type)[kind]
    return counted | {"dtype": "float32" if device.type == "cpu" or dtype == torch.float32 else "float16"}


def gated_torch_conv(u: Tensor, pre: Tensor, post: Tensor, spectrum: Tensor, skip: Tensor) -> Tensor:
    """With the filter's real FFT of twice the length; in float32 whatever the rows are."""
    L, n = u.shape[-1], 2 * u.shape[-1]
    x = u.float() * pre.float()
    y = torch.fft.irfft(torch.fft.rfft(x, n=n) * spectrum, n=n)[..., :L]
    return ((y + x * skip[:, None]) * post.float()).to(u.dtype)


@over(SHAPES)
def test_filter_in_every_call(compare, device, shape):
    dtype = usual_dtype(device)
    u, k, skip = problem(shape, device, 1, dtype)
    compare(
        f"fft_conv {shape}",
        lambda: mo.fft_conv(u, k, skip=skip),
        lambda: torch_fft_conv(u, k, skip),
        "torch.fft",
        exact(u, k, skip),
        cost(shape, "from_taps", 0, dtype, device),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@over(SHAPES)
def test_prepared_filter_and_gates(compare, device, shape, dtype):
    u, pre, post, k, skip = problem(shape, device, 3, dtype)
    spectrum, ready = torch.fft.rfft(k, n=2 * shape[2]), mo.fft_filter(k, shape[2], skip=skip, dtype=dtype)
    compare(
        f"fft_conv {shape} prepared, gated",
        lambda: mo.fft_conv(u, ready, pre_gate=pre, post_gate=post),
        lambda: gated_torch_conv(u, pre, post, spectrum, skip),
        "torch.fft, prepared",
        exact(u, k, skip, pre, post),
        cost(shape, "prepared", 2, dtype, device),
        dtype=dtype,
    )


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@over(PEER_SHAPES)
def test_peers(compare, device, shape, peer: Peer):
    """The filter is transformed in every call on both sides."""
    if device.type not in peer.devices:
        pytest.skip(f"{peer.name} does not run on {device.type}")
    dtype = usual_dtype(device)
    u, k, skip = problem(shape, device, 1, dtype)
    compare(
        f"fft_conv {shape}",
        lambda: mo.fft_conv(u, k, skip=skip),
        peer.make(u, k, skip),
        peer.name,
        exact(u, k, skip),
        cost(shape, "from_taps", 0, dtype, device),
        dtype=dtype,
        foreign=peer.foreign,
    )


@pytest.mark.parametrize("form", ["bidirectional", "circular"])
@over({"cpu": [(4, 768, 1024), (1, 768, 8192), (1, 768, 32768)], "cuda": SHAPES["cuda"]})
def test_other_forms(compare, device, shape, form):
    """Two-sided filters, and the circular convolution of L points that FlashFFTConv's own table has."""
    dtype = usual_dtype(device)
    u, k, skip = problem(shape, device, 1, dtype)
    k_rev = torch.randn_like(k) / shape[2] ** 0.5

    def theirs(u: Tensor, k: Tensor, k_rev: Tensor, skip: Tensor) -> Tensor:
        L = shape[2]
        n = L if form == "circular" else 2 * L
        taps = k if form == "circular" else F.pad(k, (0, L)) + F.pad(k_rev.flip(1), (L, 0))
        y = torch.fft.irfft(torch.fft.rfft(u.to(k.dtype), n=n) * torch.fft.rfft(taps, n=n), n=n)[..., :L]
        return (y + u * skip[:, None]).to(u.dtype)

    options = {"circular": True} if form == "circular" else {"k_rev": k_rev}
    compare(
        f"fft_conv {shape} {form}",
        lambda: mo.fft_conv(u, k, skip=skip, **options),
        lambda: theirs(u, k, k_rev, skip),
        "torch.fft",
        theirs(*(t.double() for t in (u[:1], k, k_rev, skip))),
        dtype=dtype,
    )


@over({"cpu": [], "cuda": [shape for shape in SHAPES["cuda"] if shape[2] <= 1 << 21]})
def test_against_flashfftconv(compare, device, shape):
    """The same causal, gated problem, for which it needs a transform of 2 L; filters are transformed in every call."""
    peer = pytest.importorskip("flashfftconv", reason="FlashFFTConv is not installed")
    u, pre, post, k, skip = problem(shape, device, 3, torch.bfloat16)
    theirs = peer.FlashFFTConv(2 * shape[2], dtype=torch.bfloat16).to(device)
    compare(
        f"fft_conv {shape} gated",
        lambda: mo.fft_conv(u, k, pre_gate=pre, post_gate=post),
        lambda: theirs(u, k, pre, post),
        "FlashFFTConv",
        exact(u, k, torch.zeros_like(skip), pre, post),
        cost(shape, "from_taps", 2, torch.bfloat16, device),
        dtype=torch.bfloat16,
    )


@pytest.mark.parametrize("gates", [0, 2])
@over({"cpu": SHAPES["cpu"][:6], "cuda": SHAPES["cuda"][:-1]})
def test_backward(compare, device, shape, gates):
    dtype = usual_dtype(device)
    u, pre, post, k, skip = problem(shape, device, 3, dtype)
    inputs = [x.requires_grad_() for x in ((u, pre, post, k, skip) if gates else (u, k, skip))]

    def backward(forward: Callable[[], Tensor]) -> Callable[[], object]:
        made: list[Tensor] = []  # by the first call

        def run() -> object:
            if not made:
                made.append(forward())
                made.append(torch.ones_like(made[0]))
            return torch.autograd.grad(made[0], inputs, made[1], retain_graph=True)

        return run

    def theirs() -> Tensor:
        if not gates:
            return torch_fft_conv(u, k, skip)
        return gated_torch_conv(u, pre, post, torch.fft.rfft(k, n=2 * shape[2]), skip)

    rows = {"pre_gate": pre, "post_gate": post} if gates else {}
    compare(
        f"fft_conv {shape} backward" + (", gated" if gates else ""),
        backward(lambda: mo.fft_conv(u, k, skip=skip, **rows)),
        backward(theirs),
        "torch.fft and autograd",
        cost=cost(shape, "backward", gates, dtype, device),
        dtype=dtype,
    )


@pytest.mark.parametrize("form", ["two-sided", "ragged", "avx2"])
@over(OWN_SHAPES)
def test_against_the_plain_form(compare, device, shape, form):
    """What other forms cost against the causal convolution of a power of two by the widest instruction set."""
    if form == "avx2" and not (device.type == "cpu" and WIDEST == "avx512"):
        pytest.skip("compares two instruction sets of the CPU")
    dtype = usual_dtype(device)
    u, k, skip = problem(shape, device, 1, dtype)
    L = shape[2]
    short = 3 * L // 4 + 1  # needs the transform of L
    v = torch.randn(*shape[:2], short, device=device, dtype=dtype)
    ours = {
        "two-sided": lambda: mo.fft_conv(u, k, k_rev=k, skip=skip),
        "ragged": lambda: mo.fft_conv(v, k, skip=skip),
        "avx2": lambda: mo.fft_conv(u, k, skip=skip, variant="avx2"),
    }[form]
    name = f"L={short}" if form == "ragged" else form
    compare(f"fft_conv {shape} {name}", ours, lambda: mo.fft_conv(u, k, skip=skip), "our plain form", dtype=dtype)
