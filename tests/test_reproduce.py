"""The paper's orderings with small models: verdicts, arms, seeds, runs that are killed and go on, what is refused."""

from __future__ import annotations

import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console
from tiny_encoder import texts
from typer.testing import CliRunner, Result

from monarch_ops import cli, reproduce
from monarch_ops.cli import reproduce as commands
from monarch_ops.reproduce import Finding, Options, Pair, draw
from monarch_ops.retrieval import InputError

pytestmark = pytest.mark.one_thread

SMALL = {"--model": "m2-bert-tiny", "--max-length": 32, "--vocab-size": 90, "--steps": 4, "--batch-size": 4,
         "--at-once": 2, "--tune-steps": 4, "--tune-batch-size": 4, "--tune-at-once": 4, "--negatives": 2,
         "--held-out": 6, "--points": 2, "--seeds": 2, "--device": "cpu"}  # fmt: skip


def write(folder: Path, seed: int, split: str) -> Path:
    """Documents of random words, each with a query of its first ones, as BEIR."""
    (folder / "qrels").mkdir(parents=True)
    documents = {f"d{i}": text for i, text in enumerate(texts(20, 60, seed))}
    queries = {f"q{i}": " ".join(text.split()[:4]) for i, text in enumerate(documents.values())}
    for name, found in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": id, "text": text}) for id, text in found.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(f"q{i}\td{i}\t1" for i in range(20)))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    parts = {"--train": write(folder / "one", 1, "train"), "--test": write(folder / "two", 2, "test")}
    return [str(part) for name, value in parts.items() for part in (name, value)]


def arguments(ordering: str, data: list[str], output: Path, **more: object) -> list[str]:
    options = SMALL | {f"--{name.replace('_', '-')}": value for name, value in more.items()}
    return ["reproduce", ordering, *data, "-o", str(output), *(str(p) for both in options.items() for p in both)]


def run(*given: object, **more: object) -> Result:
    return CliRunner().invoke(cli.app, arguments(*given, **more), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> tuple[Path, Result]:
    output, threads = tmp_path_factory.mktemp("all") / "out", torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests
    result = run("all", data, output)
    torch.set_num_threads(threads)
    return output, result


def manifest(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, 0.2, 0.001], "as in the paper"),
        ([-0.1, -0.2, -0.001], "the other way round"),
        ([0.5, 0.4, -0.001], "undecided: within the spread"),
        ([0.1, 0.0], "undecided: within the spread"),
        ([0.0, 0.0], "undecided: within the spread"),
        ([0.3], "undecided: one seed shows no spread"),
    ],
)
def test_a_verdict_is_that_of_all_seeds(differences, verdict):
    assert Pair("a", "b", differences).verdict == verdict


def some_finding() -> Finding:
    arms = {"first": [0.5, 0.7], "second": [0.4, 0.5], "third": [0.45, 0.45]}
    curves = {name: [[(1, value / 2), (2, value)] for value in values] for name, values in arms.items()}
    return Finding("Something", "nDCG@10", arms, {"first": 0.9, "third": 0.1}, "table 0", {"none": [0.0, 0.2]},
                   {"MLM loss": {"second": [5.0, 6.0]}}, curves, ("chance", 0.05), {"extra": 1})  # fmt: skip


def test_what_a_finding_says(tmp_path):
    found = some_finding()
    written = json.loads(json.dumps(found.as_json()))
    assert written["arms"]["first"] == {"values": [0.5, 0.7], "mean": pytest.approx(0.6),
                                        "standard_deviation": pytest.approx(0.02**0.5)}  # fmt: skip
    assert [(p["better"], p["worse"], p["verdict"]) for p in written["pairs"]] == [
        ("first", "second", "as in the paper"), ("second", "third", "undecided: within the spread"),
    ]  # fmt: skip
    np.testing.assert_allclose(written["pairs"][1]["differences"], [-0.05, 0.05])
    assert written["extra"] == 1
    console = Console(width=150, record=True, file=io.StringIO())
    for part in found.rendered():
        console.print(part)
    lines = console.export_text().splitlines()
    (first,) = (line for line in lines if " first " in line and "│" in line)
    assert [cell.strip() for cell in first.strip("│").split("│")] == ["first", "0.600 ± 0.141", "", "0.900"]
    assert "second > third: undecided: within the spread (-0.050, +0.050)" in lines
    draw(found, tmp_path / "a.png")
    both = imread(tmp_path / "a.png")
    assert both[..., :3].std() > 0.02


def test_the_command_has_the_defaults_of_the_options():
    parameters = inspect.signature(commands.reproduce).parameters
    assert {name: parameters[name].default for name in asdict(Options())} == asdict(Options())


# ---- a whole run -----------------------------------------------------------------------------------------------------


def test_all_orderings_are_measured_shown_and_drawn(done):
    output, result = done
    assert result.exit_code == 0, result.output
    found = json.loads((output / "results.json").read_text())
    assert list(found) == ["mixture", "warm-start", "loss"]
    for name, ordering in found.items():
        for arm in (ordering["arms"] | ordering["references"]).values():
            assert len(arm["values"]) == 2
            assert all(0 <= value <= 1 for value in arm["values"])
        assert ordering["options"]["tune_steps"] == 4
        assert ordering["training_seconds"] > 0
        assert ordering["threads"] == 1
        assert imread(output / f"{name}.png")[..., :3].std() > 0.02
        for pair in ordering["pairs"]:
            assert f"{pair['better']} > {pair['worse']}: {pair['verdict']}" in result.stdout
    assert found["mixture"]["paper"] == {"mixed": 0.554, "long only": 0.449, "short only": 0.372, **SOURCE}
    curves = found["warm-start"]["curves"]
    assert [step for step, _ in curves["cold start"][0]] == [2, 4]
    last = [curve[-1][1] for curve in curves["warm start"]]
    assert last == found["warm-start"]["arms"]["warm start"]["values"]


SOURCE = {"source": "table 6, 80M parameters, 2k tokens, LoCoV1"}


def differing(a: Path, b: Path) -> set[str]:
    first, second = manifest(a), manifest(b)
    measured = {"seconds", "log"}
    return {name for name in first | second if first.get(name) != second.get(name)} - measured


def test_arms_differ_in_what_they_should_only(done):
    output, _ = done
    for seed in (0, 1):
        mixed = output / f"pretrained-mixed-seed{seed}"
        for other in ("long", "short"):
            assert differing(mixed, output / f"pretrained-{other}-seed{seed}") == {"short"}
        assert differing(mixed, output / f"start-warm-seed{seed}") == {"model_sha256"}
        assert manifest(output / f"start-shorter-seed{seed}")["max_length"] == 8
        opl, mnrl = (output / f"loss-{name}-seed{seed}" for name in ("opl", "mnrl"))
        assert differing(opl, mnrl) == {"loss", "negatives", "batch_size", "in_batch", "rows"}
        assert {n: manifest(opl)[n] for n in ("batch_size", "at_once", "negatives", "rows")} == {
            "batch_size": 8, "at_once": 4, "negatives": 1, "rows": {"one": 40},
        }  # fmt: skip
        assert {n: manifest(mnrl)[n] for n in ("batch_size", "at_once", "in_batch", "rows")} == {
            "batch_size": 4, "at_once": 4, "in_batch": 2, "rows": {"one": 20},
        }  # fmt: skip
        for arm in ("mixed", "long", "short"):
            assert differing(output / f"mixture-{arm}-seed{seed}", output / f"mixture-none-seed{seed}") == {
                "model_sha256"
            }


def test_the_mixture_with_the_loss_of_the_paper(data, done, tmp_path):
    result = run("mixture", data, tmp_path / "out", seeds=1, tune_loss="opl")
    assert result.exit_code == 0, result.output
    for folder, expected in ((tmp_path / "out", ("opl", 2)), (done[0], ("mnrl", 0))):
        made = manifest(folder / "mixture-short-seed0")
        assert (made["loss"], made["negatives"]) == expected


def test_seeds_change_weights_order_and_masks(done):
    output, _ = done
    for name in ("pretrained-mixed", "start-warm", "loss-opl"):
        assert differing(output / f"{name}-seed0", output / f"{name}-seed1") == {"seed", "model_sha256"}
        losses = [[e["loss"] for e in manifest(output / f"{name}-seed{s}")["log"] if "loss" in e] for s in (0, 1)]
        assert losses[0] != losses[1]


def test_what_is_done_is_not_done_again(data, done):
    output, _ = done
    before = {file: file.stat().st_mtime_ns for file in output.glob("*/training.json")}
    written = (output / "results.json").read_text()
    values = json.loads(written)
    again = run("loss", data, output, seeds=1)
    assert again.exit_code == 0, again.output
    assert {file: file.stat().st_mtime_ns for file in output.glob("*/training.json")} == before
    now = json.loads((output / "results.json").read_text())
    assert {name: arm["values"] for name, arm in now["loss"]["arms"].items()} == {
        name: arm["values"][:1] for name, arm in values["loss"]["arms"].items()
    }
    assert now["mixture"] == values["mixture"]
    assert "undecided: one seed shows no spread" in again.stdout
    (output / "results.json").write_text(written)


def test_a_killed_command_goes_on_and_finds_the_same(data, done, tmp_path):
    """It is killed while the second training runs."""
    output = tmp_path / "out"
    shutil.copytree(done[0] / "tokenizer", output / "tokenizer")  # one that is trained again is another one
    command = [sys.executable, "-m", "monarch_ops", *arguments("loss", data, output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not list(output.glob("loss-opl-seed0/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = output / "pretrained-mixed-seed0" / "training.json"
    written = first.stat().st_mtime_ns
    assert not (output / "results.json").exists()
    result = run("loss", data, output)
    assert result.exit_code == 0, result.output
    assert first.stat().st_mtime_ns == written
    whole, found = (json.loads((folder / "results.json").read_text())["loss"] for folder in (done[0], output))
    assert (found["arms"], found["references"]) == (whole["arms"], whole["references"])


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "."}, "the model must be a preset or a file of options, to train anew, got the folder ."),
        ({"seeds": 0}, "'seeds' must be at least 1, got 0"),
        ({"shorter": 128}, "'shorter' must be from 8 to less than 128, got 128"),
        ({"tune_batch_size": 3}, "'tune_batch_size' must be a multiple of 2, got 3"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Options(**options)


def test_the_command_refuses(data, done, tmp_path, monkeypatch):
    def refused(message: str, *given: object, code: int = 1, **more: object) -> None:
        result = run(*given, **more)
        assert result.exit_code == code
        assert message in " ".join(result.stderr.replace("│", " ").split())

    refused(
        "Error: the model must be a folder, a preset or a file of options", "loss", data, tmp_path / "a", model="big"
    )
    gone = ["--train", str(tmp_path / "gone"), *data[2:]]
    refused("must hold corpus.jsonl or corpus.jsonl.gz, got no such folder", "loss", gone, tmp_path / "b")
    refused("learning_rate=0.5, not", "mixture", data, done[0], lr=0.5)
    refused("Missing option '--test'", "loss", data[:2], tmp_path / "c", code=2)

    def stop(study: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(reproduce.ORDERINGS, "loss", stop)
    refused("stopped; the same command goes on from here", "loss", data, tmp_path / "d")


@pytest.mark.parametrize("module", ["accelerate", "matplotlib.figure"])
def test_the_extras_that_are_missing_are_named(module, monkeypatch, data, tmp_path):
    for name in [name for name in sys.modules if name.startswith(("monarch_ops.reproduce", "monarch_ops.training"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    result = run("loss", data, tmp_path)
    assert result.exit_code == 2
    message = " ".join(result.stderr.replace("│", " ").split())
    assert "pip install --no-build-isolation 'monarch-ops[train,eval]'" in message
