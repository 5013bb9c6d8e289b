"""Calls the functions of the module `monarch_emulator` on tensors, under every schedule."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# In which order threads take their turns; two threads that race give different results in at least one of them.
SCHEDULES = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def arguments(outputs: list[str], dtype: torch.dtype = torch.float32, **named: Any) -> dict[str, Any]:
    """The keyword arguments of a function of the module: tensors as arrays, 16-bit ones as their bits."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.view(torch.uint16) if value.element_size() == 2 else value).numpy()

    return {"outputs": outputs, "dtype": dtype_name(dtype), **{name: convert(value) for name, value in named.items()}}


class Emulator:
    """Calls a function once per schedule; the results must agree in every bit."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __call__(
        self, function: str, outputs: list[str], dtype: torch.dtype = torch.float32, **named: Any
    ) -> dict[str, Tensor]:
        call = arguments(outputs, dtype, **named)
        results = []
        for schedule in SCHEDULES:
            self.module.set_schedule(*schedule)
            results.append(getattr(self.module, function)(**call))
            for name, array in results[0].items():
                assert results[-1][name].tobytes() == array.tobytes(), f"{name} depends on the schedule: {schedule}"
        tensors = {name: torch.from_numpy(array) for name, array in results[0].items()}
        return {name: t.view(dtype) if t.dtype == torch.uint16 else t for name, t in tensors.items()}
