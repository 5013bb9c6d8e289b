"""Published M2-BERT weights, under their own parameter names, into :class:`M2BertForMaskedLM`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .config import M2BertConfig
from .model import M2BertForMaskedLM

# keys of the published configuration files that mean something here under another name, or must have one value
_RENAMED = {"long_conv_l_max": "max_position_embeddings"}
_UNSUPPORTED = {"attention_pooling": False, "sequence_token_planting": False, "monarch_mixer_sequence_mixing": True}
_KNOWN = set(M2BertConfig().to_dict())


def config_from_official(options: Mapping[str, Any], **overrides: Any) -> M2BertConfig:
    """An :class:`M2BertConfig` from the ``model_config`` keys of a published configuration file.

    Raises:
        ValueError: the file asks for something no published model uses and this one does not have.
    """
    for name, wanted in _UNSUPPORTED.items():
        if options.get(name, wanted) != wanted:
            raise ValueError(f"config_from_official: option {name!r} must be {wanted}, got {options[name]!r}")
    for name, twin in _RENAMED.items():
        if name in options and options.get(twin, options[name]) != options[name]:
            raise ValueError(
                f"config_from_official: option {name!r} must be {twin!r}={options[twin]}, got {options[name]}"
            )
    chosen = {_RENAMED.get(name, name): value for name, value in options.items()}
    chosen = {name: value for name, value in chosen.items() if name in _KNOWN}
    if options.get("pool_all"):
        chosen["pooling"] = "mean"
    return M2BertConfig(**({"padding": "official"} | chosen | overrides))


def own_name(key: str) -> str | None:
    """The name in :class:`M2BertForMaskedLM` of a published parameter; None for what that model makes itself.

    Prefixes ``module.`` and ``model.`` are dropped. The six names of a filter's frequencies give one name.
    """
    key = re.sub(r"^(module\.|model\.)+(?=bert\.|cls\.|classifier\.|dropout\.)", "", key)
    if ".flashfft." in key or key.startswith(("classifier.", "dropout.")) or key.endswith("position_ids"):
        return None
    if key == "cls.predictions.decoder.weight":
        return None  # the word embedding itself
    for pattern, replacement in (
        (r"pos_emb\.([zt])$", r"\1"),
        (r"modulation\.deltas$", "deltas"),
        (r"implicit_filter(_rev)?\.[135]\.freq$", "freq"),
        (r"short_filter\.(weight|bias)$", r"short_\1"),
        (r"^cls\.predictions\.transform\.", ""),
        (r"^cls\.predictions\.decoder\.bias$", "decoder_bias"),
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
    """Published state dict (or gradients by the same names) under the names and shapes of :class:`M2BertForMaskedLM`.

    Frequencies come under six names of which the last wins.
    """
    named = ((own_name(key), value) for key, value in state.items())
    return {name: _own_shape(name, value) for name, value in named if name is not None}


def load_official(state: Mapping[str, Tensor], config: M2BertConfig) -> M2BertForMaskedLM:
    """A model with published weights.

    Args:
        state: the state dict as published (``bert....`` and, optionally, ``cls....``).
        config: sizes; see :func:`config_from_official`.

    Raises:
        ValueError: parameters are missing or unknown; the message lists them.
    """
    model = M2BertForMaskedLM(config)
    converted = convert_official(state)
    head = {"dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias", "decoder_bias"}
    own = model.state_dict()
    missing = sorted(set(own) - set(converted) - (set() if head & set(converted) else head))
    unknown = sorted(set(converted) - set(own))
    shapes = sorted(
        f"{n}: {tuple(converted[n].shape)}, not {tuple(own[n].shape)}"
        for n in set(own) & set(converted)
        if own[n].shape != converted[n].shape
    )
    if missing or unknown or shapes:
        raise ValueError(f"load_official: missing {missing}; unknown {unknown}; wrong shape {shapes}")
    model.load_state_dict(converted, strict=False)
    return model.eval()
