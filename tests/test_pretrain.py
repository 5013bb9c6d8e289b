"""Pretraining: packing, lengths, masks, the mixture, a training that is killed and goes on, what is refused."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import IterableDataset
from safetensors.torch import load_file
from tiny_encoder import texts, tiny_tokenizer
from tiny_m2bert import LONGEST, tiny_config
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, Trainer

from monarch_ops.m2bert import M2BertForMaskedLM, M2BertModel
from monarch_ops.retrieval import InputError, load_encoder
from monarch_ops.training import (
    Mixture,
    PretrainOptions,
    new_language_model,
    open_corpus,
    packed,
    passages,
    pretrain,
    texts_of,
)
from monarch_ops.training import mixture as mixture_module
from monarch_ops.training.masked import masking

pytestmark = pytest.mark.one_thread

TEXTS = [*texts(60, 50), "", "alpha"]
TOKENIZER = tiny_tokenizer()
CLS, SEP, MASK = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.mask_token_id


def corpus(given: list[str] = TEXTS) -> IterableDataset:
    return IterableDataset.from_generator(_rows, gen_kwargs={"given": tuple(given)})


def _rows(given):
    for text in given:
        yield {"text": text}


def tokens(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


# ---- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 7, 32, 64, 5000])
def test_packing_has_every_token_once(length):
    rows = list(packed(TEXTS, TOKENIZER, length))
    assert all(len(row) == length for row in rows[:-1])
    assert 3 <= len(rows[-1]) <= length
    assert all(row[0] == CLS and row[-1] == SEP and row[1] != SEP for row in rows)
    content = [id for row in rows for id in row[1:-1]]
    assert [id for id in content if id != SEP] == [id for text in TEXTS for id in tokens(text)]
    assert CLS not in content


def test_packing_separates_texts():
    """An example is the texts with [SEP] between them; where one ends with the example, none begins the next."""
    a, b, c = ([id] * n for id, n in ((tokens("alpha")[0], 3), (tokens("beta")[0], 2), (tokens("mu")[0], 1)))
    given = ["alpha alpha alpha", "beta beta", "mu"]
    for length, expected in (
        (11, [[CLS, *a, SEP, *b, SEP, *c, SEP]]),
        (10, [[CLS, *a, SEP, *b, SEP, *c, SEP]]),
        (9, [[CLS, *a, SEP, *b, SEP, SEP], [CLS, *c, SEP]]),
        (8, [[CLS, *a, SEP, *b, SEP], [CLS, *c, SEP]]),
        (5, [[CLS, *a, SEP], [CLS, *b, SEP, SEP], [CLS, *c, SEP]]),
    ):
        assert list(packed(given, TOKENIZER, length)) == expected, length


@pytest.mark.parametrize(("shortest", "longest"), [(3, 3), (10, 20), (5, 64)])
def test_passages_have_every_token_once_and_lengths_in_their_range(shortest, longest):
    rows = list(passages(TEXTS, TOKENIZER, shortest, longest, np.random.default_rng(0)))
    assert [id for row in rows for id in row[1:-1]] == [id for text in TEXTS for id in tokens(text)]
    assert all(row[0] == CLS and row[-1] == SEP for row in rows)
    lengths = [len(row) for row in rows]
    assert max(lengths) <= longest
    # only where a text ends
    assert sum(n < shortest for n in lengths) <= len(TEXTS)
    assert longest - shortest < 20 or len(set(lengths)) > 20


def test_masks():
    ids = [[CLS, *np.random.default_rng(0).integers(5, 90, 298).tolist(), SEP] for _ in range(100)]
    ids += [[CLS, 7, SEP]]
    original = torch.tensor([row + [0] * (300 - len(row)) for row in ids])
    special = (original == CLS) | (original == SEP) | (original == 0)
    for share in (0.3, 0.15):
        batch = masking(TOKENIZER, share, 0)([{"input_ids": row} for row in ids])
        told = batch["labels"] != -100
        assert not told[special].any()
        assert torch.equal(batch["labels"][told], original[told])
        assert torch.equal(batch["input_ids"][~told], original[~told])
        assert torch.equal(batch["attention_mask"], (original != 0).long())
        count = int((~special).sum())
        assert told.sum() / count == pytest.approx(share, abs=4 * (share / count) ** 0.5)
        kinds = batch["input_ids"][told]
        assert (kinds == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
        assert ((kinds != MASK) & (kinds == original[told])).float().mean() == pytest.approx(0.1, abs=0.02)
        again = masking(TOKENIZER, share, 0)([{"input_ids": row} for row in ids])
        assert torch.equal(again["labels"], batch["labels"])


def drawn(count: int, corpora=None, **options) -> list[list[int]]:
    given = {"short": 0.3, "shortest": 5, "longest_short": 20} | options
    stream = iter(Mixture(corpora or [corpus()], TOKENIZER, LONGEST, **given))
    return [next(stream)["input_ids"] for _ in range(count)]


@pytest.mark.parametrize("short", [0.0, 0.3, 1.0])
def test_the_mixture_has_its_proportions(short):
    a, b = corpus(["alpha " * 500]), corpus(["beta " * 300, "beta " * 100])
    rows = drawn(1000, [a, b], short=short)
    kinds = Counter(("short" if len(row) <= 20 else "long", row[1]) for row in rows)
    for word in ("alpha", "beta"):
        for kind, share in (("short", short), ("long", 1 - short)):
            # the ends of the corpora are long examples that are shorter
            assert kinds[kind, tokens(word)[0]] / 1000 == pytest.approx(share / 2, abs=0.09)
    assert max(map(len, rows)) == (LONGEST if short < 1 else 20)


def test_kinds_come_in_batches():
    rows = drawn(400, at_once=4)
    batches = [rows[i : i + 4] for i in range(0, 400, 4)]
    mixed = [b for b in batches if min(map(len, b)) <= 20 and max(map(len, b)) > 20]
    # but for the last example of a corpus, which is what remains
    assert len(mixed) < 12
    assert {len(b[0]) > 20 for b in batches} == {True, False}


def test_the_mixture_depends_on_the_seed_and_begins_again_in_another_order():
    assert drawn(200) == drawn(200) != drawn(200, seed=1)
    rows = drawn(200, short=0.0)
    once = len(list(packed(TEXTS, TOKENIZER, LONGEST)))
    assert 3 * once < 200
    words = [sorted(id for row in rows[i : i + once] for id in row[1:-1] if id != SEP) for i in (0, once)]
    assert words[0] == words[1] == sorted(id for text in TEXTS for id in tokens(text))
    assert rows[:once] != rows[once : 2 * once]


# ---- corpora ---------------------------------------------------------------------------------------------------------


def test_corpora_of_every_form(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    lines = [{"title": "t1", "text": "x1"}, {"title": "t2", "text": "x2"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "c.parquet")
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    with gzip.open(tmp_path / "beir" / "corpus.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"_id": line["title"]} | line) for line in lines))
        file.write('\n{"_id": "t3", "text": "no title"}\n')
    (tmp_path / "beir" / "queries.jsonl").write_text('{"_id": "q", "text": "not this"}')

    def read(name: str, *options) -> list[str]:
        return list(texts_of([open_corpus(str(tmp_path / name), *options)]))

    assert read("a.txt") == ["one", "two"]
    assert read("a.txt", None, False) == ["one\n\ntwo\n"]
    assert read("b.jsonl") == read("c.parquet") == ["x1", "x2"]
    assert read("b.jsonl", ("text", "title")) == ["x1 t1", "x2 t2"]
    assert read("beir") == ["t1 x1", "t2 x2", "no title"]
    assert read("beir", ("text",)) == ["x1", "x2", "no title"]
    (tmp_path / "bare" / "qrels").mkdir(parents=True)
    with pytest.raises(InputError, match=r"corpus\.jsonl"):
        read("bare")
    asked = []

    def hub(*given, **options) -> IterableDataset:
        asked.append((given, options))
        return corpus(["from", "there"])

    monkeypatch.setattr(mixture_module, "load_dataset", hub)
    assert list(texts_of([open_corpus("hf:allenai/c4:en"), open_corpus("hf:some/set")])) == ["from", "there"] * 2
    assert asked == [(("allenai/c4", "en"), {"split": "train", "streaming": True}),
                     (("some/set", None), {"split": "train", "streaming": True})]  # fmt: skip
    with pytest.raises(InputError, match="gone, which does not exist"):
        read("gone")


# ---- training --------------------------------------------------------------------------------------------------------

QUIET = {"disable_tqdm": True}
SHORT = {"max_steps": 7, "batch_size": 4, "at_once": 2, "learning_rate": 1e-3, "shuffle": 10, "shortest": 5,
         "save_every": 3, "log_every": 1, "more": QUIET}  # fmt: skip


def fresh(**options) -> M2BertForMaskedLM:
    torch.manual_seed(0)
    return M2BertForMaskedLM(tiny_config(hidden_dropout_prob=0.1, **options))


def test_pretraining_learns_and_is_validated(tmp_path):
    """Texts of two alternating words: what is masked follows from what is not."""
    pairs = [" ".join([a, b] * 10) for a, b in (("alpha", "beta"), ("mu", "nu"), ("iota", "pi"))]
    given = corpus([pairs[i % 3] for i in range(30)])
    options = PretrainOptions(**SHORT | {"max_steps": 60, "batch_size": 8, "at_once": 8, "learning_rate": 5e-3,
                                         "save_every": 30})  # fmt: skip
    model = fresh()
    manifest = pretrain(model, tiny_tokenizer(), [given], tmp_path / "model", options, validation=given, device="cpu")
    validated = [entry for entry in manifest["log"] if "eval_accuracy" in entry]
    assert len(validated) == 2
    assert validated[-1]["eval_accuracy"] > 0.6
    assert validated[-1]["eval_loss"] < 2 < manifest["log"][0]["loss"]
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert load_encoder(tmp_path / "model", "cpu").encode(["alpha"]).shape == (1, 64)
    assert not (tmp_path / "model" / "checkpoints").exists()


def test_validation_has_the_same_masks_each_time(tmp_path, monkeypatch):
    seen, compute = [], Trainer.prediction_step

    def noted(self, model, inputs, *more, **options):
        seen.append(inputs["labels"].clone())
        return compute(self, model, inputs, *more, **options)

    monkeypatch.setattr(Trainer, "prediction_step", noted)
    options = PretrainOptions(**SHORT | {"max_steps": 2, "save_every": 1, "at_once": 4})
    pretrain(fresh(), tiny_tokenizer(), [corpus()], tmp_path, options, validation=corpus(), device="cpu")
    half = len(seen) // 2
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    labels = torch.cat([a.flatten() for a in seen[:half]])
    assert (labels != -100).float().mean() == pytest.approx(0.15, abs=0.03)


def test_the_published_optimiser(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Trainer, "train", lambda self, **_: made.append(self))
    options = PretrainOptions(at_once=32, more=QUIET)
    pretrain(fresh(), tiny_tokenizer(), [corpus()], tmp_path, options, device="cpu")
    (trainer,) = made
    trainer.create_optimizer_and_scheduler(options.max_steps)
    group, rates = trainer.optimizer.param_groups[0], []
    assert {name: group[name] for name in ("betas", "eps", "weight_decay")} == {
        "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 1e-5,
    }  # fmt: skip
    for _ in range(options.max_steps):
        rates.append(group["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert np.argmax(rates) == 0.06 * 5000
    assert max(rates) == 5e-4
    np.testing.assert_allclose(rates[300:], 5e-4 * (1 - np.arange(4700) / 4700), atol=1e-12)
    assert (options.masked, options.masked_in_validation, options.short) == (0.3, 0.15, 0.3)


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("killed_after", "kept"), [(10, 3), (12, 6), (3, 0)])
def test_a_killed_pretraining_goes_on_as_if_it_had_not_been(killed_after, kept, monkeypatch, tmp_path):
    """Seven steps of two batches each; checkpoints after steps 3 and 6."""
    step = Trainer.training_step

    def watched(end: int | None) -> list:
        seen: list = []

        def noted(self, model, inputs, *more):
            if len(seen) == end:
                raise KilledError
            seen.append({name: value.clone() for name, value in inputs.items()})
            return step(self, model, inputs, *more)

        monkeypatch.setattr(Trainer, "training_step", noted)
        return seen

    def run(name: str, **more):
        return pretrain(fresh(), tiny_tokenizer(), [corpus()], tmp_path / name, PretrainOptions(**SHORT), **more)

    whole = watched(None)
    run("whole", device="cpu")
    first = watched(killed_after)
    with pytest.raises(KilledError):
        run("killed", device="cpu")
    second = watched(None)
    manifest = run("killed", device="cpu", resume=True)
    assert manifest["steps"] == 7
    assert (len(whole), len(second)) == (14, 14 - 2 * kept)
    for expected, found in zip(whole, [*first[: 2 * kept], *second], strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in ("input_ids", "labels", "attention_mask"))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_warm_start_and_what_a_model_is_made_of(tmp_path):
    model, tokenizer = new_language_model("m2-bert-tiny", TEXTS, max_length=32, vocab_size=90)
    assert (model.config.max_position_embeddings, model.config.padding) == (32, "invariant")
    assert tokenizer.model_max_length == 32
    pretrain(model, tokenizer, [corpus()], tmp_path / "a", PretrainOptions(**SHORT | {"max_steps": 1}), device="cpu")
    longer, tokenizer = new_language_model(str(tmp_path / "a"), [], extend_to=64, decay="tokens")
    assert (longer.config.max_position_embeddings, tokenizer.model_max_length) == (64, 64)
    ids = torch.randint(5, 50, (1, 32))
    torch.testing.assert_close(longer.eval()(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    kept = [new_language_model("m2-bert-tiny", TEXTS, max_length=32, keep=tmp_path / "start") for _ in range(2)]
    for first, second in zip(*(part.state_dict().items() for part, _ in kept), strict=True):
        assert torch.equal(first[1], second[1])
    assert kept[0][1].get_vocab() == kept[1][1].get_vocab()
    made = pretrain(longer, tokenizer, [corpus()], tmp_path / "b", PretrainOptions(**SHORT), device="cpu")
    assert made["max_length"] == 64
    M2BertModel(tiny_config()).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    assert isinstance(new_language_model(str(tmp_path / "encoder"), [])[0], M2BertForMaskedLM)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_pretraining_refuses(tmp_path):
    def refused(message: str, corpora=None, **options) -> None:
        given = [corpus()] if corpora is None else corpora
        with pytest.raises(InputError, match=message):
            pretrain(fresh(), tiny_tokenizer(), given, tmp_path / "out", PretrainOptions(**SHORT | options))
        assert not (tmp_path / "out" / "training.json").exists()

    refused("there must be at least one corpus, got none", corpora=[])
    refused("a corpus must hold at least one text, got number 2 with none", corpora=[corpus(), corpus([])])
    refused("the steps must be at least 1, got 0", max_steps=0)
    refused("'masked' must be a share between 0 and 1, got 1.5", masked=1.5)
    refused("the share of short examples must be from 0 to 1, got 2", short=2)
    refused(r"3 <= shortest <= longest short one <= longest, got 70, 64, 64", shortest=70)
    with pytest.raises(InputError, match="a corpus must hold at least one word, got number 1 with none"):
        drawn(1, [corpus(["  ", "..."])])
    for workers in (1, 2):
        loader = DataLoader(Mixture([corpus()], TOKENIZER, LONGEST), batch_size=None, num_workers=workers)
        if workers == 1:
            first, again = (next(iter(loader))["input_ids"] for _ in range(2))
            assert first == again
        else:
            with pytest.raises(InputError, match="workers that read must be at most 1, each would read all, got 2"):
                next(iter(loader))
    with pytest.raises(InputError, match="the folder must hold an M2-BERT and its tokenizer, got"):
        new_language_model(str(tmp_path), [])
    with pytest.raises(InputError, match="'to' must be larger than 32, the longest input so far, got 16"):
        new_language_model("m2-bert-tiny", TEXTS, max_length=32, extend_to=16)


# ---- the command -----------------------------------------------------------------------------------------------------


def command(source: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "monarch_ops", "pretrain", "m2-bert-tiny", str(source), "-o", str(output),
            "--steps", "60", "--batch-size", "8", "--at-once", "8", "--max-length", "128", "--vocab-size", "90",
            "--save-every", "10", "--set", "disable_tqdm=true", *more]  # fmt: skip


def test_the_command_is_killed_and_goes_on(tmp_path):
    source, output = tmp_path / "texts.txt", tmp_path / "model"
    source.write_text("\n".join(TEXTS))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(source, output), env=environment, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(output.glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "training.json").exists()
    words = json.loads((output / "checkpoints" / "start" / "tokenizer.json").read_text())["model"]
    refused = subprocess.run(command(source, output), env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "is not empty: --resume goes on with it" in refused.stderr
    resumed = command(source, output, "--resume")
    done = subprocess.run(resumed, env=environment, capture_output=True, text=True, check=True)
    assert "60 steps in" in done.stdout
    assert json.loads((output / "tokenizer.json").read_text())["model"] == words
    again = subprocess.run(resumed, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    manifest = json.loads((output / "training.json").read_text())
    assert (manifest["steps"], manifest["sources"]) == (60, [str(source)])
    assert [entry["step"] for entry in manifest["log"] if "loss" in entry] == [10, 20, 30, 40, 50, 60]
