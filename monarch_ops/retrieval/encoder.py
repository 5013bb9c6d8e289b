"""M2-BERT as a module of sentence-transformers."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module, Transformer
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ..m2bert import M2BertConfig, M2BertModel
from .documents import InputError


def Encoder(
    model: M2BertModel, tokenizer: PreTrainedTokenizerBase, *, max_seq_length: int | None = None
) -> Transformer:
    """The first, and usually only, module of a :class:`sentence_transformers.SentenceTransformer`.

    ``SentenceTransformer(modules=[Encoder(model, tokenizer)])`` encodes, trains with any loss and is evaluated as any
    other, but has no ``output_value="token_embeddings"``: those are the model's ``last_hidden_state``.

    The embedding of a text is M2-BERT's own ``pooler_output``, (B, H). A batch is padded on the right to its
    longest text or, for a model with ``padding="official"``, always to `max_seq_length`, as the published embeddings
    are. Texts are cut at `max_seq_length` tokens, the special tokens among them.

    It makes an instance of sentence-transformers' own ``Transformer``, so that a saved model names no class of another
    package: ``SentenceTransformer(folder)`` reads it without ``trust_remote_code`` once ``monarch_ops.retrieval`` (or
    ``monarch_ops.m2bert``) is imported, which tells transformers what M2-BERT is.

    Args:
        model: used as it is, not copied.
        tokenizer: pads on the right, and has no more tokens than the model; it is copied.
        max_seq_length: in tokens; default: the longest input of the model, or less if the tokenizer says so.

    Raises:
        ValueError: the tokenizer does not fit the model, or the model is too short for `max_seq_length`.
        TypeError: `model` is no :class:`M2BertModel`.
    """
    if not isinstance(model, M2BertModel):
        wanted = "an M2BertModel (of a model with a head, its .bert)"
        raise TypeError(f"Encoder: argument 'model' must be {wanted}, got {type(model).__name__}")
    with tempfile.TemporaryDirectory() as folder:  # the module's constructor takes nothing else
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        module = _module(folder, tokenizer)
    module.model = model
    longest = model.config.max_position_embeddings
    if max_seq_length is not None:
        if not 1 <= max_seq_length <= longest:
            raise ValueError(f"Encoder: argument 'max_seq_length' must be from 1 to {longest}, got {max_seq_length}")
        module.max_seq_length = max_seq_length
    return module


def _module(folder: str, tokenizer: PreTrainedTokenizerBase) -> Transformer:
    config = AutoConfig.from_pretrained(folder)
    for fits, wanted, got in (
        (len(tokenizer) <= config.vocab_size, f"have at most {config.vocab_size} tokens", len(tokenizer)),
        (tokenizer.pad_token is not None, "have a padding token", "none"),
        (tokenizer.padding_side == "right", "pad on the right", f"padding_side={tokenizer.padding_side!r}"),
    ):
        if not fits:
            raise ValueError(f"Encoder: argument 'tokenizer' must {wanted}, got {got}")
    return Transformer(
        folder,
        modality_config={"text": {"method": "forward", "method_output_name": "pooler_output"}},
        module_output_name="sentence_embedding",
        processing_kwargs={"text": {"padding": "max_length"}} if config.padding == "official" else None,
    )


def load_encoder(folder: str | Path, device: str | None = None) -> SentenceTransformer:
    """A model that turns texts into vectors, from any folder that :class:`SentenceTransformer` reads.

    A folder of M2-BERT alone (``save_pretrained`` of model and tokenizer) gets M2-BERT's own pooling, which
    ``SentenceTransformer(folder)`` does not know and would replace with a mean.

    Args:
        folder: with ``modules.json``, or with ``config.json`` and a tokenizer.
        device: "cpu", "cuda", ...; None: a GPU when there is one.

    Raises:
        InputError: there is no such folder, or it holds no model.
    """
    folder = Path(folder)
    found = [name for name in ("modules.json", "config.json") if (folder / name).is_file()]
    if not found:
        holds = "one with neither modules.json nor config.json" if folder.is_dir() else "no folder"
        raise InputError(f"load_encoder: argument 'folder' must be a folder with a model, got {folder}, {holds}")
    if "modules.json" in found or not isinstance(AutoConfig.from_pretrained(folder), M2BertConfig):
        return SentenceTransformer(str(folder), device=device, local_files_only=True)
    module = _module(str(folder), AutoTokenizer.from_pretrained(folder))
    return SentenceTransformer(modules=[module], device=device)


# of a configuration: how it was saved
_NO_PART_OF_A_MODEL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def tokenizer_rules(tokenizer: Any) -> dict[str, Any] | None:
    """Vocabulary and rules of a fast tokenizer, without how it cut and padded last; None of any other."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        return None
    rules = json.loads(backend.to_str())
    return {name: value for name, value in rules.items() if name not in ("truncation", "padding")}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(json.dumps([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(model: SentenceTransformer) -> str:
    """SHA-256 of all that a model's embeddings depend on: weights, configuration, tokenizer and greatest length."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True, default=str).encode())

    for module in model:
        add([type(module).__name__, module.get_config_dict() if isinstance(module, Module) else repr(module)])
    if model.config is not None:
        add({name: value for name, value in model.config.to_dict().items() if name not in _NO_PART_OF_A_MODEL})
    rules = tokenizer_rules(getattr(model, "tokenizer", None))
    if rules is not None:
        add(rules)
    add(model.max_seq_length)
    add(weights_digest(model))
    return digest.hexdigest()
