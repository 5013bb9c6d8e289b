"""The published M2-BERT, number for number: every case of the parity folder (--parity-dir, see tests/data/README.md).

A case is a pair NAME.json, NAME.npz. What is checked follows from what it holds: options that this model refuses,
hidden states and logits, gradients of two losses, embeddings of texts. Nothing here knows a case by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import parity_dir
from torch import Tensor, nn

pytest.importorskip("transformers", reason="monarch_ops.m2bert needs the extra monarch-ops[m2bert]")

from monarch_ops.m2bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel, load_official
from monarch_ops.m2bert.checkpoint import Model, config_from_official, convert_official, own_name

pytestmark = pytest.mark.one_thread

# largest absolute difference; the published code differs from itself in float64 by a fifth of these at most
HIDDEN, POOLED, LOGITS, LOSS = 5e-5, 1e-5, 2e-4, 1e-5
GRADIENT = 1e-4  # relative L2, per parameter
# values of options that no published model has and this one does not support
REFUSED = {"attention_pooling": True, "sequence_token_planting": True, "monarch_mixer_sequence_mixing": False}


@dataclass(frozen=True)
class ParityCase:
    """One recorded run of the published code."""

    path: Path  # NAME.json

    @cached_property
    def record(self) -> dict:
        return json.loads(self.path.read_text())

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        with np.load(self.path.with_suffix(".npz")) as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The arrays under ``prefix/``, without the prefix."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.arrays.items() if k.startswith(f"{prefix}/")}

    def inputs(self) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: self.arrays[f"in/{name}"].long() for name in names}

    def labels(self) -> Tensor:
        """The published loss ignores label 0 as well as -100."""
        labels = self.arrays["in/labels"].long()
        return labels.masked_fill(labels <= 0, -100)

    def model(self, made: type[Model], **overrides: str) -> Model:
        """With the published treatment of padding unless told otherwise."""
        return load_official(self.group("param"), config_from_official(self.record["config"], **overrides), made)


# ---- comparing -------------------------------------------------------------------------------------------------------


def assert_near(ours: Tensor, theirs: Tensor, limit: float, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype == torch.float32, f"{what}: dtypes {ours.dtype}, {theirs.dtype}"
    worst = (ours - theirs).abs().max().item()
    assert worst <= limit, f"{what}: differs by {worst:.2e}, more than {limit:.0e}"  # false for NaN too


def representation_loss(hidden: Tensor, pooled: Tensor) -> Tensor:
    """mean(hidden W) + mean(pooled W), with W = cos(0.37 i) over the flat index."""

    def weighted(x: Tensor) -> Tensor:
        wave = torch.arange(x.numel(), dtype=torch.float64).mul(0.37).cos().float()
        return (x * wave.view_as(x)).mean()

    return weighted(hidden) + weighted(pooled)


LOSSES: dict[str, type[M2BertModel] | type[M2BertForMaskedLM]] = {"repr": M2BertModel, "mlm": M2BertForMaskedLM}


def loss_of(case: ParityCase, model: M2BertModel | M2BertForMaskedLM) -> Tensor:
    if isinstance(model, M2BertForMaskedLM):
        return model(**case.inputs(), labels=case.labels()).loss
    out = model(**case.inputs())
    return representation_loss(out.last_hidden_state, out.pooler_output)


# ---- what a case can be asked ----------------------------------------------------------------------------------------


def refused_options(case: ParityCase) -> list[str]:
    return [name for name, value in REFUSED.items() if case.record["config"].get(name) == value]


def check_refused(case: ParityCase) -> None:
    name = refused_options(case)[0]
    with pytest.raises(ValueError, match=f"option '{name}' must be {not REFUSED[name]}, got {REFUSED[name]}"):
        case.model(M2BertModel)


@torch.no_grad()
def compare_encoder(case: ParityCase, model: M2BertModel) -> None:
    out = model(**case.inputs())
    assert_near(out.last_hidden_state, case.arrays["out/last_hidden_state"], HIDDEN, "hidden states")
    assert_near(out.pooler_output, case.arrays["out/pooled"], POOLED, "pooled")
    # the retrieval code passes no token types
    untyped = {name: value for name, value in case.inputs().items() if name != "token_type_ids"}
    assert_near(model(**untyped).pooler_output, case.arrays["out/embedding_retrieval"], POOLED, "embedding")


@torch.no_grad()
def compare_logits(case: ParityCase, model: M2BertForMaskedLM) -> None:
    assert_near(model(**case.inputs()).logits, case.arrays["out/mlm_logits"], LOGITS, "MLM logits")


def check_encoder(case: ParityCase) -> None:
    compare_encoder(case, case.model(M2BertModel))


def check_language_model(case: ParityCase) -> None:
    compare_logits(case, case.model(M2BertForMaskedLM))


@torch.no_grad()
def check_classifier(case: ParityCase) -> None:
    model = case.model(M2BertForSequenceClassification)
    assert_near(model(**case.inputs()).logits, case.arrays["out/cls_logits"], LOGITS, "logits of the classifier")


def compare_gradients(case: ParityCase, which: str, model: nn.Module, loss_limit: float = LOSS) -> None:
    loss = loss_of(case, model)
    assert_near(loss, case.arrays[f"out/loss_{which}"], loss_limit, "loss")
    loss.backward()
    prefix = "bert." if isinstance(model, M2BertModel) else ""
    ours = {prefix + name: p.grad for name, p in model.named_parameters()}
    norms = {k.partition("/")[2]: v for k, v in case.record["grad_norms"].items() if k.startswith(f"{which}/")}
    for key, norm in norms.items():
        grad = ours[own_name(key)]
        assert grad is not None, f"{key}: no gradient arrives"
        assert abs(grad.double().norm().item() - norm) <= GRADIENT * norm, f"norm of the gradient of {key}"
    for name, theirs in convert_official(case.group(f"grad_{which}")).items():
        worst = (ours[name] - theirs).double().norm() / theirs.double().norm()
        assert worst <= GRADIENT, f"gradient of {name}: relative difference {worst:.2e}"
    # and none where the published model has none
    recorded = {own_name(key) for key in norms}
    assert [name for name, grad in ours.items() if grad is not None and grad.any() and name not in recorded] == []


def check_gradients_repr(case: ParityCase) -> None:
    compare_gradients(case, "repr", case.model(M2BertModel))


def check_gradients_mlm(case: ParityCase) -> None:
    compare_gradients(case, "mlm", case.model(M2BertForMaskedLM))


@torch.no_grad()
def check_texts(case: ParityCase) -> None:
    """Texts padded to the full length; and each alone, as the mask-honouring model has them in the padded batch."""
    model, invariant = case.model(M2BertModel), case.model(M2BertModel, padding="invariant")
    for ids, embeddings in (("query", "query"), ("doc", "corpus")):
        padded = case.arrays[f"in/{ids}_input_ids"].long()
        mask = case.arrays[f"in/{ids}_attention_mask"].long()
        theirs = case.arrays[f"out/{embeddings}_embeddings"]
        assert_near(model(padded, mask).pooler_output, theirs, POOLED, f"{ids} embeddings")
        alone_key = f"out/{embeddings}_embeddings_without_padding"
        if alone_key in case.arrays:
            alone = [model(row[None, : int(m.sum())]).pooler_output for row, m in zip(padded, mask, strict=True)]
            assert_near(torch.cat(alone), case.arrays[alone_key], POOLED, f"{ids} embeddings without padding")
            assert_near(invariant(padded, mask).pooler_output, case.arrays[alone_key], POOLED, "padding honoured")


def damage_forward(model: M2BertModel) -> None:
    """Forward taps of one layer two percent too large."""
    model.encoder.layer[-1].attention.filter_fn.mlp[-1].weight *= 1.02


def damage_reverse(model: M2BertModel) -> None:
    """No reverse taps in one layer."""
    model.encoder.layer[0].attention.filter_fn.mlp_rev[-1].weight.zero_()


def check_damage_is_noticed(case: ParityCase) -> None:
    """A slightly wrong model fails the comparisons above."""
    wrongs = [damage_forward]
    if case.record["config"]["bidirectional"]:
        wrongs.append(damage_reverse)
    for wrong in wrongs:
        for which, made in LOSSES.items():
            model = case.model(made)
            with torch.no_grad():
                wrong(model.base_model)
            with pytest.raises(AssertionError, match="gradient"):
                compare_gradients(case, which, model, loss_limit=float("inf"))
            compare, what = (compare_logits, "MLM logits") if which == "mlm" else (compare_encoder, "hidden states")
            with pytest.raises(AssertionError, match=f"{what}: differs by"):
                compare(case, model)


CHECKS: dict[str, Callable[[ParityCase], None]] = {
    "refused": check_refused,
    "encoder": check_encoder,
    "language-model": check_language_model,
    "classifier": check_classifier,
    "gradients-repr": check_gradients_repr,
    "gradients-mlm": check_gradients_mlm,
    "damage-is-noticed": check_damage_is_noticed,
    "texts": check_texts,
}


def checks_for(case: ParityCase) -> list[str]:
    """Names of the checks that the content of a case calls for."""
    if refused_options(case):
        return ["refused"]
    with np.load(case.path.with_suffix(".npz")) as stored:
        keys = set(stored.files)
    names = []
    if "out/last_hidden_state" in keys:
        names += ["encoder", "language-model", "gradients-repr", "gradients-mlm", "damage-is-noticed"]
    if "out/cls_logits" in keys:
        names.append("classifier")
    if "in/query_input_ids" in keys:
        names.append("texts")
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = parity_dir(metafunc.config)
    cases = [ParityCase(path) for path in sorted(folder.glob("*.json")) if path.with_suffix(".npz").exists()]
    if not cases:
        raise pytest.UsageError(f"no parity case (NAME.json with NAME.npz) in {folder}")
    if "check" in metafunc.fixturenames:
        pairs = [(case, name) for case in cases for name in checks_for(case)]
        metafunc.parametrize(("case", "check"), pairs, ids=[f"{case.path.stem}-{name}" for case, name in pairs])
    else:
        metafunc.parametrize("case", cases, ids=[case.path.stem for case in cases])


def test_case(case: ParityCase, check: str) -> None:
    CHECKS[check](case)


def test_every_case_is_checked(case: ParityCase) -> None:
    assert checks_for(case), f"{case.path.stem}: nothing in it that a check knows"
