"""What each op means: documentation, wrapper, fake kernel and derivatives, one module per op."""

from .blockdiag import blockdiag_matmul, monarch_matmul
from .depthwise_conv1d import depthwise_conv1d
from .fft_conv import fft_conv
from .fft_filter import FilterSpectrum, fft_filter, fft_length
from .mixer import m2_mixer
from .mlp import blockdiag_glu_mlp

__all__ = [
    "FilterSpectrum",
    "blockdiag_glu_mlp",
    "blockdiag_matmul",
    "depthwise_conv1d",
    "fft_conv",
    "fft_filter",
    "fft_length",
    "m2_mixer",
    "monarch_matmul",
]
