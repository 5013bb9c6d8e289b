"""What an ordering comes out as: values per arm and seed, differences between arms, a verdict in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

AS_PUBLISHED, REVERSED, UNDECIDED = "as in the paper", "the other way round", "undecided: within the spread"
ONE_SEED = "undecided: one seed shows no spread"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of the sample, which one value does not have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _shown(values: Sequence[float], digits: int = 3) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"


@dataclass(frozen=True)
class Pair:
    """Two arms of which the paper finds the first one better.

    Args:
        differences: better - worse, by seed; both start from the same weights and see the same order of rows where
            they have the same rows.
    """

    better: str
    worse: str
    differences: list[float]

    @property
    def verdict(self) -> str:
        """Decided when all seeds agree in sign, which n seeds do by chance in one of 2**(n - 1) cases."""
        if len(self.differences) < 2:
            return ONE_SEED
        signs = {(value > 0) - (value < 0) for value in self.differences}
        if signs == {1}:
            return AS_PUBLISHED
        return REVERSED if signs == {-1} else UNDECIDED

    def __str__(self) -> str:
        by_seed = ", ".join(f"{value:+.3f}" for value in self.differences)
        return f"{self.better} > {self.worse}: {self.verdict} ({by_seed})"


@dataclass(frozen=True)
class Finding:
    """An ordering of arms, measured.

    Args:
        measure: what the values are, such as nDCG@10.
        arms: values by seed, in the paper's order, the best one first.
        paper: the paper's values, and where they stand there.
        references: values by seed of what is no part of the ordering, such as a model that was not trained.
        more: further numbers of each arm, by name, by arm, by seed.
        curves: by arm, by seed, pairs of step and value.
        floor: the value of something that knows nothing, with its name.
        facts: anything else for the JSON.
    """

    title: str
    measure: str
    arms: dict[str, list[float]]
    paper: dict[str, float]
    source: str
    references: dict[str, list[float]] = field(default_factory=dict)
    more: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    curves: dict[str, list[list[tuple[int, float]]]] = field(default_factory=dict)
    floor: tuple[str, float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[Pair]:
        """Of neighbours in the paper's order."""
        return [
            Pair(better, worse, [a - b for a, b in zip(self.arms[better], self.arms[worse], strict=True)])
            for better, worse in pairwise(self.arms)
        ]

    def as_json(self) -> dict[str, Any]:
        def measured(arms: dict[str, list[float]]) -> dict[str, Any]:
            return {
                name: dict(
                    zip(("values", "mean", "standard_deviation"), (found, *mean_and_deviation(found)), strict=True)
                )
                for name, found in arms.items()
            }

        pairs = [vars(pair) | {"verdict": pair.verdict} for pair in self.pairs]
        named = {"title": self.title, "measure": self.measure, "arms": measured(self.arms)}
        published = {"paper": self.paper | {"source": self.source}, "pairs": pairs}
        rest = {"references": measured(self.references), "more": self.more, "curves": self.curves, "floor": self.floor}
        return named | published | rest | self.facts

    def rendered(self) -> Iterator[RenderableType]:
        """A table with mean and standard deviation, and a line per pair."""
        seeds = len(next(iter(self.arms.values())))
        table = Table("", escape(self.measure), *map(escape, self.more), f"the paper's ({self.source})")
        table.title, table.caption = escape(self.title), f"{seeds} seed{'s' * (seeds > 1)}: mean ± standard deviation"
        for name, values in (self.arms | self.references).items():
            others = (_shown(found[name], 2) if name in found else "" for found in self.more.values())
            published = f"{self.paper[name]:.3f}" if name in self.paper else ""
            table.add_row(Text(name), _shown(values), *others, published)
        if self.floor is not None:
            table.add_row(Text(self.floor[0]), f"{self.floor[1]:.3f}", *[""] * len(self.more), "")
        yield table
        yield from map(Text, map(str, self.pairs))
