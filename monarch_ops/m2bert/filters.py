"""Filter spectra of a trained model, kept between calls."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nn import HyenaFilter
from ..ops import FilterSpectrum, fft_length


class _Entry(NamedTuple):
    spectrum: FilterSpectrum
    state: list[tuple[int, int]]  # of every tensor of the filter: address and count of its changes
    aliases: list[Tensor]  # of them: while they live, no other tensor gets their addresses


class SpectrumCache:
    """Prepared spectra of one :class:`HyenaFilter` for the most recent lengths, as many as `max_bytes` hold.

    Lengths whose transforms have the same number of points share one (:func:`monarch_ops.fft_length`), so texts of
    mixed lengths need few. Threads may share it; what several of them need at once, each of them may compute.

    Used only in evaluation and where no gradient is recorded. An entry holds as long as no parameter or buffer of the
    filter was changed in place or replaced. What PyTorch does not count, a change through ``parameter.data``, needs
    :meth:`clear`; the model's ``train()`` and ``eval()`` call it.
    """

    def __init__(self, filter: HyenaFilter, max_bytes: int = 256 << 20) -> None:
        self.filter = filter
        self.max_bytes = max_bytes
        self._kept: OrderedDict[tuple, _Entry] = OrderedDict()
        self._lock = threading.Lock()  # of _kept

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start empty."""
        return {"filter": self.filter, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SpectrumCache.__init__(self, state["filter"], state["max_bytes"])

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def __call__(self, seqlen: int, dtype: torch.dtype) -> FilterSpectrum:
        """A spectrum that serves rows of length `seqlen` and dtype `dtype`."""
        sources = _tensors(self.filter)
        trained = self.filter.training or torch.is_grad_enabled()
        # tensors made in inference mode do not count their changes
        if trained or torch.compiler.is_compiling() or any(t.is_inference() for t in sources):
            return self.filter.spectrum(seqlen, dtype)
        shared = min(fft_length(seqlen, dtype, sources[0].device), self.filter.max_len)
        key, state = (shared, dtype), [(t.data_ptr(), t._version) for t in sources]
        with self._lock:
            entry = self._kept.get(key)
        if entry is None or entry.state != state:
            entry = _Entry(self.filter.spectrum(shared, dtype), state, [t.detach() for t in sources])
        with self._lock:
            self._kept[key] = entry
            self._kept.move_to_end(key)  # the most recent
            while sum(e.spectrum.data.nbytes for e in self._kept.values()) > self.max_bytes:
                self._kept.popitem(last=False)
        return entry.spectrum


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers; ``parameters()`` and ``buffers()`` take several times as long, in every layer."""
    found = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    for child in module._modules.values():
        if child is not None:
            found += _tensors(child)
    return found
