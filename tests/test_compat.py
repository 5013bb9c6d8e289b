"""The drop-in replacements against the definitions of the libraries they stand in for, in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_matches
from torch.nn import functional as F

from monarch_ops.compat import causal_conv1d, flashfftconv, fly, safari


def both(function, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition in float64 and in the tensors' own dtype."""
    return function(*(t.double() for t in tensors)), function(*tensors)


def cyclic(u: torch.Tensor, k: torch.Tensor, n: int) -> torch.Tensor:
    return torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., : u.shape[-1]]


@pytest.mark.parametrize(
    ("L", "N", "Lk"), [(64, 64, 64), (64, 128, 64), (50, 128, 128), (100, 128, 30), (1, 4, 4), (37, 60, 59)]
)
def test_flashfftconv(L: int, N: int, Lk: int) -> None:
    u, k, pre, post = torch.randn(2, 3, L), torch.randn(3, Lk), torch.randn(2, 3, L), torch.randn(2, 3, L)
    conv = flashfftconv.FlashFFTConv(N, torch.float32)
    assert_matches(conv(u, k), *both(lambda u, k: cyclic(u, k, N), u, k))
    gated = both(lambda u, k, pre, post: cyclic(u * pre, k, N) * post, u, k, pre, post)
    assert_matches(conv(u, k, pregate=pre, postgate=post), *gated)
    with pytest.raises(ValueError, match="seqlen"):
        conv(torch.randn(1, 3, N + 1), k)


@pytest.mark.parametrize("is_bhl", [True, False])
def test_flash_depthwise(is_bhl: bool) -> None:
    layer = torch.nn.Conv1d(6, 6, 3, groups=6, padding=1)
    ours = flashfftconv.FlashDepthWiseConv1d(6, 3, 1, layer.weight, layer.bias, is_bhl=is_bhl)
    x = torch.randn(2, 6, 40)
    y = ours(x if is_bhl else x.transpose(1, 2))
    torch.testing.assert_close(y if is_bhl else y.transpose(1, 2), layer(x))
    assert ours.weights.shape == ((6, 3) if is_bhl else (3, 6))
    plain = flashfftconv.FlashDepthWiseConv1d(6, 3, 1, layer.weight, None, is_bhl=is_bhl)
    torch.testing.assert_close(
        plain(x if is_bhl else x.transpose(1, 2)), y - layer.bias[:, None] if is_bhl else y - layer.bias
    )
    assert [name for name, _ in plain.named_parameters()] == ["weights"]


def safari_definition(u, k, D, k_rev=None, mask=None, gelu=True):
    n = 2 * u.shape[-1]
    spectrum = torch.fft.rfft(k, n=n)
    if k_rev is not None:
        spectrum = spectrum + torch.fft.rfft(k_rev, n=n).conj()
    y = torch.fft.irfft(torch.fft.rfft(u, n=n) * spectrum, n=n)[..., : u.shape[-1]] + u * D[:, None]
    y = F.gelu(y) if gelu else y
    return y if mask is None else y * mask[..., None]


def test_safari() -> None:
    u, k, k_rev, D, mask = (
        torch.randn(2, 3, 70),
        torch.randn(3, 70),
        torch.randn(3, 70),
        torch.randn(3),
        torch.rand(2, 3),
    )
    assert_matches(safari.fftconv_func(u, k, D), *both(safari_definition, u, k, D))
    exact = both(safari_definition, u, k, D, k_rev, mask)
    assert_matches(safari.fftconv_func(u, k, D, mask, k_rev=k_rev), *exact)
    hbl = safari.fftconv_func(u, k, D, gelu=False, output_hbl_layout=True, force_fp16_output=True)
    assert hbl.dtype == torch.float16
    assert hbl.transpose(0, 1).is_contiguous()
    assert hbl.shape == u.shape
    with pytest.raises(ValueError, match="gelu"):
        safari.fftconv_func(u, k, D, v=u, q=u)


@pytest.mark.parametrize("d", [1, 2])
def test_safari_h3(d: int) -> None:
    B, heads, L = 2, 3, 40
    u, v, q = torch.randn(3, B, heads * d, L).unbind()
    k, D = torch.randn(heads, L), torch.randn(heads)

    def definition(u, v, q, k, D):
        uv = u.reshape(B, heads, d, 1, L) * v.reshape(B, heads, 1, d, L)
        rows = uv.permute(0, 2, 3, 1, 4).reshape(B * d * d, heads, L)
        y = safari_definition(rows, k, D, gelu=False).reshape(B, d, d, heads, L).permute(0, 3, 1, 2, 4)
        return (y * q.reshape(B, heads, d, 1, L)).sum(2).reshape(B, heads * d, L)

    ours = safari.fftconv_func(u, k, D, gelu=False, v=v, head_dim=d, q=q)
    assert_matches(ours, *both(definition, u, v, q, k, D))


def test_fly() -> None:
    x, w1, w2 = torch.randn(2, 5, 12), torch.randn(3, 4, 4), torch.randn(2, 5, 6)

    def butterfly(x, w1, w2):
        middle = torch.einsum("kqp,...kp->...kq", w1, x.unflatten(-1, (3, 4))).flatten(-2)
        return torch.einsum("lsr,...rl->...sl", w2, middle.unflatten(-1, (6, 2))).flatten(-2)

    assert_matches(fly.blockdiag_butterfly_multiply(x, w1, w2), *both(butterfly, x, w1, w2))
    y = fly.blockdiag_multiply(x, w1)
    assert_matches(
        y, *both(lambda x, w: torch.einsum("kqp,...kp->...kq", w, x.unflatten(-1, (3, 4))).flatten(-2), x, w1)
    )
    layer = fly.MonarchLinear(12, 20, nblocks=4)
    assert layer(x).shape == (2, 5, 20)
    assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {
        "blkdiag1": (4, 3, 3),
        "blkdiag2": (4, 5, 3),
        "bias": (20,),
    }


def causal(x, weight, bias, initial=None):
    taps = weight.shape[1]
    x = F.pad(x, (taps - 1, 0)) if initial is None else torch.cat([initial, x], -1)
    return F.silu(F.conv1d(x, weight[:, None], bias, groups=x.shape[1]))


def test_causal_conv1d() -> None:
    x, weight, bias, initial = torch.randn(2, 3, 9), torch.randn(3, 4), torch.randn(3), torch.randn(2, 3, 3)
    ours = causal_conv1d.causal_conv1d_fn(x, weight, bias, activation="swish")
    assert_matches(ours, *both(causal, x, weight, bias))
    ours, final = causal_conv1d.causal_conv1d_fn(
        x, weight, bias, initial_states=initial, return_final_states=True, activation="silu"
    )
    assert_matches(ours, *both(causal, x, weight, bias, initial))
    assert torch.equal(final, x[..., -3:])
    _, final = causal_conv1d.causal_conv1d_fn(x[..., :2], weight, return_final_states=True)
    assert torch.equal(final, F.pad(x[..., :2], (1, 0)))


def test_causal_conv1d_packed_sequences() -> None:
    x, weight, bias = torch.randn(1, 3, 12), torch.randn(3, 4), torch.randn(3)
    seq_idx = torch.tensor([[0] * 5 + [1] * 4 + [-1] * 3])
    ours = causal_conv1d.causal_conv1d_fn(x, weight, bias, seq_idx=seq_idx, activation="silu")
    parts = [both(causal, x[..., a:b], weight, bias) for a, b in ((0, 5), (5, 9))]
    padding = torch.zeros(1, 3, 3)
    exact, base = (torch.cat([p[i] for p in parts] + [padding.to(parts[0][i].dtype)], -1) for i in (0, 1))
    assert_matches(ours, exact, base)


@pytest.mark.parametrize("circular", [False, True])
def test_causal_conv1d_update_decodes_like_the_whole_sequence(circular: bool) -> None:
    x, weight, bias = torch.randn(2, 3, 11), torch.randn(3, 4), torch.randn(3)
    state = torch.zeros(5, 3, 6)
    rows = torch.tensor([4, 1])
    steps = []
    for t in range(11):
        at = torch.full((2,), t, dtype=torch.int32) if circular else None
        steps.append(causal_conv1d.causal_conv1d_update(x[..., t], state, weight, bias, "silu", at, rows))
    assert_matches(torch.stack(steps, -1), *both(causal, x, weight, bias))
    assert not state[[0, 2, 3]].any()
