"""What ops register in the same way: argument types, autocast, derivatives of multilinear ops."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._library import OPS, Function

_LIBRARY = torch.library.Library("monarch_ops", "IMPL")
_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


# How the messages of C++ begin that say what is wrong with an argument.
_REFUSED = re.compile(r"(\w+: )?argument '|CUDA tensors must |no compiled kernel for |transforms of \d+ points need ")


def refusing(function: Function) -> Function:
    """What an op refuses is a ValueError, of which torch 2.15 makes a RuntimeError on the way to Python."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except RuntimeError as error:
            if type(error) is RuntimeError and _REFUSED.match(str(error)):
                raise ValueError(str(error)) from None
            raise

    return cast(Function, call)


def require_tensors(op: str, needed: tuple[str, ...] = (), **arguments: Any) -> None:
    """Raise TypeError naming the first argument that is neither a tensor nor, unless needed, None.

    Also NotImplementedError for a derivative that PyTorch does not take of compiled ops: it would be lost silently.
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and (value is not None or name in needed):
            raise TypeError(f"{op}: argument {name!r} must be a Tensor, got {type(value).__name__}")
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        _refuse_lost_derivatives(op, arguments)


def _refuse_lost_derivatives(op: str, arguments: dict[str, Tensor | None]) -> None:
    transformed = torch._C._are_functorch_transforms_active()
    for name, t in arguments.items():
        if t is None or not t.is_floating_point():
            continue
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:
            raise NotImplementedError(
                f"{op}: argument {name!r} must not be differentiated in forward mode (torch.func.jvp, jacfwd, hessian, "
                "dual tensors), got a tensor with a tangent; torch.autograd has its derivatives"
            )
        if transformed and torch.is_grad_enabled() and t.requires_grad:
            raise NotImplementedError(
                f"{op}: argument {name!r} must not be differentiated by torch.func (grad, vjp, jacrev) or as what "
                "a function under vmap captures, got a tensor that requires grad; torch.autograd has its derivatives"
            )


def register_fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Register what an op returns, of shapes alone, for compilers and for tensors on the meta device."""
    op = getattr(OPS, name).default

    def register(shapes: Callable[..., Any]) -> None:
        def call(*args: Any, **options: Any) -> Any:
            given = [(a.name, t) for a, t in zip(op._schema.arguments, args, strict=False) if isinstance(t, Tensor)]
            (first, like), *others = given
            for other, t in others:  # a CPU tensor beside one on the meta device comes here, too
                if t.device != like.device:
                    raise ValueError(
                        f"{name}: argument {other!r} must be on the device of {first!r}, {like.device}, got {t.device}"
                    )
            return shapes(*args, **options)

        torch.library.register_fake(op.name(), call)

    return register


def register_autocast(name: str, lowered: tuple[int, ...]) -> None:
    """Under autocast, cast the tensors at the positions `lowered` to the autocast dtype.

    The others (filter taps, spectra, short weights, norms) keep their precision: they are small or shared by many
    rows, and the kernels take them in float32 whatever the dtype of the rows.
    """
    op = getattr(OPS, name).default
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(torch._C.DispatchKey.AutocastCUDA)

    def kernel(device: str) -> Callable[..., Any]:
        def call(_keyset: Any, *args: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            given = list(args)
            for i in lowered:
                t = args[i] if i < len(args) else None
                if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64:
                    given[i] = t.to(dtype)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*given)

        return call

    for device, key in _AUTOCAST_KEYS.items():
        _LIBRARY.impl(name, kernel(device), key, with_keyset=True)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype the kernels compute in for tensors of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


Tensors = tuple[Tensor | None, ...]


def _as(gradient: Tensor | None, like: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or like is None else gradient.to(like.dtype)


def _add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    return term if total is None else total if term is None else total + term


def register_multilinear_autograd(name: str, slots: tuple[int, ...], constants: int) -> None:
    """First and second derivatives of an op f for which <grad, f> is linear in each of several slots.

    The op takes the tensors of its slots (`slots` gives their number per slot; f is *jointly* linear in those of one
    slot), then `constants` tensors without a gradient, then options. ``<name>_backward(grad, *inputs, mask)`` returns
    the gradients of all slot tensors; bit i of the mask asks for the i-th.

    The second derivative needs nothing new. Given cotangents c_s of the gradients, it is the gradient of
    ``sum_s S(grad; slot s replaced by c_s)`` with S = <grad, f>: for `grad` that is a sum of forward calls, for the
    other slots a sum of backward calls.
    """
    op, op_backward = getattr(OPS, name), getattr(OPS, f"{name}_backward")
    count = sum(slots)
    slot_of = [s for s, n in enumerate(slots) for _ in range(n)]

    def save(ctx: Any, inputs: tuple[Any, ...], first: int) -> None:
        ctx.save_for_backward(*inputs[: first + count + constants])
        ctx.options = inputs[first + count + constants :]
        ctx.set_materialize_grads(False)

    def gradients(grad: Tensor, inputs: Tensors, options: tuple, wanted: list[bool]) -> list[Tensor | None]:
        if not any(wanted):
            return [None] * count
        mask = sum(1 << i for i, want in enumerate(wanted) if want)
        results = op_backward(grad, *inputs, *options, mask)
        return [r if want else None for r, want in zip(results, wanted, strict=True)]

    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        inputs = ctx.saved_tensors
        nothing = (None,) * (constants + len(ctx.options))
        if grad is None:
            return (None,) * count + nothing
        grads = gradients(grad, inputs, ctx.options, list(ctx.needs_input_grad[:count]))
        return (*map(_as, grads, inputs[:count]), *nothing)

    def double_backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        grad, *inputs = ctx.saved_tensors
        *options, mask = ctx.options
        cotangents = tuple(c if mask >> i & 1 else None for i, c in enumerate(cotangents))
        grad_total: Tensor | None = None
        totals: list[Tensor | None] = [None] * count
        for slot in range(len(slots)):
            members = [i for i in range(count) if slot_of[i] == slot]
            if all(cotangents[i] is None for i in members):
                continue
            replaced = list(inputs)
            for i in members:
                replaced[i] = _as(cotangents[i], inputs[i])
            if replaced[members[0]] is None:  # the first tensor of a slot is not optional
                replaced[members[0]] = torch.zeros_like(inputs[members[0]])
            if ctx.needs_input_grad[0]:
                grad_total = _add(grad_total, op(*replaced, *options))
            wanted = [need and i not in members for i, need in enumerate(ctx.needs_input_grad[1 : count + 1])]
            totals = list(map(_add, totals, gradients(grad, tuple(replaced), options, wanted)))
        return (grad_total, *map(_as, totals, inputs[:count]), *(None,) * (constants + len(ctx.options)))

    torch.library.register_autograd(
        f"monarch_ops::{name}", backward, setup_context=lambda ctx, inputs, output: save(ctx, inputs, 0)
    )
    torch.library.register_autograd(
        f"monarch_ops::{name}_backward", double_backward, setup_context=lambda ctx, inputs, output: save(ctx, inputs, 1)
    )
