"""``docs/performance.md`` and its pictures, made of the recorded runs and of nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import BENCH, RESULTS, source_hash

DOCS = BENCH.parent / "docs"
HEAD = """# Performance

`monarch-ops bench --report` makes this page from the recorded runs under `bench/results`;
[bench/README.md](../bench/README.md) says how they are made. "Times faster" is the median over pairs of blocks, with
quartiles. The share of the floor is the part of our time that the device's own ceilings explain, measured in the same
run: the bytes that must move at the speed of a large copy, or the multiplications and additions at the speed of dense
products, whichever takes longer. A row whose sources have changed since it was recorded is marked "old".
"""
COLUMNS = (
    *("problem", "ours, ms", "baseline", "times faster", "share of floor", "GB/s", "GFLOP/s"),
    *("error: ours, theirs", "peak MiB: ours, theirs", "run"),
)


@dataclass(frozen=True)
class Row:
    """A measured row and the run that has it."""

    path: Path
    run: dict[str, Any]
    data: dict[str, Any]

    @property
    def link(self) -> str:
        """What the page calls the run, for the links below its tables."""
        return f"{self.path.parent.name} {self.path.stem}"

    @property
    def old(self) -> bool:
        return self.run["csrc"].get(self.data["device"]) != source_hash(self.data["device"])


def newest_rows(folder: Path) -> list[Row]:
    """Of a device: the newest row for each problem, baseline and allocator."""
    runs = [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    runs = [(path, run) for path, run in runs if "csrc" in run]  # others are no benchmarks
    found: dict[tuple[str, str, str], Row] = {}
    for path, run in sorted(runs, key=lambda item: item[1]["time"]):
        for data in run["rows"]:
            found[run["malloc"], data["problem"], data["baseline"]] = Row(path, run, data)
    return list(found.values())


def _pair(values: list[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def _cells(row: Row) -> Iterator[str]:
    data = row.data
    yield data["problem"]
    yield f"{data['seconds'] * 1e3:.3g}"
    yield data["baseline"]
    yield f"{data['ratio']:.1f} ({_pair(data['quartiles'], '.1f')})" if "ratio" in data else ""
    if "limit" in data:
        yield f"{data['share of floor']:.0%} ({data['limit']})"
        yield f"{data['bytes'] / data['seconds'] / 1e9:.0f}"
        yield f"{data['flops'] / data['seconds'] / 1e9:.0f}"
    else:
        yield from ("", "", "")
    yield _pair(data["errors"], ".1e")
    yield _pair(data["peak MiB"], ".0f")
    yield f"[{row.run['commit']}][{row.link}]" + (" old" if row.old else "")


def _table(rows: list[Row]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _ceilings(run: dict[str, Any]) -> str:
    parts = []
    for device, found in run.get("ceilings", {}).items():
        rates = [f"{rate / 1e9:,.0f} GFLOP/s in {name} products" for name, rate in found.items() if name != "copy"]
        parts.append(f"{device}: {found['copy'] / 1e9:,.0f} GB/s copied, " + ", ".join(rates))
    return f"Ceilings in the newest run ({run['threads']} threads, torch {run['torch']}): {'; '.join(parts)}.\n"


def _checks(run: dict[str, Any]) -> str:
    return "".join(f"\n* {c['name']}: {c['summary'].strip('= ')}" for c in run.get("checks", []))


def _section(folder: Path, rows: list[Row]) -> str:
    newest = max((row.run for row in rows), key=lambda run: run["time"])
    text = f"\n## {folder.name}\n\n{_ceilings(newest)}{_checks(newest)}\n\n"
    if draw(rows, DOCS / f"{folder.name}.png"):
        text += f"![Times faster than the baselines, by length]({folder.name}.png)\n\n"
    plain = [row for row in rows if row.run["malloc"] == "default"]
    tuned = [row for row in rows if row.run["malloc"] != "default"]
    text += _table(plain)
    if tuned:
        text += f"\nWithout page faults (`GLIBC_TUNABLES={tuned[0].run['malloc']}`):\n\n{_table(tuned)}"
    links = {row.link: row.path.relative_to(BENCH.parent).as_posix() for row in rows}
    return text + "\n" + "".join(f"[{name}]: ../{path}\n" for name, path in sorted(links.items()))


def curves(rows: list[Row]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Times faster by length: for each op, its forms against each baseline."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        match = re.fullmatch(r"(.*?) \((?:\d+, )+(\d+)\) ?(.*)", row.data["problem"])
        if match is None or "ratio" not in row.data or row.data["baseline"].startswith("our"):
            continue
        op, length, form = match[1], int(match[2]), match[3].lstrip(", ")
        name = f"{form} ({row.data['baseline']})" if form else row.data["baseline"]
        found.setdefault(op, {}).setdefault(name, []).append((length, row.data["ratio"]))
    return found


def draw(rows: list[Row], path: Path) -> bool:
    """A picture of the curves; False when there is nothing to draw, or nothing to draw with."""
    panels = curves([row for row in rows if row.run["malloc"] == "default"])
    try:
        import matplotlib
    except ImportError:
        return path.is_file()
    if not panels:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.4), squeeze=False)
    for axis, (op, forms) in zip(axes[0], panels.items(), strict=True):
        for name, points in forms.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set(title=op, xlabel="length", ylabel="times faster than the baseline", xscale="log", yscale="log")
        lengths = sorted({length for points in forms.values() for length, _ in points})
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45, ha="right")
        axis.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axis.minorticks_off()
        axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def write_tables() -> Path:
    """Writes ``docs/performance.md``; its path."""
    DOCS.mkdir(exist_ok=True)
    text = HEAD
    for folder in sorted(RESULTS.iterdir()) if RESULTS.is_dir() else []:
        if folder.is_dir() and (rows := newest_rows(folder)):
            text += _section(folder, rows)
    path = DOCS / "performance.md"
    path.write_text(text)
    return path


if __name__ == "__main__":
    print(write_tables())
