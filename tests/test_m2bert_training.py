"""M2-BERT in training and in other than plain float32: losses, gradients, checkpointing, autocast, compilation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from tolerance import relative_error
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from tiny_m2bert import CLASSES, VARIETIES, lively, padded_batch, tiny, tiny_config, tiny_loss, words

from monarch_ops.m2bert import M2BertForMaskedLM, M2BertForSequenceClassification

pytestmark = pytest.mark.one_thread


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_masked_language_loss() -> None:
    """Mean over labelled positions of log(sum(exp(logits))) - logit of the label."""
    model, ids = lively(M2BertForMaskedLM(tiny_config())), words(2, 12)
    labels = torch.full((2, 12), -100)
    labels[0, 3], labels[0, 7], labels[1, 0] = 5, 0, 99
    out = model(ids, labels=labels)
    logits = out.logits.double()
    terms = [logits[b, t].exp().sum().log() - logits[b, t, labels[b, t]] for b, t in ((0, 3), (0, 7), (1, 0))]
    assert out.loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    assert model(ids).loss is None
    hidden = model.LayerNorm(model.act(model.dense(model.bert(ids)[0])))
    table = model.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(out.logits, hidden @ table.T + model.decoder_bias)


def problem(kind: str, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of a kind, and the loss of the logits by definition."""
    count, wide = len(logits), logits.double()
    if kind == "single_label_classification":
        labels = torch.arange(count) % logits.shape[1]
        return labels, -wide.log_softmax(1)[torch.arange(count), labels].mean()
    if kind == "multi_label_classification":
        labels = (torch.arange(logits.numel()) % 3 == 0).view_as(logits).float()
        chance = wide.sigmoid()
        return labels, -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    labels = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return labels, (wide - labels).square().mean()


@pytest.mark.parametrize(
    ("kind", "num_labels"),
    [
        ("single_label_classification", 4),
        ("multi_label_classification", 4),
        ("regression", 1),
        ("regression", 4),
    ],
)
def test_classification_losses(kind: str, num_labels: int) -> None:
    """The loss that the configuration names, or, unless it is a regression of several values, the labels imply."""
    ids, mask = padded_batch([20, 13, 7], 20)
    for named in (kind, None):
        model = lively(M2BertForSequenceClassification(tiny_config(num_labels=num_labels, problem_type=named)))
        logits = model(ids, mask).logits
        pooled = model.bert(ids, mask).pooler_output
        torch.testing.assert_close(logits, F.linear(pooled, model.classifier.weight, model.classifier.bias))
        labels, expected = problem(kind, logits)
        if named is None and kind == "regression" and num_labels > 1:
            continue
        assert model(ids, mask, labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert model.config.problem_type == kind
    assert model(ids, mask).loss is None


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", CLASSES)
@pytest.mark.parametrize("variety", VARIETIES)
def test_gradients_reach_every_parameter(variety: str, made) -> None:
    model = made(tiny_config(**VARIETIES[variety])).train()
    ids, mask = padded_batch([30, 12], 30)
    tiny_loss(model, ids, mask).backward()
    bad = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert bad == []


@contextlib.contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Sizes of what is kept for the gradients."""
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


@pytest.mark.parametrize("reentrant", [None, True])
@pytest.mark.parametrize("made", CLASSES)
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_gradient_checkpointing(made, reentrant: bool | None) -> None:
    """The same loss and gradients, dropout included, while less is kept."""
    model = lively(made(tiny_config(num_hidden_layers=4))).train()
    frugal = copy.deepcopy(model)
    frugal.gradient_checkpointing_enable(None if reentrant is None else {"use_reentrant": reentrant})
    assert frugal.is_gradient_checkpointing
    ids, mask = padded_batch([60, 21], 60)
    losses, kept = [], []
    for each in (model, frugal):
        torch.manual_seed(5)
        with kept_bytes() as sizes:
            loss = tiny_loss(each, ids, mask)
        loss.backward()
        losses.append(loss)
        kept.append(sum(sizes))
    torch.testing.assert_close(*losses)
    assert kept[1] < kept[0] / 2
    ours, expected = gradients(frugal), gradients(model)
    assert set(ours) == set(expected)
    torch.testing.assert_close(ours, expected)
    frugal.gradient_checkpointing_disable()
    assert not frugal.is_gradient_checkpointing


def test_gradients_reach_word_vectors() -> None:
    model, ids = tiny(), words(2, 20)
    vectors = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=vectors).pooler_output.sum().backward()
    assert vectors.grad.abs().sum(-1).all()


# ---- dropout, precision, compilation ---------------------------------------------------------------------------------


def test_dropout_is_for_training_only() -> None:
    model, ids = tiny(), words(2, 20)
    assert torch.equal(model(ids)[0], model(ids)[0])
    model.train()
    assert not torch.equal(model(ids)[0], model(ids)[0])


def test_autocast() -> None:
    model, ids = tiny(), words(2, 40)
    exact = model(ids).last_hidden_state
    filter = model.encoder.layer[0].attention.filter_fn
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids)
        assert torch.equal(filter(40)[0], filter(40)[0].float())
        taps = filter(40)[0]
    assert out.last_hidden_state.dtype == torch.bfloat16
    assert relative_error(out.last_hidden_state, exact) < 8 * torch.finfo(torch.bfloat16).eps
    assert torch.equal(taps, filter(40)[0])  # the filters are made in full precision
    out.last_hidden_state.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("made", CLASSES)
def test_autocast_of_every_class(made) -> None:
    model = lively(made(tiny_config()))
    ids, mask = padded_batch([40, 22], 40)
    exact = tiny_loss(model, ids, mask)
    exact.backward()
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, loss = model(ids, mask), tiny_loss(model, ids, mask)
    assert out[0].dtype == torch.bfloat16
    eps = torch.finfo(torch.bfloat16).eps
    assert loss.item() == pytest.approx(exact.item(), rel=8 * eps)
    loss.backward()
    ours = gradients(model)
    assert {g.dtype for g in ours.values()} == {torch.float32}
    flat = [torch.cat([grads[name].flatten() for name in expected]) for grads in (ours, expected)]
    assert relative_error(*flat) < 32 * eps


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("made", CLASSES)
def test_compiled_model(made, pooling: str) -> None:
    """One graph, in evaluation and in training, with the eager results."""
    torch._dynamo.reset()
    model = lively(made(tiny_config(pooling=pooling, hidden_dropout_prob=0.0)))
    ids, mask = padded_batch([20, 13], 20)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        ours = compiled(ids, mask, output_hidden_states=True)
        expected = model(ids, mask, output_hidden_states=True)
        torch.testing.assert_close(ours.to_tuple(), expected.to_tuple())
    model.train()
    found = []
    for call in (torch.compile(tiny_loss, fullgraph=True, backend="aot_eager"), tiny_loss):
        model.zero_grad()
        call(model, ids, mask).backward()
        found.append(gradients(model))
    torch.testing.assert_close(*found)


def test_compiled_to_machine_code() -> None:
    torch._dynamo.reset()
    model = tiny(num_hidden_layers=1)
    ids, mask = padded_batch([20, 13], 20)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, mask)[0], model(ids, mask)[0])
