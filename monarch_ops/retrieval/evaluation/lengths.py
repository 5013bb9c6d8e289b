"""How long texts are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Lengths:
    """Of several texts, in characters, words or tokens."""

    mean: float
    median: float
    min: int
    max: int

    @classmethod
    def of(cls, counts: ArrayLike) -> Lengths:
        """Of at least one count."""
        all = np.asarray(counts)
        return cls(round(float(all.mean()), 1), float(np.median(all)), int(all.min()), int(all.max()))

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def text_lengths(texts: Iterable[str]) -> dict[str, Lengths]:
    """In characters and in words, which are what white space separates."""
    counts = [(len(text), len(text.split())) for text in texts]
    return {
        unit: Lengths.of(column)
        for unit, column in zip(("characters", "words"), zip(*counts, strict=True), strict=True)
    }
