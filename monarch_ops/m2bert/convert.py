"""Published checkpoints into folders that transformers loads."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .checkpoint import config_from_official, load_official, own_name, own_state, weights_of
from .config import M2BertConfig
from .model import M2BertPreTrainedModel
from .warm_start import warm_start


def read_config(source: str, **overrides: Any) -> M2BertConfig:
    """A configuration by the name of a preset or from a published YAML (or JSON) file; `padding` is "official".

    Raises:
        ValueError: `source` is neither, or the file holds no options or some that are not supported.
    """
    path = Path(source)
    if not path.is_file():
        try:
            return M2BertConfig.preset(source, **({"padding": "official"} | overrides))
        except ValueError as error:
            raise ValueError(f"there is no file {source}, and as a preset: {error}") from error
    try:
        options = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold options by name, got {type(options).__name__}")
    return config_from_official(options, **overrides)


def read_tokenizer(folder: Path, config: M2BertConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, made to pad and cut as the model needs it.

    Raises:
        ValueError: it cannot be read, has more words than the model or pads with another id.
    """
    if not folder.is_dir():
        raise ValueError(f"the tokenizer must be a folder, got {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no tokenizer that transformers can read: {error}") from error
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer must have at most {config.vocab_size} words as the model, got {len(tokenizer)}"
        )
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"the tokenizer must pad with id {config.pad_token_id} as the model, got {tokenizer.pad_token_id}"
        )
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer


@dataclass(frozen=True)
class Conversion:
    """What was made of a checkpoint."""

    model: M2BertPreTrainedModel
    read: int  # tensors in the checkpoint
    left_out: list[str]  # those that the model does not have, by their published names
    tokenizer: PreTrainedTokenizerBase | None
    output: Path

    def summary(self) -> dict[str, str | list[str]]:
        """What to tell whoever asked for it."""
        config = self.model.config
        tables = [key for key in self.left_out if ".flashfft." in key]
        named = [key for key in self.left_out if key not in tables]
        parameters = sum(p.numel() for p in self.model.parameters())
        text: dict[str, str | list[str]] = {
            "read": f"{self.read:,} tensors",
            "left out": named + ([f"{len(tables)} tables of FlashFFTConv"] if tables else []),
            "model": f"{type(self.model).__name__}, {parameters:,} parameters",
            "longest input": f"{config.max_position_embeddings:,} tokens",
            "padding": config.padding,
        }
        if self.tokenizer is not None:
            text["tokenizer"] = f"{len(self.tokenizer):,} words, cuts at {self.tokenizer.model_max_length:,} tokens"
        files = sorted(self.output.iterdir())
        text["written"] = [f"{file} ({file.stat().st_size:,} bytes)" for file in files]
        return text


def convert(
    checkpoint: Path,
    config: M2BertConfig,
    output: Path,
    *,
    model_class: type[M2BertPreTrainedModel] | None = None,
    tokenizer: Path | None = None,
    extend_to: int | None = None,
    decay: str = "stretch",
    features: str = "tile",
) -> Conversion:
    """Write a published checkpoint as ``config.json`` and ``model.safetensors``, for ``from_pretrained``.

    The folder appears when it is complete, or not at all.

    Args:
        checkpoint, config, model_class: as for :func:`load_official`.
        output: a folder that does not exist or is empty.
        tokenizer: folder of the tokenizer, which is written beside the model.
        extend_to, decay, features: as for :func:`warm_start`; None leaves the length as it is.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: an input does not fit, or `output` is in use.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"the output must be a new or an empty folder, got {output}")
    weights = weights_of(checkpoint)
    model: M2BertPreTrainedModel = (
        load_official(weights, config) if model_class is None else load_official(weights, config, model_class)
    )
    own = own_state(model)
    left_out = sorted(key for key in weights if own_name(key) not in own)
    if extend_to is not None:
        model = warm_start(model, extend_to, decay, features)
    words = None if tokenizer is None else read_tokenizer(tokenizer, model.config)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as unfinished:
        folder = Path(unfinished) / "model"
        model.save_pretrained(folder)
        if words is not None:
            words.save_pretrained(folder)
        folder.replace(output)
    return Conversion(model, len(weights), left_out, words, output)
