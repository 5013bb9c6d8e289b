"""The causal-conv1d package of Mamba: ``from monarch_ops.compat.causal_conv1d import causal_conv1d_fn``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]


def _silu(op: str, activation: str | None) -> str | None:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{op}: argument 'activation' must be None, 'silu' or 'swish', got {activation!r}")
    return "silu" if activation else None


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution: x (B, H, L), weight (H, K), bias (H,) -> (B, H, L).

    Args:
        seq_idx: (B, L) int: several sequences in one row; a token sees only its own, a negative index gives 0.
        initial_states: (B, H, K-1) inputs before the first.
        return_final_states: also return the last K - 1 inputs (B, H, K-1), written to `final_states_out` if given.
    """
    act = _silu("causal_conv1d_fn", activation)
    taps = weight.shape[1]
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ValueError("causal_conv1d_fn: argument 'seq_idx' must be None with initial or final states")
        return _packed(x, weight, bias, seq_idx, act)
    seen = x if initial_states is None else torch.cat([initial_states.to(x.dtype), x], dim=-1)
    padding: str | int = "causal" if initial_states is None else 0
    out = ops.depthwise_conv1d(seen, weight, bias, padding=padding, activation=act)
    if not return_final_states:
        return out
    final = F.pad(seen, (taps - 1, 0))[..., seen.shape[-1] :]
    if final_states_out is not None:
        final = final_states_out.copy_(final)
    return out, final


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, activation: str | None) -> Tensor:
    """Each tap times the input shifted by its lag, where that input belongs to the same sequence."""
    taps = weight.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    out = torch.zeros_like(x, dtype=wide)
    for lag in range(min(taps, x.shape[-1])):
        shifted = F.pad(x, (lag, 0))[..., : x.shape[-1]]
        same = (F.pad(seq_idx, (lag, 0), value=-1)[:, : x.shape[-1]] == seq_idx) & (seq_idx >= 0)
        out = out + shifted.where(same[:, None], 0) * weight[:, taps - 1 - lag, None]
    out = out if bias is None else out + bias[:, None]
    out = F.silu(out) if activation else out
    return out.where((seq_idx >= 0)[:, None], 0).to(x.dtype)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """One or a few decoding steps: x (B, H) or (B, H, L), `conv_state` (B, H, S >= K-1) is updated in place.

    Args:
        cache_seqlens: (B,) int: `conv_state` is a circular buffer whose next slot is ``cache_seqlens % S``.
        conv_state_indices: (B,) int: rows of a larger `conv_state` that belong to the batch.
    """
    act = _silu("causal_conv1d_update", activation)
    single = x.dim() == 2
    steps = x[..., None] if single else x
    rows = slice(None) if conv_state_indices is None else conv_state_indices.long()
    state = conv_state[rows]
    size, taps = state.shape[-1], weight.shape[1]
    if size < taps - 1:
        raise ValueError(f"causal_conv1d_update: argument 'conv_state' must hold K-1={taps - 1} inputs, got {size}")
    if cache_seqlens is None:
        seen = torch.cat([state, steps.to(state.dtype)], dim=-1)
        conv_state[rows] = seen[..., -size:]
    else:
        at = cache_seqlens.long()[:, None]
        last = (at + torch.arange(1 - taps, 0, device=x.device)) % size
        seen = torch.cat([state.gather(2, last[:, None].expand(-1, state.shape[1], -1)), steps.to(state.dtype)], dim=-1)
        slots = (at + torch.arange(steps.shape[-1], device=x.device)) % size
        conv_state[rows] = state.scatter(2, slots[:, None].expand(-1, state.shape[1], -1), steps.to(state.dtype))
    out = ops.depthwise_conv1d(seen.to(x.dtype), weight, bias, padding=0, activation=act)[..., -steps.shape[-1] :]
    return out[..., 0] if single else out
