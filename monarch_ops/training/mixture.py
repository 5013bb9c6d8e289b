"""The texts of pretraining: short ones of all lengths and long ones made of several (arXiv 2402.07440, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from datasets import IterableDataset as Corpus
from datasets import load_dataset
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from ..retrieval import InputError, Source
from ..retrieval.beir import document_texts

HUB = "hf:"


def _texts(path: Path, fields: tuple[str, ...], per_line: bool | None, glob: str) -> Iterator[dict[str, str]]:
    for document in Source(path, fields, per_line=per_line, glob=glob):
        yield {"text": document.text}


def _beir(path: Path) -> Iterator[dict[str, str]]:
    return ({"text": text} for text in document_texts(path))


def open_corpus(
    source: str, fields: tuple[str, ...] | None = None, per_line: bool | None = None, glob: str = "*"
) -> Corpus:
    """A stream of texts, in the column "text".

    Args:
        source: what :class:`Source` reads; a folder of BEIR, of which the documents are; or ``hf:NAME`` or
            ``hf:NAME:CONFIG``, the split "train" of a data set for ``datasets.load_dataset``.
        fields: the texts to join with a space; None: ``text``, of BEIR the title, if there is one, before it.
        per_line, glob: see :class:`Source`.

    Raises:
        InputError: there is nothing to read.
    """
    if source.startswith(HUB):
        name, _, config = source.removeprefix(HUB).partition(":")
        stream = load_dataset(name, config or None, split="train", streaming=True)
        wanted = fields or ("text",)
        return stream.map(lambda row: {"text": " ".join(row[name] for name in wanted)}).select_columns(["text"])
    path = Path(source)
    if (path / "qrels").is_dir():
        if fields is None:
            document_texts(path)
            return Corpus.from_generator(_beir, gen_kwargs={"path": path})
        glob = "corpus.jsonl*"
    Source(path, glob=glob).files()
    given = {"path": path, "fields": fields or ("text",), "per_line": per_line, "glob": glob}
    return Corpus.from_generator(_texts, gen_kwargs=given)


def texts_of(corpora: Iterable[Corpus]) -> Iterator[str]:
    """All texts, one corpus after the other."""
    return (row["text"] for corpus in corpora for row in corpus)


def _tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Of each text, without special tokens; empty ones are left out."""
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        if ids:
            yield ids


def _framed(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]


def passages(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    shortest: int,
    longest: int,
    random: np.random.Generator,
) -> Iterator[list[int]]:
    """Short examples: texts, those that are longer in pieces of lengths drawn from `shortest` to `longest`.

    Every token is in one example. Lengths are of the example, with ``[CLS]`` and ``[SEP]`` around it; the end of a text
    may be shorter than `shortest`.
    """
    for ids in _tokens(texts, tokenizer):
        start = 0
        while start < len(ids):
            end = start + int(random.integers(shortest, longest + 1)) - 2
            yield _framed(ids[start:end], tokenizer)
            start = end


def packed(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[list[int]]:
    """Long examples: successive texts with ``[SEP]`` between them, cut to `length` tokens, wherever that is.

    Every token of the texts is in one example, which begins with ``[CLS]`` and ends with ``[SEP]``. Only the last one
    may be shorter. A text that ends where an example does needs no ``[SEP]`` at the beginning of the next.
    """
    room, buffer = length - 2, list[int]()
    for ids in _tokens(texts, tokenizer):
        if buffer:
            buffer.append(tokenizer.sep_token_id)
        buffer += ids
        while len(buffer) > room:
            yield _framed(buffer[:room], tokenizer)
            buffer = buffer[room:]
            if buffer[0] == tokenizer.sep_token_id:
                del buffer[0]
        if len(buffer) == room:
            yield _framed(buffer, tokenizer)
            buffer = []
    if buffer:
        yield _framed(buffer, tokenizer)


class Mixture(IterableDataset):
    """Examples without end: short and long ones, of every corpus equally often, in proportion `short` to 1 - `short`.

    A corpus that is at its end begins again in another order. Everything depends on the seed alone, so that a training
    that is resumed skips what it has had.

    Args:
        corpora: see :func:`open_corpus`; each is streamed twice, for short and for long examples.
        tokenizer: with ``[CLS]`` and ``[SEP]``.
        longest: in tokens: of the long examples, and of the short ones at most.
        short: share of short examples, 0.3 in the paper.
        shortest, longest_short: range of the short examples; in the paper 10 to `longest`.
        at_once: so many of a kind follow each other, to be a batch in which no short one is padded to a long one.
        shuffle: texts to hold in memory, of which the next one is drawn.

    Raises:
        InputError: an option is out of its range. While iterating: a corpus is empty.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        tokenizer: PreTrainedTokenizerBase,
        longest: int,
        *,
        short: float = 0.3,
        shortest: int = 10,
        longest_short: int | None = None,
        at_once: int = 1,
        shuffle: int = 1000,
        seed: int = 0,
    ) -> None:
        upper = longest if longest_short is None else longest_short
        if not corpora:
            raise InputError("there must be at least one corpus, got none")
        if not 0 <= short <= 1:
            raise InputError(f"the share of short examples must be from 0 to 1, got {short}")
        if not 3 <= shortest <= upper <= longest:
            raise InputError(
                f"lengths must be 3 <= shortest <= longest short one <= longest, got {shortest}, {upper}, {longest}"
            )
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise InputError("the tokenizer must have the tokens [CLS] and [SEP], got one without")
        self.corpora, self.tokenizer = list(corpora), tokenizer
        self.longest, self.short, self.short_range = longest, short, (shortest, upper)
        self.at_once, self.shuffle, self.seed = at_once, shuffle, seed

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InputError(f"the workers that read must be at most 1, each would read all, got {worker.num_workers}")
        random = np.random.default_rng(self.seed)
        kinds = {"short": self.short, "long": 1 - self.short}
        streams = [(kind, self._endless(kind, i)) for kind in kinds for i in range(len(self.corpora))]
        shares = [kinds[kind] / len(self.corpora) for kind, _ in streams]
        while True:
            _, stream = streams[random.choice(len(streams), p=shares)]
            for _ in range(self.at_once):
                yield {"input_ids": next(stream)}

    def _endless(self, kind: str, number: int) -> Iterator[list[int]]:
        for epoch in count():
            random = np.random.default_rng((self.seed, kind == "short", number, epoch))
            order = self.corpora[number].shuffle(seed=int(random.integers(1 << 31)), buffer_size=self.shuffle)
            texts = texts_of([order])
            if kind == "long":
                found = packed(texts, self.tokenizer, self.longest)
            else:
                found = passages(texts, self.tokenizer, *self.short_range, random)
            empty = True
            for example in found:
                empty = False
                yield example
            if empty:
                raise InputError(f"a corpus must hold at least one word, got number {number + 1} with none")
