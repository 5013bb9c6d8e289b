"""``docs/performance.md``, its pictures and the README's table, made of the recorded runs and of nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from record import BENCH, RESULTS, source_hash

DOCS = BENCH.parent / "docs"
README = BENCH.parent / "README.md"
# The README has these problems, one line each with all their baselines, between two marks.
HEADLINES = re.compile(
    r"fft_conv \([^)]*\)( backward)?( bf16)?|m2_mixer .*|blockdiag_glu_mlp .*|monarch_matmul \(4096.*"
    r"|depthwise_conv1d b.*|M2-BERT-80M (forward|training step) \(.*"
)
MARKS = ("<!-- of recorded runs, by bench/tables.py -->\n", "<!-- end -->\n")
HEAD = """# Performance

`monarch-ops bench --report` makes this page from the recorded runs under `bench/results`;
[bench/README.md](../bench/README.md) says how they are made. "Times faster" is the median over pairs of blocks or,
where several processes measured it, over theirs, with quartiles. The share of the floor is the part of our time that
the device's own ceilings explain, measured in the same run: the bytes that must move at the speed of a large copy or
of STREAM's triad, or the multiplications and additions at the speed of dense products, whichever takes longer. The FLOP
utilisation of a model is its multiplications and additions over the greatest rate of the device. A row whose sources
have changed since it was recorded is marked "old".
"""
RATES = {
    "copy": "{:,.0f} GB/s copied",
    "triad": "{:,.0f} GB/s in STREAM's triad",
    "fma": "{:,.0f} GFLOP/s of multiply-adds in registers",
    "products": "{:,.0f} GFLOP/s in {} products",
}
BANDWIDTHS = ("copy", "triad")  # among the rates, in bytes/s
COLUMNS = ("problem", "ours, ms", "baseline", "times faster"), ("peak MiB: ours, theirs", "run")
OP_COLUMNS = ("share of floor", "GB/s", "GFLOP/s", "error: ours, theirs")  # between the others
MODEL_COLUMNS = ("tokens/s: ours, theirs", "share of floor", "FLOP utilisation")


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

    @property
    def marks(self) -> list[str]:
        return ["old"] * self.old + ["unverified"] * unverified(self.run)


def unverified(run: dict[str, Any]) -> bool:
    """Whether a check failed or came to no end."""
    return any(check.get("exit") for check in run.get("checks", []))


def benchmarks(folder: Path) -> dict[Path, dict[str, Any]]:
    """The runs of a device, by file, the newest last; what else was recorded there has no sources of kernels."""
    runs = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(((p, r) for p, r in runs.items() if "csrc" in r), key=lambda item: item[1]["time"]))


def newest_rows(folder: Path) -> list[Row]:
    """Of a device: the newest row for each problem, baseline and allocator."""
    found: dict[tuple[str, str, str], Row] = {}
    for path, run in benchmarks(folder).items():
        for data in run["rows"]:
            found[run["malloc"], data["problem"], data["baseline"]] = Row(path, run, data)
    return list(found.values())


def _pair(values: list[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def milliseconds(data: dict[str, Any]) -> str:
    """Our time of a row, without an exponent where it is long."""
    value = data["seconds"] * 1e3
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _processes(data: dict[str, Any]) -> str:
    count = len(data.get("blocks", ()))
    return f"; {count} processes" if count > 1 else ""


def tokens(problem: str) -> int | None:
    """That a row of a model takes at a time, padding left out; None for an op."""
    if not problem.startswith(("M2-BERT", "embed")):
        return None
    if lengths := re.search(r"lengths ([\d, ]+)", problem):
        return sum(map(int, lengths[1].split(", ")))
    sizes = re.search(r"\(([\d, ]+)", problem)
    return prod(map(int, sizes[1].split(", "))) if sizes else None


def _share(data: dict[str, Any]) -> str:
    return f"{data['share of floor']:.0%} ({data['limit']})" if "limit" in data else ""


def _of_op(data: dict[str, Any]) -> Iterator[str]:
    yield _share(data)
    if "limit" in data:
        yield f"{data['bytes'] / data['seconds'] / 1e9:.0f}"
        yield f"{data['flops'] / data['seconds'] / 1e9:.0f}"
    else:
        yield from ("", "")
    yield _pair(data["errors"], ".1e")


def _of_model(row: Row, count: int) -> Iterator[str]:
    data = row.data
    yield _pair([count / data[side] for side in ("seconds", "baseline seconds") if side in data], ".0f")
    yield _share(data)
    if "limit" in data:
        rates = row.run["ceilings"][data["device"]]
        peak = max(rate for name, rate in rates.items() if name not in BANDWIDTHS)
        yield f"{data['flops'] / data['seconds'] / peak:.0%}"
    else:
        yield ""


def _cells(row: Row) -> Iterator[str]:
    data, count = row.data, tokens(row.data["problem"])
    yield data["problem"]
    yield milliseconds(data)
    yield data["baseline"]
    yield f"{data['ratio']:.1f} ({_pair(data['quartiles'], '.1f')}{_processes(data)})" if "ratio" in data else ""
    yield from _of_op(data) if count is None else _of_model(row, count)
    yield _pair(data["peak MiB"], ".0f")
    yield " ".join([f"[{row.run['commit']}][{row.link}]", *row.marks])


def _tables(rows: list[Row]) -> str:
    """One of ops and one of models, where there are any."""
    ops = [row for row in rows if tokens(row.data["problem"]) is None]
    models = [row for row in rows if tokens(row.data["problem"]) is not None]
    text = []
    for part, columns in ((ops, OP_COLUMNS), (models, MODEL_COLUMNS)):
        head = [*COLUMNS[0], *columns, *COLUMNS[1]]
        lines = [head, ["---"] * len(head), *(_cells(row) for row in part)]
        text += ["".join(f"| {' | '.join(line)} |\n" for line in lines)] if part else []
    return "\n".join(text)


def _ceilings(run: dict[str, Any]) -> str:
    parts = []
    for device, found in run.get("ceilings", {}).items():
        rates = [RATES.get(name, RATES["products"]).format(rate / 1e9, name) for name, rate in found.items()]
        parts.append(f"{device}: " + ", ".join(rates))
    text = "; ".join(parts) or "none, as nothing was measured"
    return f"Ceilings in the newest run ({run['threads']} threads, torch {run['torch']}): {text}.\n"


def _probes(run: dict[str, Any]) -> str:
    found = [f"{name} {rate if isinstance(rate, str) else format(rate / 1e9, ',.0f')}" for name, rate in
             run.get("probes", {}).items()]  # fmt: skip
    return f"\nProbes (bench/probes.py), 10⁹ per second: {', '.join(found)}.\n" if found else ""


def _checks(run: dict[str, Any]) -> str:
    found = [f"{c['name']}: {c['summary'].strip('= ')}" for c in run.get("checks", [])]
    found += [f"failed to measure {name}: {why}" for name, why in run.get("failed", {}).items()]
    if newer := run.get("newer than the library"):
        found += [f"{len(newer)} sources changed after the library was built, {newer[0]} among them"]
    if unverified(run):
        found += ['rows of this run are "unverified": not all that must hold before a time means anything did']
    return "".join(f"\n* {line}" for line in found)


def _section(folder: Path, rows: list[Row]) -> str:
    newest = list(benchmarks(folder).values())[-1]
    text = f"\n## {folder.name}\n\n{_ceilings(newest)}{_probes(newest)}{_checks(newest)}\n\n"
    if draw(rows, DOCS / f"{folder.name}.png"):
        text += f"![Times faster than the baselines, by length]({folder.name}.png)\n\n"
    plain = [row for row in rows if row.run["malloc"] == "default"]
    tuned = [row for row in rows if row.run["malloc"] != "default"]
    text += _tables(plain)
    if tuned:
        text += f"\nWithout page faults (`GLIBC_TUNABLES={tuned[0].run['malloc']}`):\n\n{_tables(tuned)}"
    links = {row.link: row.path.relative_to(BENCH.parent).as_posix() for row in rows}
    return text + "\n" + "".join(f"[{name}]: ../{path}\n" for name, path in sorted(links.items()))


def curves(rows: list[Row]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Times faster by length: for each op, its forms against each baseline; what has one length only is no curve."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        match = re.fullmatch(r"((?:fft_conv|m2_mixer|M2-BERT).*?) \((?:\d+, )+(\d+)\) ?(.*)", row.data["problem"])
        if match is None or "ratio" not in row.data or row.data["baseline"].startswith("our"):
            continue
        op, length, form = match[1], int(match[2]), match[3].lstrip(", ")
        name = f"{form} ({row.data['baseline']})" if form else row.data["baseline"]
        found.setdefault(op, {}).setdefault(name, []).append((length, row.data["ratio"]))
    long = {op: {name: curve for name, curve in forms.items() if len(curve) > 1} for op, forms in found.items()}
    return {op: forms for op, forms in long.items() if forms}


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

    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(6.4 * columns, 4.8 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (op, forms) in zip(axes.flat, panels.items(), strict=False):
        for name, points in forms.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set(title=op, xlabel="length", ylabel="times faster than the baseline", xscale="log", yscale="log")
        lengths = sorted({length for points in forms.values() for length, _ in points})
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45, ha="right")
        axis.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axis.minorticks_off()
        axis.legend(fontsize="x-small", ncols=2 if len(forms) > 6 else 1)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def headlines(folder: Path, rows: list[Row]) -> str:
    """The README's table of a device."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.run["malloc"] == "default" and "ratio" in row.data and HEADLINES.fullmatch(row.data["problem"]):
            found.setdefault(row.data["problem"], []).append(row)
    if not found:
        return ""
    text = f"\n{folder.name}:\n\n| problem | ours, ms | times faster than |\n| --- | --- | --- |\n"
    for problem, same in found.items():
        ratios = "; ".join(
            f"{row.data['baseline']}: {row.data['ratio']:.1f}" + (f" ({', '.join(row.marks)})" if row.marks else "")
            for row in same
        )
        text += f"| {problem} | {milliseconds(same[0].data)} | {ratios} |\n"
    return text


def current(devices: dict[Path, list[Row]]) -> dict[Path, list[Row]]:
    """The devices that the README shows: where today's sources were measured, or all when that is nowhere."""
    measured = {folder: rows for folder, rows in devices.items() if not all(row.old for row in rows)}
    return measured or devices


def recorded() -> dict[Path, list[Row]]:
    """What was recorded, by device."""
    folders = sorted(folder for folder in RESULTS.iterdir() if folder.is_dir()) if RESULTS.is_dir() else []
    return {folder: newest_rows(folder) for folder in folders if benchmarks(folder)}


def _write_readme(tables: str) -> None:
    before, _, rest = README.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    README.write_text(before + MARKS[0] + tables + "\n" + MARKS[1] + after)


def write_tables() -> Path:
    """Writes ``docs/performance.md`` and the README's table; the path of the former."""
    DOCS.mkdir(exist_ok=True)
    found = recorded()
    path = DOCS / "performance.md"
    path.write_text(HEAD + "".join(_section(folder, rows) for folder, rows in found.items()))
    _write_readme("".join(headlines(folder, rows) for folder, rows in current(found).items()))
    return path


if __name__ == "__main__":
    print(write_tables())
