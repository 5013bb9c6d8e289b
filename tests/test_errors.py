"""Bad input is refused with an error that names the op, the argument, what was wanted and what was got."""

from __future__ import annotations

import re

import pytest
import torch
from torch.autograd import forward_ad

import monarch_ops as mo
from monarch_ops import nn
from monarch_ops.compat import safari
from monarch_ops.ops._registration import refusing

U, K = torch.randn(2, 3, 20), torch.randn(3, 20)
A, SHORT = torch.randn(2, 9, 20), torch.randn(9, 3)
X, W = torch.randn(5, 8), torch.randn(2, 3, 4)
SPECTRUM = mo.fft_filter(K, 20)
CYCLIC = mo.fft_filter(K, 20, circular=True)

REFUSED = [
    # fft_conv
    (lambda: mo.fft_conv(U[0], K), ValueError, r"fft_conv: argument 'u' must have shape \(B, H, L\), got \(3, 20\)"),
    (lambda: mo.fft_conv(U[..., :0], K), ValueError, r"'u' must have a length L of at least 1, got \(2, 3, 0\)"),
    (lambda: mo.fft_conv(U.int(), K), ValueError, r"'u' must be float32, float64, bfloat16 or float16, got Int"),
    (lambda: mo.fft_conv(U.to(torch.complex64), K), ValueError, r"'u' must be float32.*got ComplexFloat"),
    (lambda: mo.fft_conv(U, K[:2]), ValueError, r"'k' must have shape \(H=3, Lk\), got \(2, 20\)"),
    (lambda: mo.fft_conv(U, K[0]), ValueError, r"'k' must have shape \(H=3, Lk\), got \(20,\)"),
    (lambda: mo.fft_conv(U, K[:, :0]), ValueError, r"'k' must have at least one tap, got \(3, 0\)"),
    (lambda: mo.fft_conv(U, K.long()), ValueError, r"'k' must be float32.*got Long"),
    (lambda: mo.fft_conv(U, K, k_rev=K.T), ValueError, r"'k_rev' must have shape \(H=3, Lr\), got \(20, 3\)"),
    (lambda: mo.fft_conv(U, K, skip=torch.ones(4)), ValueError, r"'skip' must have shape \(H=3,\), got \(4,\)"),
    (lambda: mo.fft_conv(U, K, pre_gate=U[..., 1:]), ValueError, r"'pre_gate' must have shape \(B=2, H=3, L=20\), got \(2, 3, 19\)"),
    (lambda: mo.fft_conv(U, K, post_gate=U.double()), ValueError, r"'post_gate' must have the dtype of 'u', Float, got Double"),
    (lambda: mo.fft_conv(U, K, lengths=torch.tensor([1])), ValueError, r"'lengths' must have shape \(B=2,\), got \(1,\)"),
    (lambda: mo.fft_conv(U, K, lengths=torch.tensor([1.0, 2.0])), ValueError, r"'lengths' must be int32 or int64, got Float"),
    (lambda: mo.fft_conv(U, K, lengths=torch.tensor([20, -1])), ValueError, r"'lengths' must lie in \[0, L=20\], got -1 at index 1"),
    (lambda: mo.fft_conv(U, K, lengths=torch.tensor([21, 0])), ValueError, r"'lengths' must lie in \[0, L=20\], got 21 at index 0"),
    (lambda: mo.fft_conv(U, K, circular=True, k_rev=K), ValueError, r"'k_rev' must be absent when circular=True"),
    (lambda: mo.fft_conv(U[..., :9], K, circular=True), ValueError, r"'k' must have at most L=9 taps when circular=True, got \(3, 20\)"),
    (lambda: mo.fft_conv(U, K, precision="low"), ValueError, r"'precision' must be 'fast' or 'precise', got 'low'"),
    (lambda: mo.fft_conv(U, K, variant="sse9"), ValueError, r"'variant' must be one of .* got 'sse9'"),
    (lambda: mo.fft_conv(None, K), TypeError, r"'u' must be a Tensor, got NoneType"),
    (lambda: mo.fft_conv(U, None), TypeError, r"'k' must be a Tensor, got NoneType"),
    (lambda: mo.fft_filter(None, 20), TypeError, r"'k' must be a Tensor, got NoneType"),
    (lambda: mo.m2_mixer(A, U, None, None, SPECTRUM), TypeError, r"'short_weight' must be a Tensor, got NoneType"),
    (lambda: mo.depthwise_conv1d(A, None), TypeError, r"'weight' must be a Tensor, got NoneType"),
    (lambda: mo.blockdiag_matmul(None, W), TypeError, r"'x' must be a Tensor, got NoneType"),
    (lambda: mo.monarch_matmul(X, W, None), TypeError, r"'w2' must be a Tensor, got NoneType"),
    (lambda: mo.blockdiag_glu_mlp(X, None, W), TypeError, r"'w_in' must be a Tensor, got NoneType"),
    (lambda: mo.fft_conv(U.numpy(), K), TypeError, r"fft_conv: argument 'u' must be a Tensor, got ndarray"),
    (lambda: mo.fft_conv(U, [1.0]), TypeError, r"'k' must be a Tensor, got list"),
    (lambda: mo.fft_conv(U, K, skip=1.0), TypeError, r"'skip' must be a Tensor, got float"),
    # prepared filters
    (lambda: mo.fft_filter(K, 0), ValueError, r"fft_filter: argument 'seqlen' must be at least 1, got 0"),
    (lambda: mo.fft_filter(K[0], 20), ValueError, r"'k' must have shape \(H, Lk\), got \(20,\)"),
    (lambda: mo.fft_filter(K, 20, dtype=torch.int32), ValueError, r"'dtype' must be float32.*got Int"),
    (lambda: mo.fft_filter(K, 10, circular=True), ValueError, r"'k' must have at most L=10 taps"),
    (lambda: mo.fft_conv(torch.cat([U, U], -1), SPECTRUM), ValueError, r"'spectrum' must be prepared for at least the length of 'u', L=40, got a spectrum prepared for 20"),
    (lambda: mo.fft_conv(U[..., :19], CYCLIC), ValueError, r"'k' must be prepared for the length of 'u', L=19, as it is circular, got .* 20"),
    *((lambda n=n: mo.fft_length(n), TypeError, r"fft_length: argument 'seqlen' must be an int, got " + str(n)) for n in (8.5, 8.0)),
    (lambda: mo.fft_filter(K, 8.0), TypeError, r"fft_filter: argument 'seqlen' must be an int, got 8.0"),
    (lambda: mo.fft_filter(K, "8"), TypeError, r"fft_filter: argument 'seqlen' must be an int, got '8'"),
    (lambda: mo.fft_length(0), ValueError, r"fft_length: argument 'seqlen' must be at least 1, got 0"),
    (lambda: mo.fft_conv(U[:, :2], SPECTRUM), ValueError, r"'k' must be prepared for the channels of 'u', H=2, got a spectrum of H=3"),
    *((lambda n=n: mo.fft_conv(torch.randn(1, 3, n).double(), mo.fft_filter(K, n)), ValueError, r"'k' must be prepared for the dtype of 'u', torch.float64, got a spectrum prepared for torch.float32") for n in (8, 1000)),
    *((lambda n=n: mo.fft_conv(torch.randn(1, 3, n), mo.fft_filter(K.double(), n)), ValueError, r"'k' must be prepared for the dtype of 'u', torch.float32, got a spectrum prepared for torch.float64") for n in (8, 1000)),
    (lambda: mo.fft_conv(U.int(), SPECTRUM), ValueError, r"'u' must be float32, float64, bfloat16 or float16, got Int"),
    (lambda: mo.fft_conv(U, SPECTRUM, skip=K[:, 0]), ValueError, r"'skip' belongs to fft_filter"),
    (lambda: mo.fft_conv(U, SPECTRUM, circular=True), ValueError, r"'circular' belongs to fft_filter"),
    (lambda: mo.fft_conv(U, CYCLIC, circular=False), ValueError, r"'circular' belongs to fft_filter"),
    (lambda: mo.fft_conv(U, SPECTRUM, precision="precise"), ValueError, r"'precision' belongs to fft_filter"),
    (lambda: mo.fft_conv(U, mo.fft_filter(K, 20, precision="precise"), precision="fast"), ValueError, r"'precision' belongs to fft_filter"),
    (lambda: mo.fft_conv(U, SPECTRUM, variant="generic"), ValueError, r"'variant' belongs to fft_filter"),
    # mixer
    (lambda: mo.m2_mixer(A[:, :8], U, SHORT, None, SPECTRUM), ValueError, r"m2_mixer: argument 'a' must have shape \(B, 3H, L\), got \(2, 8, 20\)"),
    (lambda: mo.m2_mixer(A, None, SHORT, None, SPECTRUM, SPECTRUM), ValueError, r"'u' must be given with 'residual_spectrum', got None"),
    (lambda: mo.m2_mixer(A, U, SHORT[:3], None, SPECTRUM), ValueError, r"'short_weight' must have shape \(3H=9, K\), got \(3, 3\)"),
    (lambda: mo.m2_mixer(A, U, SHORT, None, K), TypeError, r"'spectrum' must be a FilterSpectrum, got Tensor"),
    (lambda: mo.m2_mixer(A, U, SHORT, None, CYCLIC), ValueError, r"'spectrum' must not be circular, got FilterSpectrum\(.*"),
    (lambda: mo.m2_mixer(A.double(), U.double(), SHORT, None, SPECTRUM), ValueError, r"'spectrum' must be prepared for the dtype of 'a', torch.float64, got a spectrum prepared for torch.float32"),
    (lambda: mo.m2_mixer(A, U, SHORT, None, SPECTRUM, mo.fft_filter(K, 19)), ValueError, r"'residual_spectrum' must be prepared like 'spectrum'"),
    # short convolution
    (lambda: mo.depthwise_conv1d(U[0], SHORT[:3]), ValueError, r"depthwise_conv1d: argument 'x' must have shape \(B, H, L\), got \(3, 20\)"),
    (lambda: mo.depthwise_conv1d(U, SHORT), ValueError, r"'weight' must have shape \(H=3, K\), got \(9, 3\)"),
    (lambda: mo.depthwise_conv1d(U, SHORT[:3, None]), ValueError, r"'weight' must have shape \(H, K\), got \(3, 1, 3\)"),
    (lambda: mo.depthwise_conv1d(U, SHORT[:3], torch.ones(4)), ValueError, r"'bias' must have shape \(H=3,\), got \(4,\)"),
    (lambda: mo.depthwise_conv1d(U, SHORT[:3], padding=-1), ValueError, r"'padding' must be 'causal', 'same' or a number >= 0, got -1"),
    (lambda: mo.depthwise_conv1d(U[..., :1], SHORT[:3], padding=0), ValueError, r"'padding' must leave an output of length >= 0 for L=1"),
    (lambda: mo.depthwise_conv1d(U, SHORT[:3], layout="lbh"), ValueError, r"'layout' must be 'bhl' or 'blh', got 'lbh'"),
    (lambda: mo.depthwise_conv1d(U, SHORT[:3], activation="relu"), ValueError, r"'activation' must be None or 'silu', got 'relu'"),
    # matrix products
    (lambda: mo.blockdiag_matmul(X, W[0]), ValueError, r"blockdiag_matmul: argument 'weight' must have shape \(G, q, p\), got \(3, 4\)"),
    (lambda: mo.blockdiag_matmul(X[:, :7], W), ValueError, r"'x' must have shape \(\.\.\., G\*p=8\), got \(5, 7\)"),
    (lambda: mo.blockdiag_matmul(X, W.double()), ValueError, r"'weight' must have the dtype of 'x', Float, got Double"),
    (lambda: mo.blockdiag_matmul(X, W, torch.ones(5)), ValueError, r"'bias' must have shape \(G\*q=6,\), got \(5,\)"),
    (lambda: mo.monarch_matmul(X, W, torch.ones(2, 2, 2)), ValueError, r"monarch_matmul: argument 'w2' must have l\*r = k\*q = 6, got \(2, 2, 2\)"),
    (lambda: mo.blockdiag_glu_mlp(X, torch.ones(1, 3, 8), W), ValueError, r"'w_in' must have an even number"),
    (lambda: mo.blockdiag_glu_mlp(X, torch.ones(2, 4, 4), torch.ones(2, 4, 3)), ValueError, r"'w_out' must take G'\*p' = G\*q/2 = 4 features"),
    (lambda: mo.blockdiag_glu_mlp(X, torch.ones(2, 4, 4), torch.ones(2, 4, 2), residual=X[:4]), ValueError, r"'residual' must have the shape of the result"),
    (lambda: nn.BlockDiagLinear(10, 7, 4)(torch.ones(2, 9)), ValueError, r"BlockDiagLinear: argument 'x' must have shape \(\.\.\., 10\), got \(2, 9\)"),
    (lambda: nn.BlockDiagLinear(10, 7, 4)(torch.ones(2, 11)), ValueError, r"'x' must have shape \(\.\.\., 10\), got \(2, 11\)"),
    (lambda: nn.MonarchLinear(10, 7, 4)(torch.tensor(1.0)), ValueError, r"MonarchLinear: argument 'x' must have shape \(\.\.\., 10\), got \(\)"),
    (lambda: nn.BlockDiagLinear(8, 8, 0), ValueError, r"BlockDiagLinear: argument 'nblocks' must be at least 1, got 0"),
    (lambda: nn.MonarchLinear(8, 8, nblocks=0), ValueError, r"MonarchLinear: argument 'nblocks' must be at least 1, got 0"),
    (lambda: nn.LongConv(3, 0), ValueError, r"LongConv: argument 'seqlen' must be at least 1, got 0"),
    *((lambda n=n: nn.HyenaFilter(8, 64, order=4)(n), ValueError, rf"HyenaFilter: argument 'seqlen' must be in \[1, max_len=64\], got {n}") for n in (-1, 0, 65)),
    (lambda: safari.fftconv_func(U, K, K[:, 0], k_rev=K[:, :0]), ValueError, r"fftconv_func: argument 'k_rev' must have at least lag 0, got \(3, 0\)"),
    (lambda: mo.blockdiag_glu_mlp(X, torch.ones(2, 4, 4), torch.ones(2, 4, 2), norm_bias=X[0]), ValueError, r"'norm_weight' must be given with 'norm_bias', got None"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else None)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_every_message_names_op_argument_wanted_and_got() -> None:
    for call, _, _ in REFUSED:
        with pytest.raises((ValueError, TypeError)) as caught:
            call()
        assert re.match(r"\w+: argument '\w+' (must .+, got .+|belongs to \w+ .+)", str(caught.value), re.S), (
            caught.value
        )


GLU = torch.randn(2, 4, 4), torch.randn(2, 4, 2)
DIFFERENTIATED = {
    "fft_conv": (lambda t: mo.fft_conv(U, t), K),
    "fft_conv of a spectrum": (lambda t: mo.fft_conv(t, SPECTRUM), U),
    "fft_filter": (lambda t: mo.fft_filter(t, 20).data, K),
    "m2_mixer": (lambda t: mo.m2_mixer(t, U, SHORT, None, SPECTRUM), A),
    "depthwise_conv1d": (lambda t: mo.depthwise_conv1d(U, t), K),
    "blockdiag_matmul": (lambda t: mo.blockdiag_matmul(t, W), X),
    "monarch_matmul": (lambda t: mo.monarch_matmul(t, W, torch.ones(2, 2, 3)), X),
    "blockdiag_glu_mlp": (lambda t: mo.blockdiag_glu_mlp(t, *GLU), X),
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_derivatives_that_would_be_lost_are_refused(name: str) -> None:
    """PyTorch gives a tangent of zero for ops of its libraries, and torch.func none of theirs."""
    (function, t), op = DIFFERENTIATED[name], name.split()[0]
    forward, reverse = (
        rf"{op}: argument '\w+' must not be differentiated {how}" for how in ("in forward", "by torch.func")
    )
    for transform in (lambda f, x: torch.func.jvp(f, (x,), (x,)), lambda f, x: torch.func.jacfwd(f)(x)):
        with pytest.raises(NotImplementedError, match=forward):
            transform(function, t)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=forward):
        function(forward_ad.make_dual(t, t))
    for transform in (torch.func.grad, lambda f: lambda x: torch.func.vmap(torch.func.grad(f))(x[None])):
        with pytest.raises(NotImplementedError, match=reverse):
            transform(lambda x: function(x).sum())(t)
    leaf = t.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=reverse):
        torch.func.vmap(lambda one: one * function(leaf))(torch.ones(2))


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_transforms_that_take_no_derivative_of_an_op_work(name: str) -> None:
    function, t = DIFFERENTIATED[name]
    plain = function(t)
    leaf = t[None].clone().requires_grad_()
    mapped = torch.func.vmap(function)(leaf)
    torch.testing.assert_close(mapped[0], plain)
    (ours,) = torch.autograd.grad(mapped.square().sum(), leaf)
    torch.testing.assert_close(ours, torch.autograd.grad(function(leaf[0]).square().sum(), leaf)[0])
    _, tangent = torch.func.jvp(lambda x: x.sum() * function(t), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(tangent, t.numel() * plain)
    gradient = torch.func.grad(lambda x, other: (x.sum() * function(other)).sum())(t, t)
    torch.testing.assert_close(gradient, plain.sum().expand_as(t))
    torch.testing.assert_close(torch.func.grad(lambda x: x.sum() * function(x.detach()).sum())(t), gradient)


# where no function of ours is between: torch 2.15 makes RuntimeErrors of ValueErrors
FROM_TORCH = (ValueError, RuntimeError)


def test_a_refusal_is_a_value_error_with_every_torch() -> None:
    def fails(error: Exception) -> None:
        raise error

    refused = "fft_conv: argument 'u' must have shape (B, H, L), got (3, 20)"
    for text in (
        refused,
        "argument 'variant' must be",
        "no compiled kernel for float64",
        "transforms of 8 points need 1",
    ):
        with pytest.raises(ValueError, match="^" + re.escape(text)):
            refusing(fails)(RuntimeError(text))
    for other in (RuntimeError("monarch_ops: CUDA error"), NotImplementedError(refused), TypeError(refused)):
        with pytest.raises(type(other)) as raised:
            refusing(fails)(other)
        assert raised.value is other


def test_a_compiled_call_refuses_too() -> None:
    compiled = torch.compile(lambda u, n: mo.fft_conv(u, K, lengths=n), backend="aot_eager", fullgraph=True)
    assert compiled(U, torch.tensor([20, 3])).shape == U.shape
    with pytest.raises(FROM_TORCH, match="'lengths' must lie in"):
        compiled(U, torch.tensor([20, 30]))


def test_a_backward_call_refuses_too() -> None:
    with pytest.raises(FROM_TORCH, match=r"'grad' must have shape \(B=2, H=3, L=20\)"):
        torch.ops.monarch_ops.fft_conv_backward(U[..., 1:], U, K, None, None, None, None, None, False, False, -1, 1)


def test_a_gradient_of_no_taps_is_refused() -> None:
    with pytest.raises(FROM_TORCH, match="'taps' must be at least 1, got 0"):
        torch.ops.monarch_ops.depthwise_conv1d_weight_grad(U, U, 0, 0)


def test_meta_tensors_are_served_by_the_fake_kernels() -> None:
    u, k = U.to("meta"), K.to("meta")
    assert mo.fft_conv(u, k).shape == U.shape
    prepared = mo.fft_filter(k, 20, k_rev=k, skip=k[:, 0])
    assert prepared.data.shape == SPECTRUM.data.shape
    assert prepared.variant == SPECTRUM.variant  # planned as on the CPU
    assert prepared.taps()[1].shape == K.shape
    for spectrum in (prepared, mo.fft_filter(K, 20, device="meta"), SPECTRUM.to("meta")):
        assert spectrum.device.type == "meta"
        assert mo.fft_conv(u, spectrum).shape == U.shape
        assert mo.m2_mixer(A.to("meta"), u, SHORT.to("meta"), None, spectrum, spectrum).shape == U.shape
    assert mo.fft_length(20, device="meta") == mo.fft_length(20)
    for beside in (lambda: mo.fft_conv(U, k), lambda: mo.fft_conv(U, prepared)):
        with pytest.raises(ValueError, match=r"argument '(k|spectrum)' must be on the device of 'u', cpu, got meta"):
            beside()


def test_out_of_memory() -> None:
    """PyTorch's error does not reach Python as such, from a compiled library; what it says does."""
    said = "you tried to allocate 4503599627370496 bytes" if torch.__version__ >= "2.13" else ".*out of memory"
    with pytest.raises(RuntimeError, match=rf"monarch_ops: could not allocate 4.19e\+06 GiB: .*{said}"):
        mo.fft_conv(torch.zeros(1, 1, 32).expand(1 << 45, 1, 32), torch.zeros(1, 1))
    with pytest.raises(RuntimeError, match=rf"monarch_ops: could not allocate 4.19e\+06 GiB: .*{said}"):  # for a copy
        mo.fft_conv(torch.zeros(1, 1, 1).expand(1 << 45, 1, 32), torch.zeros(1, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message for a machine without CUDA")
def test_a_filter_cannot_be_prepared_on_a_missing_device() -> None:
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda|nvidia"):
        mo.fft_filter(K, 20, device="cuda")
