"""Build information, kernel table and plans of monarch_ops (csrc/bindings.cpp)."""

from typing import Any

def build_info() -> dict[str, str]: ...
def cuda_devices() -> list[str]: ...
def explain_fft_conv(
    batch: int,
    channels: int,
    seqlen: int,
    gates: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    device_index: int = 0,
    precise: bool = False,
    variant: int = -1,
) -> dict[str, Any]: ...
def variants(ask_cuda: bool = True) -> list[dict[str, Any]]: ...
