"""The picture of a finished demo."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .speed import Row

matplotlib.use("agg")
OURS, THEIRS, OTHER = "#1b6ca8", "#c0504d", "#9a9a9a"


def _losses(axes: Axes, losses: list[float]) -> None:
    width = max(1, len(losses) // 30)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(losses, color=OURS, alpha=0.25, linewidth=0.8)
    axes.plot(np.arange(len(smooth)) + width - 1, smooth, color=OURS, label=f"mean of {width}")
    axes.set(title="Orthogonal projection loss", xlabel="training step", ylabel="loss", ylim=(0, None))
    axes.legend(frameon=False)


def _found(axes: Axes, ranks: dict[str, NDArray[np.int64]], ndcg: dict[str, float]) -> None:
    """Share of the queries whose document is among the first k."""
    for (name, positions), colour in zip(ranks.items(), (THEIRS, OURS, OTHER), strict=True):
        count = len(positions)
        share = [(positions < k).mean() for k in range(1, count + 1)]
        axes.step(
            range(1, count + 1), share, where="post", color=colour, label=f"{name.split(', ')[-1]}: {ndcg[name]:.3f}"
        )
    axes.set(
        title="Queries whose module is among the first k", xlabel="k", xscale="log", xlim=(1, None), ylim=(0, 1.02)
    )
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.legend(title="nDCG@10", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _speed(axes: Axes, rows: list[Row], title: str, theirs: str, ours: str, value: str) -> None:
    lengths = [row.length for row in rows]
    per_second = value == "tokens/s"
    for name, seconds, colour in ((theirs, [r.theirs for r in rows], THEIRS), (ours, [r.ours for r in rows], OURS)):
        y = [n / s if per_second else 1e3 * s for n, s in zip(lengths, seconds, strict=True)]
        axes.plot(lengths, y, "o-", color=colour, label=name)
    axes.set(title=title, xlabel="length", ylabel=value, xscale="log")
    axes.set(**({"ylim": (0, None)} if per_second else {"yscale": "log"}))
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.minorticks_off()
    axes.legend(frameon=False)


def save_picture(
    file: Path,
    losses: list[float],
    ranks: dict[str, NDArray[np.int64]],
    ndcg: dict[str, float],
    speed: dict[str, list[Row]],
) -> None:
    """Write the PNG: loss, ranking and, when measured, the speed tables."""
    rows = 2 if speed else 1
    figure = Figure(figsize=(11, 4 * rows), layout="constrained", dpi=120)
    grid = figure.subplots(rows, 2, squeeze=False)
    _losses(grid[0, 0], losses)
    _found(grid[0, 1], ranks, ndcg)
    if speed:
        _speed(
            grid[1, 0],
            speed["convolution"],
            "Long convolution, 768 channels",
            "torch.fft",
            "monarch_ops",
            "milliseconds",
        )
        _speed(grid[1, 1], speed["encoder"], "Encoder, forward", "BERT-base, SDPA", "M2-BERT-80M", "tokens/s")
    figure.savefig(file)
