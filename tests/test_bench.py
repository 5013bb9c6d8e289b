"""What makes benchmarks a record: files that stay whole, tables made of them, tests that come first."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


def row(problem: str, **entries: Any) -> dict[str, Any]:
    plain = {"test": problem, "device": "cpu", "problem": problem, "seconds": 2e-3, "baseline": "torch.fft"}
    plain |= {"baseline seconds": 8e-3, "ratio": 4.0, "quartiles": [3.9, 4.1], "errors": [1e-7, 2e-7]}
    return plain | {"peak MiB": [3.0, 9.0]} | entries


def test_a_record_is_whole_at_any_moment_and_goes_on(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    record, path = bench["record"].Record, tmp_path / "deep" / "run.json"
    record(path).update(rows=[row("a")])
    again = record(path)
    again.update(rows=[*again.content["rows"], row("b")])
    assert [r["problem"] for r in json.loads(path.read_text())["rows"]] == ["a", "b"]
    assert list(path.parent.iterdir()) == [path]
    for name, value in (("commit", "0000000"), ("csrc", {"cpu": "0"}), ("malloc", "other")):
        path.write_text(json.dumps(again.content | {name: value}))
        with pytest.raises(ValueError, match=f"a run of {name}"):
            record(path)


def test_processes_are_what_a_ratio_is_over(bench: dict[str, ModuleType]) -> None:
    """By hand: of one process pairs count, of several their medians, however many pairs each has."""
    summary = bench["record"].summary
    one = [[[1.0, 4.0], [2.0, 4.0], [1.0, 3.0]]]  # ratios 4, 2, 3
    assert summary(one) == {
        "seconds": 1.0, "baseline seconds": 4.0, "ratio": 3.0, "quartiles": [2.0, 4.0], "blocks": one
    }  # fmt: skip
    slow = [[2.0, 20.0], [2.0, 22.0], [4.0, 40.0]]  # 10, 11, 10
    several = [*one, slow, [[3.0, 15.0], [1.0, 5.0]]]  # and 5, 5
    found = summary(several)
    assert (found["seconds"], found["baseline seconds"]) == (2.0, 10.0)
    assert (found["ratio"], found["quartiles"]) == (5.0, [3.0, 10.0])
    assert summary([[[1.0], [3.0], [2.0]]]) == {"seconds": 2.0, "blocks": [[[1.0], [3.0], [2.0]]]}


def test_a_row_takes_the_place_of_an_earlier_one(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    record = bench["record"].Record(tmp_path / "run.json")
    for name in ("a", "b", "c"):
        record.keep(row(name, blocks=[[[1.0, 2.0]]]))
    record.keep(row("b", blocks=[[[1.0, 2.0]], [[3.0, 4.0]]]))
    assert [r["test"] for r in record.content["rows"]] == ["a", "b", "c"]
    again = bench["record"].Record(record.path)
    assert again.blocks("b") == [[[1.0, 2.0]], [[3.0, 4.0]]]
    assert again.blocks("d") == []


def test_ceilings_of_a_cpu(bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are not faster than registers; without a compiler all but those are measured."""
    ceilings = bench["ceilings"]
    found = ceilings.ceilings(torch.device("cpu"))
    assert set(found) == {"copy", "triad", "float32", "fma"}
    assert min(found.values()) > 1e8
    # beside other work one of the two may have been slow: registers have another chance
    again = (ceilings._fma() for _ in range(20))
    assert any(found["float32"] < 1.1 * fma for fma in itertools.chain([found["fma"]], again))
    monkeypatch.setattr(ceilings.shutil, "which", lambda _: None)
    assert ceilings._fma() is None
    monkeypatch.setattr(ceilings.shutil, "which", lambda _: "/bin/false")
    assert ceilings._fma() is None


def test_the_hash_of_sources_is_the_device_s_own(bench, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bench["record"], "BENCH", tmp_path / "bench")
    hashed = bench["record"].source_hash
    for folder in ("plan", "kernels/cpu", "kernels/cuda"):
        (tmp_path / "csrc" / folder).mkdir(parents=True)
    before = hashed("cpu"), hashed("cuda")
    (tmp_path / "csrc" / "plan" / "README.md").write_text("text")
    assert (hashed("cpu"), hashed("cuda")) == before
    (tmp_path / "csrc" / "kernels" / "cuda" / "a.cuh").write_text("1")
    (tmp_path / "csrc" / "plan" / "tiles.h").write_text("1")
    assert hashed("cpu") == before[0]
    assert hashed("cuda") != before[1]
    plan = tmp_path / "csrc" / "plan" / "plan.h"
    plan.write_text("int f(int a);")
    changed = hashed("cpu")
    assert changed != before[0]
    plan.write_text("// what it does\nint f(\n    int a /* of\n it */);\n")
    assert hashed("cpu") == changed, "the code is the same"
    plan.write_text("int f(int b);")
    assert hashed("cpu") != changed


def test_tables_show_the_newest_row_and_mark_the_old(bench: dict[str, ModuleType], results: Path) -> None:
    def write(name: str, when: str, rows: list[dict[str, Any]], **entries: Any) -> None:
        content = bench["record"].Record(None).content | {"time": when, "rows": rows} | entries
        (results / "cpu-x" / name).write_text(json.dumps(content))

    (results / "cpu-x").mkdir()
    first, second = "fft_conv (4, 768, 1024)", "fft_conv (1, 768, 4096) prepared, gated"
    measured = {"bytes": 1e7, "flops": 1e8, "share of floor": 0.83, "limit": "memory"}
    measured |= {"blocks": [[[2e-3, 8e-3]]] * 3}
    ceilings = {"ceilings": {"cpu": {"copy": 28e9, "float32": 180e9, "triad": 30e9, "fma": 200e9}}}
    old = [row(first, seconds=1.0), row(second), row("fft_conv (8, 768, 128)")]
    write("b.json", "2026-01-01T10", old, csrc={"cpu": "0"}, **ceilings)
    write("a.json", "2026-01-01T11", [row(first, **measured)], checks=[{"name": "values", "summary": "7 passed"}])
    write("c.json", "2026-01-01T09", [row(first, seconds=3.0)], malloc="tuned")
    (results / "cpu-x" / "demo.json").write_text('{"speed": []}')
    (results / "empty").mkdir()
    (results / "cpu-y").mkdir()
    (results / "cpu-y" / "b.json").write_text((results / "cpu-x" / "b.json").read_text())
    text, other = bench["tables"].write_tables().read_text().split("## cpu-y")
    assert other.count(" old |") == 3
    lines = [line for line in text.splitlines() if line.startswith("| fft_conv")]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| {first}", "2"],
        [f"| {second}", "2"],
        ["| fft_conv (8, 768, 128)", "2"],
        [f"| {first}", "3,000"],
    ]
    assert "4.0 (3.9, 4.1; 3 processes) | 83% (memory) | 5 | 50 | 1.0e-07, 2.0e-07 | 3, 9" in lines[0]
    assert "[cpu-x a] |" in lines[0]
    assert "[cpu-x b] old |" in lines[1]
    assert "[cpu-x a]: ../bench/results/cpu-x/a.json\n" in text
    assert "GLIBC_TUNABLES=tuned" in text
    assert "* values: 7 passed" in text
    assert (results.parent.parent / "docs" / "cpu-x.png").stat().st_size > 10_000
    readme = (results.parent.parent / "README.md").read_text()
    assert readme.startswith("before\n<!-- ")
    assert f"| {first} | 2 | torch.fft: 4.0 |\n| fft_conv (8, 768, 128) | 2 | torch.fft: 4.0 (old) |" in readme
    assert "prepared" not in readme
    assert "cpu-y" not in readme, "no row there is of these sources"
    assert "old\n" not in readme
    assert readme.endswith("<!-- end -->\nafter\n")
    assert "## empty" not in text


def test_models_have_a_table_of_their_own(bench: dict[str, ModuleType]) -> None:
    rows = bench["tables"].Row
    run = {
        "commit": "abc",
        "csrc": {},
        "ceilings": {"cpu": {"copy": 9e15, "float32": 180e9, "triad": 9e15, "fma": 2e11}},
    }
    problem = "M2-BERT-80M forward (2, 512)"
    cost = {"bytes": 1e7, "flops": 1e8, "share of floor": 0.83, "limit": "arithmetic"}
    found = [row(problem, **cost), row("embed one document (128 tokens)"), row("fft_conv (4, 768, 1024)")]
    ops, models = bench["tables"]._tables([rows(Path("x/y.json"), run, data) for data in found]).split("\n\n")
    assert "GB/s" in ops
    assert "| fft_conv (4, 768, 1024) |" in ops
    assert "M2-BERT" not in ops
    lines = models.splitlines()
    assert "tokens/s: ours, theirs | share of floor | FLOP utilisation" in lines[0]
    assert "| 512000, 128000 | 83% (arithmetic) | 25% | 3, 9 |" in lines[2], "1e8 operations in 2 ms of 2e11 a second"
    assert "| 64000, 16000 |  |  | 3, 9 |" in lines[3]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


@pytest.mark.parametrize(
    ("problem", "count"),
    [
        ("M2-BERT-80M forward (1, 2048) bf16", 2048),
        ("M2-BERT-80M training step (16, 128)", 2048),
        ("M2-BERT-80M forward, lengths 128, 512, 1024, 2048", 3712),
        ("embed one document (128 tokens)", 128),
        ("fft_conv (8, 768, 128)", None),
    ],
)
def test_tokens_of_a_problem(bench: dict[str, ModuleType], problem: str, count: int | None) -> None:
    assert bench["tables"].tokens(problem) == count


def test_curves_are_one_for_each_form_and_baseline(bench: dict[str, ModuleType]) -> None:
    problems = ["fft_conv (8, 768, 128)", "fft_conv (4, 768, 1024)", "fft_conv (4, 768, 1024) circular"]
    problems += [f"fft_conv (4, 768, {n}) backward, gated" for n in (512, 1024)]
    data = [row(p) for p in problems] + [row("fft_conv (1, 2, 3) avx2", baseline="our plain form"), row("odd")]
    unmeasured = row("fft_conv (1, 2, 4)")
    del unmeasured["ratio"]
    rows = [bench["tables"].Row(Path(), {}, d) for d in [*data, unmeasured]]
    assert bench["tables"].curves(rows) == {
        "fft_conv": {"torch.fft": [(128, 4.0), (1024, 4.0)], "backward, gated (torch.fft)": [(512, 4.0), (1024, 4.0)]}
    }, "a form with one length is no curve"


def test_recorded_runs_have_their_tables(bench: dict[str, ModuleType]) -> None:
    """docs/performance.md names every run whose rows it should show."""
    page = (ROOT / "docs" / "performance.md").read_text()
    devices = bench["tables"].recorded()
    shown = [r for rows in devices.values() for r in rows]
    assert shown
    for r in shown:
        assert f"| {r.data['problem']} | {bench['tables'].milliseconds(r.data)} | {r.data['baseline']} |" in page
    readme = (ROOT / "README.md").read_text()
    for folder, rows in bench["tables"].current(devices).items():
        assert bench["tables"].headlines(folder, rows) in readme


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monarch_ops", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_the_command_measures_records_and_does_not_repeat(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    (tmp_path / "conftest.py").write_text("raise AssertionError('a record is no folder of tests')")
    arguments = ["-k", "cpu and mlp and 128-bmm", "--record", str(path)]
    assert "1 skipped" in run(*arguments, "--minutes", "0").stdout
    assert len(json.loads(path.read_text())["left out"]) == 1
    done = run(*arguments)
    assert "of arithmetic" in done.stdout
    content = json.loads(path.read_text())
    (found,) = content["rows"]
    assert content["left out"] == []
    assert content["ceilings"]["cpu"]["copy"] > 1e8
    assert 0 < found["share of floor"] < 2
    assert found["errors"][0] < 1e-6
    assert found["seconds"] > 0
    assert "recorded before" in run(*arguments).stdout
    run(*arguments, "--processes", "2")
    (found,) = json.loads(path.read_text())["rows"]
    assert len(found["blocks"]) == 2
    assert found["blocks"][0] == content["rows"][0]["blocks"][0]
    assert run(*arguments, "--processes", "2").stdout.count("recorded before") == 2
    run("-k", "cpu and mlp and 128-einsum", "--record", str(path))
    later = json.loads(path.read_text())
    assert len(later["rows"]) == 2
    assert later["ceilings"] == content["ceilings"], "shares are of the same floor"
    path.write_text(json.dumps(content | {"commit": "0000000"}))
    assert "records a run of commit 0000000" in run(*arguments).stderr


def test_a_baseline_that_does_not_fit_is_no_ratio(tmp_path: Path) -> None:
    """As PyTorch's convolution of long rows on a GPU; ours has its time all the same."""
    for name in ("conftest.py", "measure.py", "ceilings.py", "peak.c", "record.py"):
        shutil.copy(ROOT / "bench" / name, tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import torch\n"
        "def too_large():\n"
        "    raise torch.cuda.OutOfMemoryError\n"
        "def test_it(compare):\n"
        "    compare('sum (1, 8)', lambda: torch.ones(8), too_large, 'theirs', torch.ones(8).double())\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cpu", "--record", "run.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "theirs: out of memory" in done.stdout
    (found,) = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert found["seconds"] > 0
    assert "ratio" not in found


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    assert "clone of the repository" in run(folder=tmp_path).stderr
    assert "without --report" in run("--report", "--record", "x.json").stderr
    assert "with --report" in run("--output", "x").stderr
