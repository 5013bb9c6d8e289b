"""Embeddings on disk: one file of vectors, Parquet or NumPy's, with a manifest that says where they are from.

``docs.parquet`` has the columns id (string) and embedding (list of H float32). ``docs.npy`` is (N, H) float32, and its
ids are in ``docs.npy.ids.json``. The manifest, ``docs.parquet.manifest.json``, is written last: without it, the vectors
are not finished, and ``docs.parquet.partial/`` has what there is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .documents import InputError

Block = tuple[Sequence[str], NDArray[np.float32]]
FORMATS = (".parquet", ".npy")


class EmbeddingFile:
    """The files of one set of embeddings; `path` is the one with the vectors, and need not exist yet.

    Raises:
        InputError: the name of `path` ends in neither .parquet nor .npy.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise InputError(f"an embeddings file must be named .parquet or .npy, got {self.path}")
        self.ids = self._beside("ids.json") if self.path.suffix == ".npy" else None
        self.manifest_file = self._beside("manifest.json")
        self.shards = Shards(self._beside("partial"))

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    @property
    def files(self) -> list[Path]:
        """All that a finished set consists of."""
        return [file for file in (self.path, self.ids, self.manifest_file) if file is not None]

    def exists(self) -> bool:
        """Whether there is anything, finished or not."""
        return any(file.exists() for file in (*self.files, self.shards.folder))

    def remove(self) -> None:
        for file in reversed(self.files):
            file.unlink(missing_ok=True)
        self.shards.remove()

    def manifest(self) -> dict[str, Any]:
        """
        Raises:
            InputError: the embeddings do not exist or are not finished.
        """
        missing = next((file for file in self.files if not file.is_file()), None)
        if missing is not None:
            state = "; its run was interrupted, and --resume goes on with it" if self.shards.folder.exists() else ""
            raise InputError(f"the embeddings {self.path} must be finished, got no {missing.name}{state}")
        return read_json(self.manifest_file)

    def blocks(self, rows: int = 8192) -> Iterator[Block]:
        """Ids and vectors (n, H), n <= `rows`, in the order of the documents."""
        if self.ids is not None:
            ids, vectors = json.loads(self.ids.read_text("utf-8")), np.load(self.path, mmap_mode="r")
            for start in range(0, len(ids), rows):
                yield ids[start : start + rows], np.array(vectors[start : start + rows])
        else:
            for batch in pq.ParquetFile(self.path).iter_batches(batch_size=rows):
                yield _block(pa.Table.from_batches([batch]))

    def write(self, blocks: Iterable[Block], manifest: dict[str, Any]) -> None:
        """Write everything, the manifest last; its "count" and "dim" are the shape of all blocks together."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.ids is None:
            with replacing(self.path) as file, pq.ParquetWriter(file, _schema(manifest["dim"]), **_PARQUET) as writer:
                for ids, vectors in blocks:
                    writer.write_table(_table(ids, vectors))
        else:
            every: list[str] = []
            with replacing(self.path) as file:
                shape = (manifest["count"], manifest["dim"])
                whole = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
                for ids, vectors in blocks:
                    whole[len(every) : len(every) + len(ids)] = vectors
                    every += ids
                whole.flush()
            write_json(self.ids, every)
        write_json(self.manifest_file, manifest)


class Shards:
    """What an unfinished run has so far: what it began with, and a file per window of documents, numbered from 0."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._run = folder, folder / "run.json"

    def begin(self, run: dict[str, Any]) -> dict[str, Any]:
        """What the run that left the shards began with; `run`, which is written down, when there is none."""
        if not self._run.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._run, run)
        return read_json(self._run)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _shard(self, number: int) -> Path:
        return self.folder / f"{number:06}.parquet"

    def has(self, number: int) -> bool:
        return self._shard(number).is_file()

    def write(self, number: int, ids: Sequence[str], vectors: NDArray[np.float32], **counts: int) -> None:
        table = _table(ids, vectors).replace_schema_metadata({name: str(n) for name, n in counts.items()})
        with replacing(self._shard(number)) as file:
            pq.write_table(table, file, **_PARQUET)

    def read_count(self, number: int, name: str) -> int:
        """A number that was written with the shard."""
        return int(pq.read_schema(self._shard(number)).metadata[name.encode()])

    def blocks(self, shards: int) -> Iterator[Block]:
        for number in range(shards):
            yield _block(pq.read_table(self._shard(number)))


_PARQUET: dict[str, Any] = {"use_dictionary": False, "compression": "zstd"}


def _schema(dim: int) -> pa.Schema:
    return pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])


def _table(ids: Sequence[str], vectors: NDArray[np.float32]) -> pa.Table:
    dim = vectors.shape[1]
    columns = [pa.array(ids, pa.string()), pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)]
    return pa.Table.from_arrays(columns, schema=_schema(dim))


def _block(table: pa.Table) -> Block:
    column = table.column("embedding")
    vectors = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table.column("id").to_pylist(), vectors.reshape(len(table), column.type.list_size)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to; what is written appears as `file` at once, or not at all."""
    unfinished = file.with_name(f"{file.name}.part")
    yield unfinished
    with unfinished.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(unfinished, file)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def write_json(file: Path, value: Any) -> None:
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
