"""Loss, ranking and tokenizer of monarch_ops.retrieval; the demo's training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from monarch_ops.demo.training import Trainer, TrainingOptions
from monarch_ops.m2bert import M2BertConfig, M2BertModel
from monarch_ops.retrieval import Encoder, bm25_scores, embed, ndcg, orthogonal_projection_loss, train_tokenizer

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
]
PAIRS = [(f"find {word}", f"def {word}_function(x): return {word}(x) " * (1 + i % 3)) for i, word in enumerate(WORDS)]


# ---- loss ------------------------------------------------------------------------------------------------------------


def test_loss_is_its_closed_form():
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    documents = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    cosines = [[1.0, 0.5**0.5], [0.0, 0.5**0.5]]
    positive = ((cosines[0][0] - 1) ** 2 + (cosines[1][1] - 1) ** 2) / 2
    negative = (cosines[0][1] ** 2 + cosines[1][0] ** 2) / 2
    assert orthogonal_projection_loss(queries, documents).item() == pytest.approx(positive + negative)


def test_loss_of_given_labels_and_of_one_pair():
    query, documents = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([[1, 0, 0]])
    expected = (0.5**0.5 - 1) ** 2 + (0 + 1) / 2
    assert orthogonal_projection_loss(query, documents, labels).item() == pytest.approx(expected)
    assert orthogonal_projection_loss(query, documents[:1]).item() == pytest.approx((0.5**0.5 - 1) ** 2)


def test_loss_is_zero_only_for_orthogonal_pairs():
    assert orthogonal_projection_loss(torch.eye(3), 5 * torch.eye(3)).item() == 0
    assert orthogonal_projection_loss(torch.eye(3), torch.eye(3).roll(1, 0)).item() > 1


@pytest.mark.parametrize(
    ("queries", "documents", "labels", "message"),
    [
        ((2, 3), (2, 4), None, r"'queries' and 'documents' must have shapes \(Q, D\) and \(N, D\), got \(2, 3\)"),
        ((2, 3), (4, 3), None, r"'labels' must be given when Q != N, got Q, N = \(2, 4\)"),
        ((2, 3), (4, 3), (2, 3), r"'labels' must have shape \(2, 4\), got \(2, 3\)"),
    ],
)
def test_loss_refuses(queries, documents, labels, message):
    given = None if labels is None else torch.zeros(labels)
    with pytest.raises(ValueError, match=message):
        orthogonal_projection_loss(torch.randn(queries), torch.randn(documents), given)


# ---- ranking ---------------------------------------------------------------------------------------------------------


def test_ndcg_by_hand():
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.9, 0.5], [0.3, 0.2, 0.9]])
    relevant = np.array([[True, False, False], [True, False, False], [True, True, False]])
    # first; third; second and third, of which the best order has first and second
    third = (1 / math.log2(3) + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert ndcg(scores, relevant) == pytest.approx([1.0, 1 / math.log2(4), third])
    assert ndcg(scores, relevant, k=1) == pytest.approx([1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 2), bool), r"must both have shape \(Q, N\), got \(2, 3\) and \(2, 2\)"),
        (np.zeros((2, 2)), np.array([[True, False], [False, False]]), "for every query, got none for query 1"),
        (np.full((1, 1), np.nan), np.ones((1, 1), bool), "must not contain NaN"),
    ],
)
def test_ndcg_refuses(scores, relevant, message):
    with pytest.raises(ValueError, match=message):
        ndcg(scores, relevant)


def test_bm25_prefers_the_rare_word():
    documents = ["cats and dogs", "dogs and birds", "dogs and dogs and dogs"]
    scores = bm25_scores(["a cat", "the birds"], documents)
    assert scores.shape == (2, 3)
    assert scores.argmax(axis=1).tolist() == [0, 1]
    assert (scores[0, 1:] == 0).all()


# ---- tokenizer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for pair in PAIRS for text in pair], vocab_size=400, max_length=64)


@pytest.fixture
def model(tokenizer) -> M2BertModel:
    torch.manual_seed(0)
    config = M2BertConfig.preset(
        "m2-bert-tiny", vocab_size=len(tokenizer), max_position_embeddings=64, hidden_dropout_prob=0.0, pooling="mean"
    )
    return M2BertModel(config).eval()


def test_code_and_prose_have_the_same_tokens(tokenizer):
    prose, code = tokenizer(["alpha function", "alphaFunction(); ALPHA_function"])["input_ids"]
    assert code[1:-1] == 2 * prose[1:-1]
    assert tokenizer.convert_ids_to_tokens([prose[0], prose[-1], 0]) == ["[CLS]", "[SEP]", "[PAD]"]
    assert tokenizer.unk_token_id not in prose


# ---- training --------------------------------------------------------------------------------------------------------

OPTIONS = TrainingOptions(steps=12, learning_rate=2e-3, warmup=2, tokens_per_batch=200, min_pairs=2)
LONG = [(query, document * 3) for query, document in PAIRS]


def test_training_learns(tokenizer, model):
    encoder = SentenceTransformer(modules=[Encoder(model, tokenizer)], device="cpu")

    def found() -> float:
        queries, documents = (embed(encoder, [pair[side] for pair in PAIRS]) for side in (0, 1))
        return ndcg(queries @ documents.T, np.eye(len(PAIRS), dtype=bool)).mean()

    before = found()
    options = TrainingOptions(steps=60, learning_rate=3e-3, warmup=5, tokens_per_batch=600)
    losses = list(Trainer(model, tokenizer, PAIRS, LONG, options, max_short=32, max_long=64))
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert found() > before + 0.2


def test_a_stopped_training_goes_on_as_if_it_had_not(tokenizer, model, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    whole = list(Trainer(model, tokenizer, PAIRS, LONG, OPTIONS, max_short=32, max_long=64))
    expected = {name: value.clone() for name, value in model.state_dict().items()}

    model.load_state_dict(start)
    file = tmp_path / "training.pt"
    first = Trainer(model, tokenizer, PAIRS, LONG, OPTIONS, max_short=32, max_long=64, checkpoint=file)
    for _ in first:
        if first.step == 5:
            first.save()
            break
    model.load_state_dict(start)  # what a new process starts with
    second = Trainer(model, tokenizer, PAIRS, LONG, OPTIONS, max_short=32, max_long=64, checkpoint=file)
    assert second.step == 5
    list(second)
    assert second.losses == whole
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_training_refuses(tokenizer, model, tmp_path):
    with pytest.raises(ValueError, match="'short' must hold at least one pair, got none"):
        Trainer(model, tokenizer, [])
    with pytest.raises(ValueError, match="made without argument 'checkpoint'"):
        Trainer(model, tokenizer, PAIRS).save()
    file = tmp_path / "training.pt"
    Trainer(model, tokenizer, PAIRS, options=OPTIONS, checkpoint=file).save()
    with pytest.raises(ValueError, match=r"training.pt was written by another run, .*'steps': 12"):
        Trainer(model, tokenizer, PAIRS, options=TrainingOptions(steps=13), checkpoint=file)
    with pytest.raises(ValueError, match=r"delete it or train with those options and data"):
        Trainer(model, tokenizer, PAIRS[1:], options=OPTIONS, checkpoint=file)
