"""The models that trainings start from: of a folder, or new ones with a tokenizer of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase, set_seed

from ..m2bert import M2BertConfig, M2BertForMaskedLM, M2BertModel, warm_start
from ..m2bert.convert import read_config, read_tokenizer
from ..retrieval import Encoder, InputError, load_encoder, train_tokenizer

TOKENIZER_TEXTS = 100_000  # a vocabulary of tens of thousands is settled by then
Made = TypeVar("Made")


def _config(source: str, max_length: int | None) -> M2BertConfig:
    try:
        given = {} if max_length is None else {"max_position_embeddings": max_length}
        return read_config(source, padding="invariant", **given)
    except ValueError as error:
        raise InputError(f"the model must be a folder, a preset or a file of options: {error}") from error


def _vocabulary(
    config: M2BertConfig, texts: Iterable[str], folder: Path | None, vocab_size: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder`, or one trained on the texts; the configuration is given as many words."""
    longest = config.max_position_embeddings
    tokenizer: PreTrainedTokenizerBase
    if folder is None:
        tokenizer = train_tokenizer(islice(texts, TOKENIZER_TEXTS), vocab_size, longest)
    else:
        config.vocab_size = 1 << 31  # whatever it has
        tokenizer = read_tokenizer(folder, config)
    config.vocab_size = len(tokenizer)
    return tokenizer


def made_once(
    keep: Path | None, make: Callable[[], Made], save: Callable[[Made, Path], None], load: Callable[[Path], Made]
) -> Made:
    """What `make` gives, or gave when the folder was written: a tokenizer that is trained again is another one.

    Of several processes the first one makes it.
    """
    if keep is None:
        return make()
    with PartialState().main_process_first():
        if not keep.is_dir():
            unfinished = keep.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)
            save(make(), unfinished)
            unfinished.rename(keep)
    return load(keep)


def new_encoder(
    source: str,
    texts: Iterable[str],
    *,
    max_length: int | None = None,
    tokenizer: Path | None = None,
    vocab_size: int = 8192,
    seed: int = 0,
    device: str | None = None,
    keep: Path | None = None,
) -> SentenceTransformer:
    """The encoder of a folder (:func:`load_encoder`), or an untrained M2-BERT.

    Args:
        source: the folder; of a new model a preset (:meth:`M2BertConfig.preset`) or a file of options.
        texts: what the tokenizer of a new model is trained on.
        max_length: in tokens, where texts are cut; of a new model its longest input. None: as the model has it.
        tokenizer: the folder of one for a new model, instead of one that is trained.
        vocab_size: of one that is trained, at most.
        seed: of new weights.
        keep: folder for a new model, which is read from there if there is one: :attr:`Run.start`.

    Raises:
        InputError: there is no such model, or it is too short.
    """
    set_seed(seed)
    if not Path(source).is_dir():
        config = _config(source, max_length)

        def make() -> SentenceTransformer:
            words = _vocabulary(config, texts, tokenizer, vocab_size)
            return SentenceTransformer(modules=[Encoder(M2BertModel(config), words)], device=device)

        def save(made: SentenceTransformer, folder: Path) -> None:
            made.save(str(folder), create_model_card=False)

        return made_once(keep, make, save, lambda folder: load_encoder(folder, device))
    encoder = load_encoder(source, device)
    if max_length is not None:
        longest = getattr(encoder.config, "max_position_embeddings", max_length)
        if not 1 <= max_length <= longest:
            raise InputError(f"the greatest length must be from 1 to the model's {longest}, got {max_length}")
        encoder.max_seq_length = max_length
    return encoder


def save_language_model(made: tuple[M2BertForMaskedLM, PreTrainedTokenizerBase], folder: Path) -> None:
    for part in made:
        part.save_pretrained(folder)


def _language_model(folder: Path, tokenizer: Path | None = None) -> tuple[M2BertForMaskedLM, PreTrainedTokenizerBase]:
    try:
        model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
        if not isinstance(model, M2BertForMaskedLM):
            raise ValueError(f"it is a {type(model).__name__}")
        return model, read_tokenizer(tokenizer or folder, model.config)
    except (OSError, ValueError) as error:
        raise InputError(f"the folder must hold an M2-BERT and its tokenizer, got {folder}: {error}") from error


def new_language_model(
    source: str,
    texts: Iterable[str],
    *,
    max_length: int | None = None,
    extend_to: int | None = None,
    decay: str = "stretch",
    features: str = "tile",
    tokenizer: Path | None = None,
    vocab_size: int = 8192,
    seed: int = 0,
    keep: Path | None = None,
) -> tuple[M2BertForMaskedLM, PreTrainedTokenizerBase]:
    """The masked language model and the tokenizer of a folder, or untrained ones; see :func:`new_encoder`.

    A folder of an encoder without a language-model head gets a new one.

    Args:
        extend_to: warm start: make it a model for inputs of so many tokens with :func:`monarch_ops.m2bert.warm_start`,
            which `decay` and `features` are for.

    Raises:
        InputError: there is no such model, it is no M2-BERT, or `extend_to` is not longer than it.
    """
    set_seed(seed)
    if Path(source).is_dir():
        model, words = _language_model(Path(source), tokenizer)
    else:
        config = _config(source, max_length)

        def make() -> tuple[M2BertForMaskedLM, PreTrainedTokenizerBase]:
            words = _vocabulary(config, texts, tokenizer, vocab_size)
            return M2BertForMaskedLM(config), words

        model, words = made_once(keep, make, save_language_model, _language_model)
    if extend_to is not None:
        try:
            model = warm_start(model, extend_to, decay, features)
        except ValueError as error:
            raise InputError(str(error)) from error
        words.model_max_length = extend_to
    return model, words
