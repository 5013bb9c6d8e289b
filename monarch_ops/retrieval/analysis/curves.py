"""What an analysis finds: values over something, one line per model, as a table, as JSON and in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Curves:
    """Values of several lines at the same places.

    Args:
        x_name, y_name: of the axes, with their units.
        x: the places, numbers or names.
        lines: by label, a value per place; None where there is none.
        errors: standard errors of the values, in the same form, where they are means of measurements.
        digits: of the values in a table.
        top: where the axis of the values ends; None: where they end.
        chance: the value of a ranking that knows nothing, if that is known.
    """

    title: str
    x_name: str
    y_name: str
    x: Sequence[int | str]
    lines: dict[str, list[float | None]]
    errors: dict[str, list[float | None]] = field(default_factory=dict)
    digits: int = 3
    top: float | None = None
    chance: float | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        table = Table(escape(self.x_name), *map(escape, self.lines), title=escape(f"{self.title}: {self.y_name}"))
        for i, place in enumerate(self.x):
            table.add_row(escape(_name(place)), *(self._cell(label, i) for label in self.lines))
        return table

    def error(self, label: str, i: int) -> float | None:
        return self.errors[label][i] if label in self.errors else None

    def _cell(self, label: str, i: int) -> str:
        value, error = self.lines[label][i], self.error(label, i)
        if value is None:
            return ""
        return f"{value:,.{self.digits}f}" + ("" if error is None else f" ± {error:,.{self.digits}f}")


def _name(place: int | str) -> str:
    return f"{place:,}" if isinstance(place, int) else place


def draw(curves: Sequence[Curves], file: Path, *, bars: bool = False, log: bool = False) -> None:
    """Write a PNG with one plot beside the other; standard errors are shaded, or lines on bars.

    Args:
        bars: instead of lines.
        log: whether places are numbers on a logarithmic scale.
    """
    figure = Figure(figsize=(max(7, 5 * len(curves)), 4.6), layout="constrained", dpi=120)
    for axes, each in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for number, (label, line) in enumerate(each.lines.items()):
            if bars:
                width = 0.8 / len(each.lines)
                places = [i - 0.4 + (number + 0.5) * width for i in range(len(each.x))]
                axes.bar(places, [value or 0 for value in line], width, label=label)
                for i, (place, value) in enumerate(zip(places, line, strict=True)):
                    if value is not None and (error := each.error(label, i)) is not None:
                        axes.errorbar(place, value, error, color="#404040", linewidth=1)
            else:
                there = [(x, y, each.error(label, i) or 0) for i, (x, y) in enumerate(zip(each.x, line, strict=True))
                         if y is not None]  # fmt: skip
                x, y, errors = map(np.array, zip(*there, strict=True))
                drawn = axes.plot(x, y, "o-", markersize=4, label=label)[0]
                axes.fill_between(x, y - errors, y + errors, color=drawn.get_color(), alpha=0.2, linewidth=0)
        if bars or log:
            axes.set(xscale="log" if log else "linear")
            axes.set_xticks(each.x if log else range(len(each.x)), list(map(_name, each.x)))
            axes.minorticks_off()
        if each.digits == 0:
            axes.yaxis.set_major_formatter("{x:,.0f}")
        if each.chance is not None:
            axes.axhline(each.chance, color="#9a9a9a", linestyle=":", label="chance")
        axes.set(title=each.title, xlabel=each.x_name, ylabel=each.y_name, ylim=(0, each.top))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(curves), frameon=False)
    figure.savefig(file)
