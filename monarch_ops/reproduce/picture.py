"""The picture of an ordering: bars with a dot per seed, and curves with a band from the lowest to the highest seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .finding import Finding, mean_and_deviation

_COLOURS = ("#3b6fb6", "#e08a2e", "#4f9d5d", "#8d6cab")
_QUIET = "#b9bdc4"


def draw(found: Finding, file: Path) -> None:
    """Write a PNG."""
    panels = 2 if found.curves else 1
    figure = Figure(figsize=(6.4 * panels, 4.4), layout="constrained", dpi=120)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if found.curves:
        _curves(found, axes[0])
    _bars(found, axes[-1])
    figure.suptitle(found.title)
    figure.savefig(file)


def _bars(found: Finding, axes: Axes) -> None:
    shown = found.arms | found.references
    for place, (name, values) in enumerate(shown.items()):
        mean, deviation = mean_and_deviation(values)
        colour = _COLOURS[place % len(_COLOURS)] if name in found.arms else _QUIET
        axes.bar(place, mean, 0.62, color=colour, yerr=deviation, capsize=5, ecolor="#333333")
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(place + spread, values, s=22, color="white", edgecolor="#333333", zorder=3)
    _floor(found, axes)
    axes.set_xticks(range(len(shown)), [name.replace(", ", ",\n") for name in shown])
    axes.set(ylabel=found.measure, ylim=(0, None))
    seeds = len(next(iter(found.arms.values())))
    axes.set_xlabel(
        "one seed" if seeds == 1 else f"mean, standard deviation and each of {seeds} seeds", color="#666666"
    )
    axes.spines[["top", "right"]].set_visible(False)


def _curves(found: Finding, axes: Axes) -> None:
    for colour, (name, seeds) in zip(_COLOURS, found.curves.items(), strict=False):
        steps = [step for step, _ in seeds[0]]
        values = np.array([[value for _, value in curve] for curve in seeds])
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.25, linewidth=0)
        axes.plot(steps, values.mean(axis=0), "o-", markersize=4, color=colour, label=name)
    _floor(found, axes)
    axes.set(xlabel="steps; mean and range of the seeds", ylabel=f"{found.measure}, held-out texts", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _floor(found: Finding, axes: Axes) -> None:
    if found.floor is not None:
        name, value = found.floor
        axes.axhline(value, color="#777777", linestyle=":", linewidth=1, label=name)
