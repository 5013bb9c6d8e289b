"""Filters of the model: their precision, and the spectra of a trained one, kept between calls."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import HyenaFilter
from ..ops import FilterSpectrum, fft_length


class M2BertFilter(HyenaFilter):
    """A :class:`HyenaFilter` that stays float32 when the model around it becomes bfloat16 or float16.

    Positions and frequencies do not survive 16 bits, and the spectra are float32 anyway.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.z.itemsize < 4:  # the default dtype, which transformers sets; the model gives initial values later
            self.float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M2BertFilter:
        """What ``to``, ``half`` and ``bfloat16`` call for every tensor."""

        def wide(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return tensor.to(out.device, torch.float32) if out.itemsize < 4 <= tensor.itemsize else out

        return super()._apply(wide, recurse)


_FEW = 1024  # numbers whose comparison takes no time beside a text's


class SpectrumCache:
    """Prepared spectra of one :class:`HyenaFilter` for the most recent lengths, as many as `max_bytes` hold.

    Lengths whose transforms have the same number of points share one (:func:`monarch_ops.fft_length`), so texts of
    mixed lengths need few. Threads may share it; what several of them need at once, each of them may compute.

    Used only in evaluation and where no gradient is recorded. They are kept as long as no parameter or buffer of the
    filter was changed in place or replaced. PyTorch does not count changes through ``parameter.data``: on the CPU the
    values of small tensors are compared too, in every call, which sees a change of all parameters. A change of a large
    one alone, or on a GPU, which would have to be waited for, needs :meth:`clear`; the model's ``train()`` and
    ``eval()`` call it.
    """

    def __init__(self, filter: HyenaFilter, max_bytes: int = 256 << 20) -> None:
        self.filter = filter
        self.max_bytes = max_bytes
        self._kept: OrderedDict[tuple, FilterSpectrum] = OrderedDict()
        self._state: list[tuple] = []  # of every tensor that they are made of: address, count of changes, dtype
        self._aliases: list[Tensor] = []  # of them: while they live, no other tensor gets their addresses
        self._values: dict[int, Tensor] = {}  # copies of those that are compared
        self._lock = threading.Lock()  # of the four above

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start empty."""
        return {"filter": self.filter, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SpectrumCache.__init__(self, state["filter"], state["max_bytes"])

    def clear(self) -> None:
        with self._lock:
            self._kept, self._state, self._aliases, self._values = OrderedDict(), [], [], {}

    def __call__(self, seqlen: int, dtype: torch.dtype) -> FilterSpectrum:
        """A spectrum that serves rows of length `seqlen` and dtype `dtype`."""
        sources = _tensors(self.filter)
        trained = self.filter.training or torch.is_grad_enabled()
        # tensors made in inference mode do not count their changes
        if trained or torch.compiler.is_compiling() or any(t.is_inference() for t in sources):
            return self.filter.spectrum(seqlen, dtype)
        shared = min(fft_length(seqlen, dtype, sources[0].device), self.filter.max_len)
        key = shared, dtype
        with self._lock:
            self._forget_if_changed(sources)
            kept = self._kept
            spectrum = kept.get(key)
        if spectrum is None:
            spectrum = self.filter.spectrum(shared, dtype)
        with self._lock:
            kept[key] = spectrum
            kept.move_to_end(key)  # the most recent
            while sum(s.data.nbytes for s in kept.values()) > self.max_bytes:
                kept.popitem(last=False)
        return spectrum

    def _forget_if_changed(self, sources: list[Tensor]) -> None:
        state = [(t.data_ptr(), t._version, t.dtype) for t in sources]
        if state == self._state and all(torch.equal(value, sources[i]) for i, value in self._values.items()):
            return
        self._kept = OrderedDict()  # another one, as threads may be about to put what was into the last
        self._state, self._aliases = state, [t.detach() for t in sources]
        compared = (i for i, t in enumerate(sources) if t.device.type == "cpu" and t.numel() <= _FEW)
        self._values = {i: sources[i].detach().clone() for i in compared}


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers; ``parameters()`` and ``buffers()`` take several times as long, in every layer."""
    found = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    for child in module._modules.values():
        if child is not None:
            found += _tensors(child)
    return found
