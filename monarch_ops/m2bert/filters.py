"""Filter spectra of a trained model, kept between calls."""

from __future__ import annotations

from collections import OrderedDict

import torch

from ..nn import HyenaFilter
from ..ops import FilterSpectrum


class SpectrumCache:
    """Prepared spectra of one :class:`HyenaFilter` for the most recent lengths.

    Used only where no gradient is recorded. An entry holds as long as no parameter of the filter was changed in place
    or replaced.
    """

    def __init__(self, filter: HyenaFilter, entries: int = 2) -> None:
        self.filter = filter
        self.entries = entries
        self._kept: OrderedDict[tuple, tuple[tuple, FilterSpectrum]] = OrderedDict()

    def _state(self) -> tuple:
        tensors = [*self.filter.parameters(), *self.filter.buffers()]
        return tuple((t.data_ptr(), t._version) for t in tensors)

    def __call__(self, seqlen: int, dtype: torch.dtype) -> FilterSpectrum:
        """The spectrum for rows of length `seqlen` and dtype `dtype`."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.filter.spectrum(seqlen, dtype)
        key, state = (seqlen, dtype, self.filter.z.device), self._state()
        if key not in self._kept or self._kept[key][0] != state:
            self._kept[key] = (state, self.filter.spectrum(seqlen, dtype))
        self._kept.move_to_end(key)
        while len(self._kept) > self.entries:
            self._kept.popitem(last=False)
        return self._kept[key][1]
