"""Retrieval data in the format of BEIR (arXiv 2104.08663): documents, queries, and which document answers which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .documents import InputError, json_lines, read_field, text_lines

Places = dict[str, str]  # of an id: the file and line that have it


@dataclass(frozen=True)
class RetrievalData:
    """Queries, the documents to search, and the right answers.

    Args:
        name: what tables call it.
        documents: text by id; a title is the beginning of the text.
        queries: text by id; each has a relevant document.
        qrels: by the id of a query, by the id of a document: how relevant it is. Above 0 is relevant, and documents
            that are not named are not.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def load_beir(folder: str | Path, split: str | None = None) -> RetrievalData:
    """Read ``corpus.jsonl`` (_id, title, text), ``queries.jsonl`` (_id, text) and ``qrels/SPLIT.tsv`` of a folder.

    The first two may end in ``.gz``, a document needs no title, and the qrels (query-id, corpus-id, score, separated by
    tabs) no header line. All documents are read, and of the queries those that the split names.

    Args:
        split: None: the only one.

    Raises:
        InputError: something is missing, or not as it must be; the message names file and line.
    """
    folder = Path(folder)
    documents, document_places = _read_texts(_one_file(folder, "corpus"))
    queries, query_places = _read_texts(_one_file(folder, "queries"))
    splits = {file.stem: file for file in sorted((folder / "qrels").glob("*.tsv"))}
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split is None or split not in splits:
        got = "none" if split is None else repr(split)
        raise InputError(
            f"{folder}: one of the splits in qrels/ must be chosen, {', '.join(splits) or 'none'}; got {got}"
        )
    qrels = {name: _read_qrels(file, query_places, document_places) for name, file in splits.items()}
    judged = set().union(*qrels.values())
    for query, place in query_places.items():
        if query not in judged:
            raise InputError(f"{place}: a query must have a relevant document in qrels/, got {query!r} with none")
    name = folder.resolve().name
    return RetrievalData(
        name if len(splits) == 1 else f"{name}/{split}",
        documents,
        {query: queries[query] for query in qrels[split]},
        qrels[split],
    )


def document_texts(folder: str | Path) -> Iterator[str]:
    """The documents of a folder of BEIR, each beginning with its title, as they are read.

    Raises:
        InputError: see :func:`load_beir`.
    """
    return (text for _, _, text in _texts(_one_file(Path(folder), "corpus")))


def _one_file(folder: Path, stem: str) -> Path:
    found = [file for suffix in ("", ".gz") if (file := folder / f"{stem}.jsonl{suffix}").is_file()]
    if len(found) != 1:
        got = "both" if found else "neither" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: must hold {stem}.jsonl or {stem}.jsonl.gz, got {got}")
    return found[0]


def _texts(file: Path) -> Iterator[tuple[str, str, str]]:
    """Place, id and text, which a title comes before."""
    for place, _, row in json_lines(file):
        id = str(read_field(row, "_id", place, str | int))
        title = read_field(row, "title", place, str) if row.get("title") is not None else ""
        yield place, id, f"{title} {read_field(row, 'text', place, str)}".strip()


def _read_texts(file: Path) -> tuple[dict[str, str], Places]:
    """Texts and places by id."""
    texts: dict[str, str] = {}
    places: Places = {}
    for place, id, text in _texts(file):
        if id in places:
            raise InputError(f"{place}: ids must differ, got {id!r} again, which {places[id]} has")
        texts[id], places[id] = text, place
    if not texts:
        raise InputError(f"{file}: must hold at least one line, got an empty file")
    return texts, places


def _read_qrels(file: Path, queries: Places, documents: Places) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    first: Places = {}
    for number, line in text_lines(file):
        place = f"{file}, line {number}"
        row = line.split("\t")
        if number == 1 and row[-1] == "score":
            continue
        try:
            query, document, score = row[0], row[1], int(row[2])
        except (IndexError, ValueError) as error:
            wanted = "query-id, corpus-id and a whole number, separated by tabs"
            raise InputError(f"{place}: must be {wanted}, got {line[:60]!r}") from error
        for what, id, known in (("query", query, queries), ("document", document, documents)):
            if id not in known:
                raise InputError(f"{place}: must name ids that exist, got the unknown {what} {id!r}")
        if document in qrels.setdefault(query, {}):
            raise InputError(f"{place}: must judge a document once for a query, got {query!r} with {document!r} again")
        qrels[query][document] = score
        first.setdefault(query, place)
    if not qrels:
        raise InputError(f"{file}: must hold at least one judgement, got an empty file")
    for query, judgements in qrels.items():
        if max(judgements.values()) <= 0:
            raise InputError(f"{first[query]}: query {query!r} must have a relevant document, got scores of 0 only")
    return qrels
