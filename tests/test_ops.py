"""Every case of cases.py: values, derivatives, opcheck, compilation, strides, empty batches."""

from __future__ import annotations

import pytest
import torch
from cases import LARGE, OPS, SMALL, Case, call, call_reference, gradients, oracle
from tolerance import assert_matches, bound, relative_error

import monarch_ops as mo
from monarch_ops import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
VARIANTS = sorted({v["name"] for v in mo.variants() if v["available"] and v["device"] == "cpu"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL + LARGE, ids=str)
def test_value(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    assert_matches(call(case, tensors), oracle(case, tensors), call_reference(case, tensors))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [c for c in LARGE if OPS[c.op].family], ids=str)
def test_variant(case: Case, variant: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensors = case.tensors(dtype)
        assert_matches(call(case, tensors, variant), oracle(case, tensors), call_reference(case, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SMALL + LARGE, ids=str)
def test_gradient(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    weight = torch.randn_like(call(case, tensors)).double()
    ours = gradients(lambda t: call(case, t), tensors, weight)
    base = gradients(lambda t: call_reference(case, t), tensors, weight)
    wide = gradients(lambda t: call_reference(case, t), {n: t.double() for n, t in tensors.items()}, weight)
    for name in tensors:
        assert_matches(ours[name], wide[name], base[name], f"gradient of {name}")


@pytest.mark.parametrize("widen", [False, True], ids=["as they are", "float32 copies"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weight_gradients_of_16_bits(dtype: torch.dtype, widen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways on every machine; which one is taken depends on the CPU."""
    monkeypatch.setattr("monarch_ops.ops.blockdiag.products_widen", lambda: widen)
    grad, x = (torch.randn(3, 50, 48).to(dtype) for _ in range(2))
    weight = torch.randn(4, 12, 12).to(dtype).requires_grad_()
    mo.blockdiag_matmul(x, weight).backward(grad)
    wide = torch.einsum("...gq,...gp->gqp", grad.double().unflatten(-1, (4, 12)), x.double().unflatten(-1, (4, 12)))
    assert weight.grad.dtype == dtype
    assert relative_error(weight.grad, wide) < relative_error(wide.to(dtype), wide) * 1.01


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case: Case) -> None:
    names, values = zip(*case.tensors().items(), strict=True)
    inputs = tuple(v.requires_grad_() for v in values)

    def function(*args):
        return call(case, dict(zip(names, args, strict=True)))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def ops_called(case: Case, tensors: dict) -> list:
    """The calls into torch.ops.monarch_ops that an op makes, forward and backward, with their arguments."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "monarch_ops":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    leaves = {n: t.requires_grad_() for n, t in tensors.items()}
    with Record():
        out = call(case, leaves)
        grads = torch.autograd.grad(out.sum(), list(leaves.values()), create_graph=True)
        torch.autograd.grad(sum(g.sum() for g in grads), list(leaves.values()), allow_unused=True)
    return calls


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_opcheck(case: Case) -> None:
    seen = set()
    for func, args in ops_called(case, case.tensors(torch.float32)):
        if func in seen:
            continue
        seen.add(func)
        fresh = [a.detach().clone().requires_grad_(a.is_floating_point()) if torch.is_tensor(a) else a for a in args]
        torch.library.opcheck(func, tuple(fresh))
    assert seen


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_compile_traces_the_whole_graph(case: Case) -> None:
    torch._dynamo.reset()
    tensors = case.tensors(torch.float32)
    leaves = {n: t.requires_grad_() for n, t in tensors.items()}

    def function(t):
        return torch.relu(call(case, t)) * 2

    expected = function(leaves)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(leaves)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.sum(), list(leaves.values())),
        torch.autograd.grad(expected.sum(), list(leaves.values())),
    )


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_strides(case: Case) -> None:
    """Any strides give the result of the contiguous tensors, and views do not write through."""
    tensors = case.tensors(torch.float32)
    expected = call(case, tensors)
    for layout in ("transposed", "sliced", "expanded"):
        strided = {}
        for name, t in tensors.items():
            if layout == "transposed":
                strided[name] = t.transpose(0, -1).contiguous().transpose(0, -1)
            elif layout == "sliced":
                wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
                wide[..., 1::2] = t
                strided[name] = wide[..., 1::2]
            else:  # leading axis repeated without memory
                strided[name] = t[:1].expand_as(t)
        reference_inputs = {n: t.contiguous() for n, t in strided.items()} if layout == "expanded" else tensors
        expected = call(case, reference_inputs)
        torch.testing.assert_close(call(case, strided), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [c for c in SMALL + LARGE if c.op.endswith("_of_rows")], ids=str)
def test_products_keep_the_layout(case: Case, dtype: torch.dtype) -> None:
    y = call(case, case.tensors(dtype))
    assert y.transpose(-2, -1).is_contiguous()


def test_empty_batches() -> None:
    for case in SMALL:
        if case.op in ("fft_conv", "prepared_conv") and "lengths" not in case.options:
            tensors = case.tensors(torch.float32)
            batched = {n: t[:0] if n in ("u", "pre_gate", "post_gate") else t for n, t in tensors.items()}
            leaves = {n: t.requires_grad_() for n, t in batched.items()}
            out = call(case, leaves)
            assert out.shape == batched["u"].shape
            for name, grad in zip(leaves, torch.autograd.grad(out.sum(), list(leaves.values())), strict=True):
                assert grad.shape == leaves[name].shape
                assert not grad.any()
    assert mo.depthwise_conv1d(torch.ones(0, 3, 5), torch.ones(3, 2)).shape == (0, 3, 5)
    assert mo.blockdiag_matmul(torch.ones(0, 8), torch.ones(2, 3, 4)).shape == (0, 6)
    assert mo.monarch_matmul(torch.ones(2, 0, 4), torch.ones(2, 2, 2), torch.ones(2, 2, 2)).shape == (2, 0, 4)
    no_features, no_middle = (torch.ones(2, 3, 0), torch.ones(2, 3, 3)), (torch.ones(2, 0, 2), torch.ones(2, 3, 0))
    for rows in (1, 20):  # for the matrix library and for the kernel
        zeros = torch.zeros(rows, 6)
        torch.testing.assert_close(mo.blockdiag_matmul(torch.ones(rows, 0), no_features[0]), zeros)
        torch.testing.assert_close(mo.monarch_matmul(torch.ones(rows, 0), *no_features), zeros)
        torch.testing.assert_close(
            mo.blockdiag_glu_mlp(torch.ones(rows, 0), no_features[0], torch.ones(3, 2, 1)), zeros
        )
        no_hidden = torch.ones(2, 0, 2), torch.ones(2, 3, 0)
        torch.testing.assert_close(mo.blockdiag_glu_mlp(torch.ones(rows, 4), *no_hidden), zeros)
        torch.testing.assert_close(mo.monarch_matmul(torch.ones(rows, 4), *no_middle, torch.ones(6)), zeros + 1)
    assert mo.blockdiag_glu_mlp(torch.ones(0, 4), torch.ones(2, 4, 2), torch.ones(2, 2, 2)).shape == (0, 4)


def test_no_channels() -> None:
    assert mo.fft_conv(torch.ones(2, 0, 5), torch.ones(0, 5)).shape == (2, 0, 5)
    assert mo.depthwise_conv1d(torch.ones(2, 0, 5), torch.ones(0, 3)).shape == (2, 0, 5)


def test_dropped_reverse_filter_is_noticed() -> None:
    for L in (2, 33, 640):
        u, k, k_rev = torch.randn(2, 3, L), torch.randn(3, L), torch.randn(3, L)
        exact = reference.fft_conv(u.double(), k.double(), k_rev=k_rev.double(), method="direct")
        limit = bound(reference.fft_conv(u, k, k_rev=k_rev), exact)
        assert relative_error(mo.fft_conv(u, k, k_rev=k_rev), exact) <= limit
        assert relative_error(mo.fft_conv(u, k), exact) > limit
        assert relative_error(mo.fft_conv(u, k, k_rev=k_rev.roll(1, -1)), exact) > limit


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_values_propagate(value: float) -> None:
    u, k = torch.randn(2, 2, 50), torch.randn(2, 50)
    u[0, 1, 20] = value
    y = mo.fft_conv(u, k)
    assert not torch.isfinite(y[0, 1, 20:]).any()
    assert torch.isfinite(y[0, 0]).all()
    assert torch.isfinite(y[1]).all()
    assert not torch.isfinite(mo.depthwise_conv1d(u, k[:, :3])[0, 1, 20:23]).any()
    x = torch.randn(4, 8)
    x[1, 0] = value
    assert not torch.isfinite(mo.blockdiag_matmul(x, torch.randn(2, 3, 4))[1, :3]).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_stands_in_the_padding_of_the_mixer_has_no_influence(value: float) -> None:
    """Neither on the result nor on first and second derivatives."""
    torch.manual_seed(0)
    lengths, (k, k2) = torch.tensor([9, 4]), torch.randn(2, 2, 9, dtype=torch.float64)
    rows = {"a": torch.randn(2, 6, 9, dtype=torch.float64), "u": torch.randn(2, 2, 9, dtype=torch.float64)}
    rest = {"w": torch.randn(6, 3, dtype=torch.float64), "b": torch.randn(6, dtype=torch.float64), "k": k, "k2": k2}

    def derivatives(padding: float) -> dict[str, torch.Tensor]:
        leaves = {name: t.clone() for name, t in (rows | rest).items()}
        for name in rows:
            leaves[name][1, :, 4:] = padding
        a, u, w, b, k, k2 = (t.requires_grad_() for t in leaves.values())
        y = mo.m2_mixer(a, u, w, b, mo.fft_filter(k, 9), mo.fft_filter(k2, 9), lengths)
        first = torch.autograd.grad(y.square().sum(), list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), list(leaves.values()))
        return {f"{name} {i}": g for i, gs in ((1, first), (2, second)) for name, g in zip(leaves, gs, strict=True)}

    clean = derivatives(0.0)
    for name, gradient in derivatives(value).items():
        torch.testing.assert_close(gradient, clean[name], msg=name)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scale_does_not_change_accuracy(dtype: torch.dtype, scale: float) -> None:
    u, k = (torch.randn(2, 3, 777) * scale).to(dtype), torch.randn(3, 777) / 28
    exact = reference.fft_conv(u.double(), k.double())
    assert_matches(mo.fft_conv(u, k), exact, reference.fft_conv(u, k))


def assert_gradients_match(tensors: dict[str, torch.Tensor], weight: torch.Tensor, variant: str) -> None:
    """Of fft_conv, to the policy of tolerance.py."""
    ours = gradients(lambda t: mo.fft_conv(**t, variant=variant), tensors, weight)
    base = gradients(lambda t: reference.fft_conv(**t), tensors, weight)
    wide = gradients(lambda t: reference.fft_conv(**t), {n: t.double() for n, t in tensors.items()}, weight.double())
    for name in tensors:
        assert_matches(ours[name], wide[name], base[name], f"gradient of {name}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [16384, 16383])  # rows that start on a vector's boundary, and some that do not
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_larger_than_the_caches(dtype: torch.dtype, length: int, variant: str) -> None:
    u, k = torch.randn(2, 140, length, dtype=dtype), torch.randn(140, length, dtype=dtype) / length**0.5
    assert u.nbytes > 16 << 20
    exact = reference.fft_conv(u.double(), k.double())
    assert_matches(mo.fft_conv(u, k, variant=variant), exact, reference.fft_conv(u, k))
    tensors = {"u": u, "k": k, "pre_gate": torch.randn_like(u), "post_gate": torch.randn_like(u)}
    weight = torch.randn_like(u)
    assert_gradients_match(tensors, weight, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_many_channels(variant: str) -> None:
    """More channels than are worked on together, in shares of threads that end anywhere."""
    tensors = {"u": torch.randn(3, 333, 100), "k": torch.randn(333, 100), "pre_gate": torch.randn(3, 333, 100)}
    weight = torch.randn(3, 333, 100)
    assert_gradients_match(tensors, weight, variant)
    prepared = mo.fft_conv(tensors["u"], mo.fft_filter(tensors["k"], 100, variant=variant))
    exact = reference.fft_conv(tensors["u"].double(), tensors["k"].double())
    assert_matches(prepared, exact, reference.fft_conv(tensors["u"], tensors["k"]))


def test_float16_overflow_becomes_infinite() -> None:
    y = mo.fft_conv(torch.full((1, 1, 8), 6e4, dtype=torch.float16), torch.ones(1, 8))
    assert torch.isfinite(y[0, 0, 0])
    assert torch.isinf(y[0, 0, 7])


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_conversions_round_to_nearest_even(variant: str) -> None:
    """Every float16 survives a pass through the kernels, and stores round as PyTorch's casts do."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        x = x[torch.isfinite(x)][None, :, None].contiguous()
        y = mo.depthwise_conv1d(x, torch.ones(x.shape[1], 1), variant=variant)
        torch.testing.assert_close(y, x, rtol=0, atol=0)
        gain = torch.rand(x.shape[1], 1) + 0.5
        scaled = mo.depthwise_conv1d(x, gain, variant=variant)
        torch.testing.assert_close(scaled, (x.float() * gain[None]).to(dtype), rtol=0, atol=0)
