"""Reading documents: lines or files of text, JSONL, Parquet, or a folder of these, one at a time."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow
import pyarrow.parquet

JSONL, PARQUET = (".jsonl", ".ndjson"), (".parquet",)
TABLES = JSONL + PARQUET
Row = tuple[str, int, dict[str, Any]]  # where it is, for messages; its number, from 1; its fields
ID_FIELDS = ("_id", "id")  # tried in this order when none is named


class InputError(ValueError):
    """What a user gave cannot be used; the message says what was wanted, and where in which file it is not."""


class Document(NamedTuple):
    id: str
    text: str


class Corpus(NamedTuple):
    """What :meth:`Source.check` found."""

    documents: int
    characters: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Documents in a file or folder; iterating reads them anew, one after the other.

    Files named ``.jsonl`` or ``.ndjson`` hold an object per line, ``.parquet`` a document per row, all others UTF-8
    text; ``.gz`` behind the name is unpacked. A folder is read file by file in the order of their names, hidden files
    left out. Empty lines are no documents.

    Args:
        path: of the file or folder.
        fields: of JSONL and Parquet: the texts to join with a space, for instance ``("title", "text")``.
        id_field: of JSONL and Parquet: a string or integer; None: ``_id`` or ``id`` if the first document has it, or
            else the number of the line or row.
        per_line: of text: whether a line is a document, or the file is one; None: lines of a file, files of a folder.
            Lines are numbered from 1, and files of a folder go before the number: ``notes/a.txt:12``.
        glob: of a folder: which files, at any depth.
    """

    path: Path
    fields: tuple[str, ...] = ("text",)
    id_field: str | None = None
    per_line: bool | None = None
    glob: str = "*"

    def files(self) -> list[Path]:
        """In the order in which they are read.

        Raises:
            InputError: there are none.
        """
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise InputError(f"the input must be a file or folder, got {self.path}, which does not exist")
        found = (p for p in self.path.rglob(self.glob) if p.is_file())
        files = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(self.path).parts))
        if not files:
            raise InputError(f"the input folder must hold files that match {self.glob!r}, got {self.path} with none")
        return files

    def __iter__(self) -> Iterator[Document]:
        for file in self.files():
            prefix = "" if self.path.is_file() else f"{file.relative_to(self.path).as_posix()}:"
            if _suffix(file) in TABLES:
                ids = (self.id_field,) if self.id_field else ()
                yield from self._records(table_rows(file, (*self.fields, *ids), () if ids else ID_FIELDS), prefix)
            elif self.per_line if self.per_line is not None else self.path.is_file():
                yield from (Document(f"{prefix}{n}", line) for n, line in text_lines(file))
            else:
                yield Document(prefix[:-1] or file.name, _whole(file))

    def check(self) -> Corpus:
        """Read everything once.

        Raises:
            InputError: a document cannot be read, two have the same id, or there is none.
        """
        seen: set[str] = set()
        digest, characters = hashlib.sha256(), 0
        for document in self:
            if document.id in seen:
                raise InputError(f"ids of documents must differ, got {document.id!r} twice in {self.path}")
            seen.add(document.id)
            characters += len(document.text)
            digest.update(f"{document.id}\0{document.text}\0".encode())
        if not seen:
            raise InputError(f"the input must hold at least one document, got {self.path}, which is empty")
        return Corpus(len(seen), characters, digest.hexdigest())

    def _records(self, rows: Iterator[Row], prefix: str) -> Iterator[Document]:
        id_field = self.id_field
        for i, (place, number, row) in enumerate(rows):
            if i == 0 and id_field is None:
                id_field = next((name for name in ID_FIELDS if name in row), None)
            texts = [read_field(row, name, place, str) for name in self.fields]
            id = f"{prefix}{number}" if id_field is None else str(read_field(row, id_field, place, str | int))
            yield Document(id, " ".join(texts))


def _suffix(file: Path) -> str:
    """What the name says about the content, packed or not."""
    return file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix


def table_rows(file: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a file with a name of TABLES; of Parquet only these columns, of which the needed ones must exist."""
    return json_lines(file) if _suffix(file) in JSONL else _parquet_rows(file, needed, optional)


def read_field(row: dict[str, Any], name: str, place: str, kind: Any) -> Any:
    """The value of a field that must be there, of type `kind`: str, or str | int."""
    if name not in row:
        raise InputError(f"{place}: must have a field {name!r}, got {sorted(row)}")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        wanted = "a string" if kind is str else "a string or an integer"
        raise InputError(f"{place}: field {name!r} must be {wanted}, got {json.dumps(row[name], default=str)[:80]}")
    try:
        str(row[name]).encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise InputError(f"{place}: field {name!r} must be Unicode text: {error}") from error
    return row[name]


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb") as opened:
            yield opened
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{file}: must be a gzip file, got a broken one: {error}") from error


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: must be UTF-8 text, got byte {data[error.start]:#04x} at {error.start}") from error


def _whole(file: Path) -> str:
    with _opened(file) as opened:
        return _decoded(opened.read(), str(file))


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that is not empty."""
    with _opened(file) as opened:
        for number, line in enumerate(opened, 1):
            text = _decoded(line, f"{file}, line {number}").strip()
            if text:
                yield number, text


def json_lines(file: Path) -> Iterator[Row]:
    """The lines of a JSONL file."""
    for number, line in text_lines(file):
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: must be a JSON object, got {line[:60]!r}: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: must be a JSON object, got {line[:60]!r}")
        yield place, number, row


def _parquet_rows(file: Path, needed: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        missing = [name for name in needed if name not in columns]
        if missing:
            raise InputError(f"{file}: must have a column {missing[0]!r}, got {columns}")
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=sorted({*needed, *optional} & {*columns})):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", number, row
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{file}: must be a Parquet file: {error}") from error
