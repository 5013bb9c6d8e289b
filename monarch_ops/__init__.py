"""FFT long convolutions and Monarch block-diagonal matmuls for PyTorch, with compiled CPU and CUDA kernels.

Ops: :func:`fft_conv`, :func:`fft_filter`, :func:`fft_length`, :func:`depthwise_conv1d`, :func:`blockdiag_matmul`,
:func:`monarch_matmul`, :func:`blockdiag_glu_mlp`, :func:`m2_mixer`. Modules: :mod:`monarch_ops.nn`. Drop-in
replacements for other libraries: :mod:`monarch_ops.compat`. The model: :mod:`monarch_ops.m2bert`.
"""

from ._library import variants
from .ops import (
    FilterSpectrum,
    blockdiag_glu_mlp,
    blockdiag_matmul,
    depthwise_conv1d,
    fft_conv,
    fft_filter,
    fft_length,
    m2_mixer,
    monarch_matmul,
)
from .version import __version__

__all__ = [
    "FilterSpectrum",
    "__version__",
    "blockdiag_glu_mlp",
    "blockdiag_matmul",
    "depthwise_conv1d",
    "fft_conv",
    "fft_filter",
    "fft_length",
    "m2_mixer",
    "monarch_matmul",
    "variants",
]
