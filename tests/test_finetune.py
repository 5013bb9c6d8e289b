"""Fine-tuning for retrieval: losses by their formulas, rows, a training that is killed and goes on, what is refused."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny_encoder import WORDS, texts, tiny_tokenizer
from tiny_m2bert import tiny, tiny_config
from torch.nn import functional as F

from monarch_ops.m2bert import M2BertModel
from monarch_ops.retrieval import Encoder, InputError, OrthogonalProjectionLoss, RetrievalData, bm25_scores, embed, ndcg
from monarch_ops.retrieval.encoder import fingerprint
from monarch_ops.training import (
    LOSSES,
    FineTuneOptions,
    fine_tune,
    hard_negatives,
    new_encoder,
    random_negatives,
    spans,
    training_rows,
)
from monarch_ops.training.pairs import cut

pytestmark = pytest.mark.one_thread

ROWS = 6
QUERIES, DOCUMENTS, OTHERS = (texts(ROWS, 12, seed) for seed in (1, 2, 3))
LABELS = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])


@pytest.fixture
def encoder() -> SentenceTransformer:
    return SentenceTransformer(modules=[Encoder(tiny(hidden_dropout_prob=0.0), tiny_tokenizer())], device="cpu").train()


def unit(encoder: SentenceTransformer, given: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(encoder(encoder.preprocess(given))["sentence_embedding"].double(), dim=1)


def loss_of(loss: torch.nn.Module, *columns: list[str], labels: torch.Tensor | None = None) -> torch.Tensor:
    """The loss, with gradients in the model's parameters."""
    loss.model.zero_grad()
    found = loss([loss.model.preprocess(column) for column in columns], labels)
    found.backward()
    return found.detach()


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def made(name: str, encoder: SentenceTransformer, **options) -> torch.nn.Module:
    return LOSSES[name].make(encoder, FineTuneOptions(loss=name, **options))


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_orthogonal_projection_of_labelled_pairs_is_the_mean_squared_error(encoder):
    q, d = unit(encoder, QUERIES), unit(encoder, DOCUMENTS)
    expected = ((q * d).sum(1) - LABELS).square().mean()
    assert loss_of(made("opl", encoder), QUERIES, DOCUMENTS, labels=LABELS).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_orthogonal_projection_of_rows_with_negatives(encoder):
    q, d, n = (unit(encoder, column) for column in (QUERIES, DOCUMENTS, OTHERS))
    more = [*OTHERS[1:], OTHERS[0]]
    negative = ((q * n).sum(1).square() + (q * unit(encoder, more)).sum(1).square()) / 2
    expected = (((q * d).sum(1) - 1).square() + negative).mean()
    found = loss_of(OrthogonalProjectionLoss(encoder), QUERIES, DOCUMENTS, OTHERS, more)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("columns", [(QUERIES, DOCUMENTS), (QUERIES, DOCUMENTS, OTHERS)])
def test_orthogonal_projection_does_not_depend_on_the_batch(encoder, columns):
    loss, labels = OrthogonalProjectionLoss(encoder), LABELS if len(columns) == 2 else None
    whole, expected = loss_of(loss, *columns, labels=labels), gradient(encoder)
    single, found = 0.0, torch.zeros_like(expected)
    for i in range(ROWS):
        row = [[column[i]] for column in columns]
        single += loss_of(loss, *row, labels=None if labels is None else labels[i : i + 1]).item() / ROWS
        found += gradient(encoder) / ROWS
    assert single == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_orthogonal_projection_refuses(encoder):
    loss = OrthogonalProjectionLoss(encoder)
    for columns, labels in (([QUERIES], None), ([QUERIES, DOCUMENTS, OTHERS], LABELS)):
        with pytest.raises(ValueError, match=f"two columns with labels, two or more without, got {len(columns)}"):
            loss_of(loss, *columns, labels=labels)


@pytest.mark.parametrize("options", [{"at_once": 2}, {"at_once": 3}, {"tokens_at_once": 20}, {"scale": 5.0}], ids=str)
def test_ranking_with_gradient_caching_is_the_ranking_without(encoder, options):
    q, d, n = (unit(encoder, column) for column in (QUERIES, DOCUMENTS, OTHERS))
    scale = options.get("scale", 20.0)
    logits = scale * q @ torch.cat([d, n]).T
    expected = (logits.logsumexp(1) - logits.diagonal()).mean()
    found, gradients = loss_of(made("mnrl", encoder, **options), QUERIES, DOCUMENTS, OTHERS), gradient(encoder)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    plain = loss_of(MultipleNegativesRankingLoss(encoder, scale), QUERIES, DOCUMENTS, OTHERS)
    assert found.item() == pytest.approx(plain.item(), rel=1e-5)
    wanted = gradient(encoder)
    torch.testing.assert_close(gradients, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3)


def test_prototype_is_the_cosine_with_the_teacher(encoder):
    teacher = F.normalize(torch.randn(ROWS, 2, 64), dim=2)
    cosines = [(unit(encoder, column) * teacher[:, i]).sum(1) for i, column in enumerate((QUERIES, DOCUMENTS))]
    found = loss_of(made("prototype", encoder), QUERIES, DOCUMENTS, labels=teacher)
    assert found.item() == pytest.approx(1 - torch.cat(cosines).mean().item(), rel=1e-5)


def test_triplet_and_contrastive(encoder):
    q, d, n = (unit(encoder, column) for column in (QUERIES, DOCUMENTS, OTHERS))
    triplet = ((q * n).sum(1) - (q * d).sum(1) + 0.3).clamp(min=0).mean()
    found = loss_of(made("triplet", encoder, margin=0.3), QUERIES, DOCUMENTS, OTHERS)
    assert found.item() == pytest.approx(triplet.item(), rel=1e-5)
    far = 1 - (q * d).sum(1)
    contrastive = (LABELS * far.square() + (1 - LABELS) * (0.9 - far).clamp(min=0).square()).mean() / 2
    found = loss_of(made("contrastive", encoder, margin=0.9), QUERIES, DOCUMENTS, labels=LABELS.long())
    assert found.item() == pytest.approx(contrastive.item(), rel=1e-5)


# ---- rows ------------------------------------------------------------------------------------------------------------


def some_data(name: str = "some", count: int = 12) -> RetrievalData:
    documents = {f"d{i}": f"all about {word} and more {word} {WORDS[(i + 1) % len(WORDS)]}" for i, word in
                 enumerate(WORDS[:count])}  # fmt: skip
    queries = {f"q{i}": f"find {word}" for i, word in enumerate(WORDS[:count])}
    return RetrievalData(name, documents, queries, {f"q{i}": {f"d{i}": 1} for i in range(count)})


def several_relevant() -> RetrievalData:
    """Two relevant documents, one of them there twice, one that is judged not to be."""
    data = some_data()
    data.documents["copy"] = data.documents["d0"]
    data.qrels["q0"] = {"d0": 2, "d1": 1, "d2": 0}
    return data


@pytest.mark.parametrize("choose", [random_negatives, hard_negatives])
def test_negatives_are_never_relevant(choose):
    data = several_relevant()
    for count in (1, 4, 10):
        chosen = choose(data, count)
        assert chosen.keys() == data.queries.keys()
        for query, documents in chosen.items():
            relevant = {d for d, score in data.qrels[query].items() if score > 0}
            same = {data.documents[d] for d in relevant}
            assert len(set(documents)) == len(documents) == count
            assert not same & {data.documents[d] for d in documents}
    assert set(choose(data, 10)["q0"]) == set(data.documents) - {"d0", "d1", "copy"}
    with pytest.raises(InputError, match="must be at most 10, the documents that are not relevant to 'q0', got 11"):
        choose(data, 11)


def test_random_negatives_depend_on_the_seed():
    data = some_data()
    assert random_negatives(data, 3, seed=1) == random_negatives(data, 3, seed=1) != random_negatives(data, 3, seed=2)
    drawn = [d for seed in range(40) for d in random_negatives(data, 3, seed)["q5"]]
    assert set(drawn) == set(data.documents) - {"d5"}


def test_hard_negatives_are_those_that_bm25_ranks_first():
    data = some_data()
    scores = bm25_scores(list(data.queries.values()), list(data.documents.values()))
    np.fill_diagonal(scores, -1)
    best = [f"d{i}" for i in scores.argmax(1)]
    chosen = hard_negatives(data, 2, at_once=5)
    clear = [i for i in range(len(best)) if scores[i].max() > 0]
    assert len(clear) > 8
    assert [chosen[f"q{i}"][0] for i in clear] == [best[i] for i in clear]


def test_rows_of_every_kind():
    data = several_relevant()
    pairs = training_rows(data, "pairs")
    assert len(pairs) == 13
    assert pairs[0] == {"anchor": "find alpha", "positive": data.documents["d0"]}
    tuples = training_rows(data, "tuples", 3)
    assert tuples.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    negatives = random_negatives(data, 3)
    for row, query in zip(tuples, ["q0", "q0", *[f"q{i}" for i in range(1, 12)]], strict=True):
        assert [row[f"negative_{i}"] for i in (1, 2, 3)] == [data.documents[d] for d in negatives[query]]
    triplets = training_rows(data, "triplets", 3)
    assert len(triplets) == 13 * 3
    assert triplets[4] == {"anchor": "find alpha", "positive": data.documents["d1"],
                           "negative": data.documents[negatives["q0"][1]]}  # fmt: skip
    labelled = training_rows(data, "labelled", 3)
    assert len(labelled) == 13 * 6
    assert sum(row["label"] for row in labelled) == 13 * 3
    relevant = {(data.queries[q], data.documents[d]) for q, found in data.qrels.items() for d in found if found[d] > 0}
    assert all(((row["anchor"], row["document"]) in relevant) == row["label"] for row in labelled)


def test_spans_are_words_of_their_document():
    data = RetrievalData("long", {"a": " ".join(map(str, range(200))), "b": "only three words"}, {}, {})
    more = spans(data, 5, words=(8, 20))
    assert len(more.queries) == len(more.qrels) == 10
    for query, text in more.queries.items():
        (document,) = more.qrels[query]
        assert f" {text} " in f" {data.documents[document]} "
        assert document == "b" or 8 <= len(text.split()) <= 20
    assert len({text for query, text in more.queries.items() if query.startswith("a")}) == 5


def test_what_the_model_does_not_see_is_cut(encoder):
    long = {str(i): text for i, text in enumerate(texts(20, 300))}
    seen = cut(RetrievalData("long", long, {}, {}), encoder)
    assert max(len(text.split()) for text in seen.documents.values()) < 100
    before, after = (encoder.preprocess(list(found.values()))["input_ids"] for found in (long, seen.documents))
    assert torch.equal(before, after)


def test_a_new_model_is_made_once(tmp_path):
    kept = [new_encoder("m2-bert-tiny", texts(50), max_length=32, keep=tmp_path / "start") for _ in range(2)]
    assert fingerprint(kept[0]) == fingerprint(kept[1])
    assert kept[0].max_seq_length == 32
    assert list(tmp_path.iterdir()) == [tmp_path / "start"]
    given = [new_encoder("m2-bert-small", [], max_length=32, tokenizer=tmp_path / "start", seed=s) for s in (0, 0, 1)]
    assert given[0].tokenizer.get_vocab() == kept[0].tokenizer.get_vocab()
    assert fingerprint(given[0]) == fingerprint(given[1]) != fingerprint(given[2])


# ---- training --------------------------------------------------------------------------------------------------------


def fresh(**options) -> SentenceTransformer:
    torch.manual_seed(0)
    given = {"pooling": "mean", "hidden_dropout_prob": 0.1} | options
    model = M2BertModel(tiny_config(**given))
    return SentenceTransformer(modules=[Encoder(model, tiny_tokenizer())], prompts={"query": "mu "}, device="cpu")


QUIET = {"disable_tqdm": True, "logging_strategy": "no"}
SHORT = {"loss": "mnrl", "negatives": 1, "batch_size": 4, "at_once": 2, "learning_rate": 1e-3, "more": QUIET}


def quality(encoder: SentenceTransformer, data: RetrievalData) -> float:
    queries, documents = (
        embed(encoder, list(data.queries.values()), task="query"),
        embed(encoder, list(data.documents.values())),
    )
    return float(ndcg(queries @ documents.T, np.eye(len(queries), dtype=bool)).mean())


def test_training_learns(tmp_path):
    data, encoder = some_data(count=20), fresh(hidden_dropout_prob=0.0)
    before = quality(encoder, data)
    options = FineTuneOptions(loss="mnrl", negatives=0, batch_size=10, at_once=5, learning_rate=3e-3, max_steps=60,
                              save_every=30, more=QUIET)  # fmt: skip
    manifest = fine_tune(encoder, [data], tmp_path / "model", options, validation=data)
    after = quality(encoder, data)
    assert after > before + 0.3
    assert manifest["steps"] == 60
    ranked = [entry["eval_some_cosine_ndcg@10"] for entry in manifest["log"] if "eval_some_cosine_ndcg@10" in entry]
    assert len(ranked) == 2
    assert ranked[-1] == pytest.approx(after, abs=1e-3)
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(again.encode(QUERIES), encoder.encode(QUERIES), atol=5e-6)
    assert sorted(p.name for p in (tmp_path / "model").iterdir() if p.name in ("checkpoints", "training.json")) == [
        "training.json"
    ]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_trains(loss, tmp_path):
    encoder = fresh()
    before = encoder[0].auto_model.pooler.dense.weight.clone()
    teacher = fresh(pooling="cls") if loss == "prototype" else None
    options = FineTuneOptions(**SHORT | {"loss": loss, "max_steps": 2, "negatives_from": "bm25", "spans": 1})
    manifest = fine_tune(encoder, [some_data("a"), some_data("b")], tmp_path, options, teacher=teacher)
    assert manifest["steps"] == 2
    assert manifest["rows"].keys() == {"a", "b"}
    assert not torch.equal(encoder[0].auto_model.pooler.dense.weight, before)


def test_how_many_rows_are_in_memory_changes_nothing(tmp_path):
    """A step over all rows, by plain gradient descent."""
    start, moved = torch.cat([p.detach().flatten() for p in fresh(hidden_dropout_prob=0.0).parameters()]), []
    for at_once in (1, 8, 24):
        encoder, more = fresh(hidden_dropout_prob=0.0), QUIET | {"optim": "sgd"}
        options = FineTuneOptions(negatives=1, batch_size=24, at_once=at_once, learning_rate=1.0, max_steps=1,
                                  warmup=0, weight_decay=0, more=more)  # fmt: skip
        fine_tune(encoder, [some_data(count=12)], tmp_path / str(at_once), options)
        moved.append(torch.cat([p.detach().flatten() for p in encoder.parameters()]) - start)
    for others in moved[1:]:
        assert (others - moved[0]).norm() < 1e-3 * moved[0].norm() > 0


class KilledError(Exception):
    pass


@pytest.fixture
def watched(monkeypatch) -> Callable[[int | None], list]:
    """Notes the input of every step, and ends the training before the one that is named."""
    step = SentenceTransformerTrainer.training_step

    def watch(end: int | None) -> list:
        seen: list = []

        def noted(self, model, inputs, *more):
            if len(seen) == end:
                raise KilledError
            seen.append({name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)})
            return step(self, model, inputs, *more)

        monkeypatch.setattr(SentenceTransformerTrainer, "training_step", noted)
        return seen

    return watch


@pytest.mark.parametrize(("killed_after", "kept"), [(5, 4), (7, 6), (1, 0)])
def test_a_killed_training_goes_on_as_if_it_had_not_been(killed_after, kept, watched, tmp_path):
    """Three epochs of three steps each; the checkpoints are at the middle and the end of one, or there is none."""
    data = [some_data("a", 8), some_data("b", 4)]
    options = FineTuneOptions(**SHORT | {"negatives": 0, "epochs": 3, "save_every": 2})
    whole = watched(None)
    fine_tune(fresh(), data, tmp_path / "whole", options)
    first = watched(killed_after)
    with pytest.raises(KilledError):
        fine_tune(fresh(), data, tmp_path / "killed", options)
    assert not (tmp_path / "killed" / "training.json").exists()
    second = watched(None)
    for state in (tmp_path / "killed").rglob("trainer_state.json"):
        state.write_text(re.sub(r'("seconds": )[^\s,}]+', r"\g<1>1000", state.read_text()))
    manifest = fine_tune(fresh(), data, tmp_path / "killed", options, resume=True)
    assert manifest["steps"] == 9
    assert (manifest["seconds"] > 1000) == (kept > 0)  # those before the checkpoint too
    assert (len(first), len(second)) == (killed_after, 9 - kept)
    for expected, found in zip(whole, [*first[:kept], *second], strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert fine_tune(fresh(), data, tmp_path / "killed", options, resume=True) == manifest
    # an epoch has every query once, behind its prompt
    tokenizer, rows = tiny_tokenizer(), itertools.chain.from_iterable(step["anchor_input_ids"] for step in whole[:3])
    asked = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]
    wanted = tokenizer([f"mu {query}" for part in data for query in part.queries.values()])["input_ids"]
    assert sorted(asked) == sorted(tokenizer.decode(ids, skip_special_tokens=True) for ids in wanted)


@pytest.mark.parametrize("at_once", [1, 2, 4, 12])
def test_gradients_of_small_batches_are_accumulated(watched, tmp_path, at_once):
    """A step of plain gradient descent over 12 rows, of which two each are negatives, however many are there."""
    encoder, seen = fresh(hidden_dropout_prob=0.0), watched(None)
    start = torch.cat([p.detach().flatten() for p in encoder.parameters()])
    options = FineTuneOptions(loss="mnrl", negatives=0, batch_size=12, at_once=at_once, in_batch=2, learning_rate=1.0,
                              warmup=0, max_steps=1, weight_decay=0, max_grad_norm=1e9,
                              more=QUIET | {"optim": "sgd"})  # fmt: skip
    fine_tune(encoder, [some_data(count=12)], tmp_path, options)
    moved = torch.cat([p.detach().flatten() for p in encoder.parameters()]) - start
    there = max(at_once, 2)
    assert [len(step["anchor_input_ids"]) for step in seen] == [there] * (12 // there)
    again = fresh(hidden_dropout_prob=0.0).train()
    for step, first in itertools.product(seen, range(0, there, 2)):
        columns = [{name: step[f"{column}_{name}"][first : first + 2] for name in ("input_ids", "attention_mask")}
                   for column in ("anchor", "positive")]  # fmt: skip
        (MultipleNegativesRankingLoss(again, options.scale)(columns, None) / 6).backward()
    wanted = -torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in again.parameters()])
    assert (moved - wanted).norm() < 1e-3 * wanted.norm() > 0


def test_a_checkpoint_that_was_not_finished_is_not_used(watched, tmp_path):
    options = FineTuneOptions(**SHORT | {"epochs": 3, "save_every": 2})
    watched(5)
    with pytest.raises(KilledError):
        fine_tune(fresh(), [some_data()], tmp_path, options)
    (tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json").write_text('{"epoch"')
    seen = watched(None)
    fine_tune(fresh(), [some_data()], tmp_path, options, resume=True)
    assert len(seen) == 7


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "the loss must be one of opl, mnrl, prototype, triplet, contrastive, got 'hinge'"),
        ({"loss": "opl", "negatives": 0}, "the negatives must be at least 1 with loss 'opl', got 0"),
        ({"loss": "opl", "tokens_at_once": 9}, "the tokens at once are an option of loss 'mnrl', got 'opl'"),
        ({"loss": "opl", "in_batch": 2}, "the rows in a batch are an option of loss 'mnrl', got 'opl'"),
        (
            {"loss": "mnrl", "at_once": 8, "in_batch": 3},
            "the rows at once must be a multiple of the rows in a batch, 3, got 8",
        ),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        FineTuneOptions(**options)


def test_training_refuses(tmp_path):
    data, encoder = some_data(), fresh()

    def refused(message: str, parts=(data,), **options) -> None:
        given = {name: options.pop(name) for name in ("teacher", "resume", "overwrite") if name in options}
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}" if "resume" not in given else tmp_path / "begun"
        with pytest.raises(InputError, match=message):
            fine_tune(encoder, parts, output, FineTuneOptions(**SHORT | options), **given)

    refused("there must be at least one folder to train on, got none", parts=[])
    refused("names of folders must differ, got 'some' twice", parts=[data, data])
    refused("some: must hold at least one query, got none", parts=[RetrievalData("some", data.documents, {}, {})])
    lonely = RetrievalData("some", data.documents, data.queries, data.qrels | {"q3": {"d3": 0}})
    refused("some: a query must have a relevant document, got 'q3' with none", parts=[lonely])
    refused("must be at most 11, the documents that are not relevant to 'q0', got 12", negatives=12)
    refused("a teacher belongs to the loss 'prototype', got loss 'prototype' with teacher=None", loss="prototype")
    refused("a teacher belongs to the loss 'prototype', got loss 'mnrl'", teacher=fresh())
    narrow = fresh(hidden_size=32)
    refused("as long as the model's, 64, got 32", loss="prototype", teacher=narrow)
    refused("a multiple of the rows on all devices at once, 3, got 4", loss="opl", at_once=3)
    refused("'more' must name arguments of TrainingArguments: .*'colour'", more={"colour": "red"})
    fine_tune(fresh(), [data], tmp_path / "begun", FineTuneOptions(**SHORT | {"max_steps": 1}))
    refused("began with, got learning_rate=0.1, not 0.001. --overwrite", resume=True, max_steps=1, learning_rate=0.1)
    refused("one of --resume and --overwrite must be chosen, got both", resume=True, overwrite=True)
    with pytest.raises(InputError, match="is not empty: --resume goes on with it, --overwrite starts anew"):
        fine_tune(encoder, [data], tmp_path / "begun", FineTuneOptions(**SHORT))
    with pytest.raises(InputError, match="must be a folder, a preset or a file of options"):
        new_encoder("m2-bert-huge", [])
    encoder.save(str(tmp_path / "model"))
    with pytest.raises(InputError, match="the greatest length must be from 1 to the model's 64, got 65"):
        new_encoder(str(tmp_path / "model"), [], max_length=65)


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monarch_ops", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(tmp_path):
    data, folder = some_data(), tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    for name, found in (("corpus", data.documents), ("queries", data.queries)):
        lines = [json.dumps({"_id": id, "text": text}) for id, text in found.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    judged = "\n".join(f"{query}\t{document}\t1" for query, found in data.qrels.items() for document in found)
    for split in ("train", "dev"):
        (folder / "qrels" / f"{split}.tsv").write_text(judged)
    options = ["--loss", "mnrl", "--negatives", 2, "--max-length", 32, "--vocab-size", 60, "--batch-size", 4,
               "--at-once", 4, "--lr", 1e-3, "--set", "disable_tqdm=true"]  # fmt: skip
    done = run("m2-bert-tiny", f"{folder}:train", "-o", tmp_path / "model", *options, "--validate", f"{folder}:dev")
    assert done.returncode == 0, done.stderr
    assert "3 steps in" in done.stdout
    encoder = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert encoder.max_seq_length == 32
    refused = run("m2-bert-tiny", folder, "-o", tmp_path / "other", *options)
    assert refused.returncode == 1
    assert "one of the splits in qrels/ must be chosen, dev, train" in refused.stderr
