"""The form of an encoded catalogue: a folder of Parquet files with vectors, and encoded.json, which describes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nestling import atomic
from nestling.config.fingerprint import fingerprint
from nestling.config.manifests import read_json, shaped
from nestling.errors import InputError

MANIFEST = "encoded.json"
FORMAT = 1
KEY = "nestling_encoded"
ADVICE = "encode it anew"


@dataclass(frozen=True)
class Recipe:
    """All that a vector depends on beside the texts: the model's fingerprint, what runs it, and the settings."""

    fingerprint: str
    runtime: str
    device: str
    dim: int
    precision: str
    partition: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Part:
    """A file of the folder; its fingerprint changes with the recipe, and with ids and texts, order included."""

    file: str
    rows: int
    fingerprint: str

    @classmethod
    def of(cls, file: str, recipe: Recipe, ids: Sequence[str], hashes: Sequence[str]) -> Part:
        """Describe the file of these ids and texts, given as `text_hashes`."""
        content = json.dumps([FORMAT, asdict(recipe), list(ids), list(hashes)])
        return cls(file, len(ids), fingerprint(content.encode(), size=16))


@dataclass(frozen=True)
class EncodedFolder:
    """The content of encoded.json; it is not complete while a call works on the folder, or was stopped."""

    model: str
    source: str
    recipe: Recipe
    complete: bool
    partitions: tuple[Part, ...]
    versions: dict[str, str]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.partitions)

    def write(self, folder: Path) -> None:
        """Write encoded.json, whole or not at all."""
        atomic.write_json(folder / MANIFEST, {KEY: FORMAT, "documents": self.rows, **asdict(self)})


def read_encoded(folder: Path) -> EncodedFolder:
    """Read the encoded.json of a folder; InputError where there is none, or it is damaged or of another form."""
    path = folder / MANIFEST
    content = read_json(path, Any, advice=ADVICE)
    form = content.get(KEY) if isinstance(content, dict) else None
    if form != FORMAT:
        raise InputError(f"{path}: form {form!r} is not {FORMAT}, the one that this version reads; {ADVICE}")
    folder_content: EncodedFolder = shaped(content, EncodedFolder, str(path), ADVICE)
    return folder_content


def text_hashes(texts: Sequence[str]) -> list[str]:
    """Return 32 hex digits for each text: BLAKE2b of 16 bytes over its UTF-8."""
    return [fingerprint(text.encode("utf-8", "surrogatepass"), size=16) for text in texts]


def write_part(
    path: Path, ids: Sequence[str], hashes: Sequence[str], vectors: NDArray[np.floating[Any]], fingerprint: str
) -> None:
    """Write a partition's file, whole or not at all: document_id, text_hash, embedding (a list of fixed size).

    `vectors` are (len(ids), dim) float16 or float32; `fingerprint` is that of its `Part`, kept in the file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    columns = {
        "document_id": pa.array(ids, pa.string()),
        "text_hash": pa.array(hashes, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({KEY: fingerprint})
    with atomic.new_file(path) as temporary:
        # Vectors hardly shrink, and a dictionary of them is larger than they are.
        parquet.write_table(table, temporary, compression="none", use_dictionary=False, write_statistics=False)


def part_fingerprint(path: Path) -> str | None:
    """Return the fingerprint that a file keeps; None where there is no such file or it cannot be read."""
    try:
        return pl.read_parquet_metadata(path).get(KEY)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
