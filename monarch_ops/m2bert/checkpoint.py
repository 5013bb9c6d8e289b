"""Published M2-BERT weights and configurations, under their own names and in every form they come in."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .config import M2BertConfig
from .heads import M2BertForMaskedLM
from .model import M2BertModel, M2BertPreTrainedModel

# ---- configuration ---------------------------------------------------------------------------------------------------

# keys of the published configuration files that mean something here under another name, or must have one value
_RENAMED = {"long_conv_l_max": "max_position_embeddings"}
_UNSUPPORTED = {
    "attention_pooling": False,
    "sequence_token_planting": False,
    "monarch_mixer_sequence_mixing": True,
    "use_flash_mm": False,  # other parameters
}
# what the published code assumes where a file is silent and this package assumes something else
_PUBLISHED_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "residual_long_conv": False,
    "hyena_filter_order": 64,
    "use_monarch_mlp": False,
    "use_positional_encodings": False,
    "padding": "official",
}
_KNOWN = set(inspect.signature(M2BertConfig.__init__).parameters) - {"self", "kwargs"}
_KNOWN |= {"num_labels", "problem_type", "id2label", "label2id"}
_READ = _KNOWN | _RENAMED.keys() | _UNSUPPORTED.keys() | {"pool_all"}


def _option(name: str, value: Any, file: Mapping[str, Any]) -> Any:
    """The value of an option: ``${key}`` stands for another key of the file; YAML takes 1e-12 for a string."""
    reference = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
    if reference:
        if reference[1] not in file:
            raise ValueError(
                f"config_from_official: option {name!r} must be a value or the name of a key of the whole file, "
                f"got {value!r}"
            )
        value = file[reference[1]]
    if isinstance(value, str) and isinstance(getattr(M2BertConfig(), name, None), float):
        return float(value)
    return value


def config_from_official(options: Mapping[str, Any], **overrides: Any) -> M2BertConfig:
    """An :class:`M2BertConfig` from a published configuration file.

    Args:
        options: what the file holds, or its ``model: model_config:`` alone. Keys without meaning here are ignored.
        overrides: arguments of :class:`M2BertConfig` that go before those of the file; `padding` is "official" unless
            it is among them.

    Raises:
        ValueError: the file asks for something no published model uses and this one does not have.
    """
    file = options
    for section in ("model", "model_config"):
        inner = options.get(section)
        options = inner if isinstance(inner, Mapping) else options
    values = {name: _option(name, value, file) for name, value in options.items() if name in _READ}
    for name, wanted in _UNSUPPORTED.items():
        if values.get(name, wanted) != wanted:
            raise ValueError(f"config_from_official: option {name!r} must be {wanted}, got {values[name]!r}")
    for name, twin in _RENAMED.items():
        if name in values and values.get(twin, values[name]) != values[name]:
            raise ValueError(
                f"config_from_official: option {name!r} must be {twin!r}={values[twin]}, got {values[name]}"
            )
    chosen = {_RENAMED.get(name, name): value for name, value in values.items()}
    chosen = _PUBLISHED_DEFAULTS | {name: value for name, value in chosen.items() if name in _KNOWN}
    chosen["vocab_size"] += -chosen["vocab_size"] % 8  # as the published code makes it
    if values.get("pool_all"):
        chosen["pooling"] = "mean"
    return M2BertConfig(**(chosen | overrides))


# ---- files -----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """What a checkpoint file holds: safetensors or a PyTorch file, told apart by their content.

    No code of the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of neither kind, or holds objects that only its code could make.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_official: argument 'checkpoint' must be a file, got {path}")
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{":  # the header of safetensors, after its length
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe is None:
            raise ValueError(f"load_official: {path} is no checkpoint of PyTorch or safetensors: {error}") from error
        raise ValueError(
            f"load_official: {path} holds more than tensors and plain values ({unsafe[1]}), and reading it would run "
            "code of the file. If you trust it, keep its tensors alone in a file of their own: "
            f"torch.save(torch.load({str(path)!r}, weights_only=False)['state']['model'], 'weights.pt')"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"load_official: {path} is no checkpoint of PyTorch or safetensors: {error}") from error


def weights_of(checkpoint: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, a file or what it holds, under their published names."""
    held: Any = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    if isinstance(held, Mapping) and isinstance(held.get("state"), Mapping):  # of Composer
        held = held["state"].get("model")
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        found = sorted(map(str, held)) if isinstance(held, Mapping) else type(held).__name__
        raise ValueError(
            "load_official: argument 'checkpoint' must hold named tensors, at its top or under ['state']['model'], "
            f"got {found}"
        )
    return dict(held)


# ---- names -----------------------------------------------------------------------------------------------------------


def own_name(key: str) -> str | None:
    """The name of a published parameter in the models with a head; None for what they make themselves.

    Prefixes ``module.`` and ``model.`` are dropped. The six names of a filter's frequencies give one name, and so do
    the two of the word embedding, which is also the decoder.
    """
    key = re.sub(r"^(module\.|model\.)+(?=bert\.|cls\.|classifier\.|dropout\.)", "", key)
    if ".flashfft." in key or key.startswith("dropout.") or key.endswith("position_ids"):
        return None
    for pattern, replacement in (
        (r"pos_emb\.([zt])$", r"\1"),
        (r"modulation\.deltas$", "deltas"),
        (r"implicit_filter(_rev)?\.[135]\.freq$", "freq"),
        (r"short_filter\.(weight|bias)$", r"short_\1"),
        (r"^cls\.predictions\.transform\.", ""),
        (r"^cls\.predictions\.decoder\.bias$", "decoder_bias"),
        (r"^cls\.predictions\.decoder\.weight$", "bert.embeddings.word_embeddings.weight"),
    ):
        key = re.sub(pattern, replacement, key)
    # Sequential index 2 i of the linear layers, sines between them
    return re.sub(r"implicit_filter(_rev)?\.(\d)\.", lambda m: f"mlp{m[1] or ''}.{int(m[2]) // 2}.", key)


def _own_shape(name: str, value: Tensor) -> Tensor:
    """Drops axes of length one: z (1, L, E), t (1, L, 1), deltas (1, 1, H), freq (1, O), short_weight (3H, 1, K)."""
    if name.endswith(".z"):
        return value[0]
    if name.endswith(".short_weight"):
        return value.squeeze(1)
    return value.flatten() if name.endswith((".t", ".deltas", ".freq")) else value


def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published state dict (or gradients by the same names) under the names and shapes of the models with a head.

    Frequencies come under six names of which the last wins, as in the published code.

    Raises:
        ValueError: another parameter comes under two names, and with two values.
    """
    converted: dict[str, Tensor] = {}
    for key in sorted(state):  # of the frequencies' names, the order in which PyTorch loads them
        name = own_name(key)
        if name is None:
            continue
        value = _own_shape(name, state[key])
        if name in converted and not name.endswith(".freq") and not torch.equal(converted[name], value):
            raise ValueError(f"load_official: two different values for {name}, one of them {key}")
        converted[name] = value
    return converted


# ---- models ----------------------------------------------------------------------------------------------------------

Model = TypeVar("Model", bound=M2BertPreTrainedModel)
_LANGUAGE_HEAD = ("dense.", "LayerNorm.", "decoder_bias")
_OPTIONAL = (*_LANGUAGE_HEAD, "classifier.", "bert.pooler.")


def _by_layer(names: Iterable[str]) -> list[str]:
    """Sorted, and what is the same in several layers once: ``layer.{0,1,5}.mlp.wo.bias``."""
    layers: dict[str, list[int]] = {}
    for name in sorted(names):
        number = re.search(r"(?<=\blayer\.)\d+", name)
        general = re.sub(r"(?<=\blayer\.)\d+", "*", name, count=1)
        layers.setdefault(general, []).extend([int(number[0])] if number else [])
    numbers = {g: ",".join(map(str, sorted(found))) for g, found in layers.items()}
    return [g.replace("*", f"{{{n}}}" if "," in n else n) for g, n in numbers.items()]


def own_state(model: M2BertPreTrainedModel) -> dict[str, Tensor]:
    """Parameters and buffers of a model; those of an encoder under the names that they have in models with a head."""
    base = model.base_model_prefix
    prefix = "" if hasattr(model, base) else f"{base}."
    return {prefix + name: value for name, value in model.state_dict().items()}


@overload
def load_official(
    checkpoint: str | Path | Mapping[str, Any], config: M2BertConfig | Mapping[str, Any]
) -> M2BertModel | M2BertForMaskedLM: ...


@overload
def load_official(
    checkpoint: str | Path | Mapping[str, Any],
    config: M2BertConfig | Mapping[str, Any],
    model_class: type[Model],
) -> Model: ...


def load_official(
    checkpoint: str | Path | Mapping[str, Any],
    config: M2BertConfig | Mapping[str, Any],
    model_class: type[M2BertPreTrainedModel] | None = None,
) -> M2BertPreTrainedModel:
    """A model with published weights, in evaluation mode.

    Args:
        checkpoint: a file or what it holds: a state dict as published (``bert....`` and, optionally, ``cls....`` and
            ``classifier....``), behind prefixes ``model.`` and ``module.`` or not, alone or in a checkpoint of
            Composer, in PyTorch's format or in safetensors'. Tables of FlashFFTConv and position ids are skipped.
        config: sizes, or the options of a published configuration file, for which see :func:`config_from_official`.
        model_class: ``M2BertModel``, ``M2BertForMaskedLM`` or ``M2BertForSequenceClassification``; all that it has must
            be in the checkpoint, and heads that it lacks are left out. Default: the language model when the checkpoint
            has its head, else the encoder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or parameters are missing, unknown or of the wrong shape; the message
            lists them.
    """
    converted = convert_official(weights_of(checkpoint))
    if model_class is None:
        has_head = any(name.startswith(_LANGUAGE_HEAD) for name in converted)
        model_class = M2BertForMaskedLM if has_head else M2BertModel
    if not isinstance(config, M2BertConfig):
        config = config_from_official(config)
    model = model_class(config)
    own = own_state(model)
    problems = {
        "missing": _by_layer(set(own) - set(converted)),
        "unknown": _by_layer(name for name in set(converted) - set(own) if not name.startswith(_OPTIONAL)),
        "wrong shape": _by_layer(
            f"{name}: {tuple(converted[name].shape)}, not {tuple(own[name].shape)}"
            for name in set(own) & set(converted)
            if own[name].shape != converted[name].shape
        ),
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind} {names}" for kind, names in problems.items() if names)
        raise ValueError(f"load_official: the checkpoint does not fit {model_class.__name__}: {listed}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(converted[name])
    return model.eval()
