"""An index's documents on disk: ids, texts and fields by row, read one at a time; and fields as filters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nestling import atomic
from nestling.config.manifests import read_json, shaped
from nestling.errors import InputError
from nestling.judgments.identity import normalise
from nestling.serving.index.files import AGAIN

ROWS, OFFSETS, FILTERS = "documents.jsonl", "documents.offsets.npy", "filters.json"
COLUMN = "filter-{}.npy"
MOST_VALUES = 10_000
"""A field with more distinct values is shown but not filtered by."""

Filters = Mapping[str, str | Sequence[str]]
"""Field -> a value or several of which one is enough; all fields must fit. Upper and lower case are the same."""


class DamagedError(InputError):
    """A document's row is damaged."""


@dataclass
class Document:
    id: str
    text: str
    fields: dict[str, str]


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents by row, read from the file when needed; and fields to filter by, their values in order of the codes."""

    folder: Path
    filters: dict[str, list[str]]
    _columns: dict[str, NDArray[np.int32]]
    _rows: NDArray[np.uint8]
    _offsets: NDArray[np.uint64]

    @classmethod
    def load(cls, folder: Path) -> Documents:
        """Open what `write` wrote; OSError, ValueError or InputError where files are missing or damaged."""
        offsets = np.load(folder / OFFSETS, mmap_mode="r")
        size = (folder / ROWS).stat().st_size
        if offsets.ndim != 1 or offsets.dtype != np.uint64 or not len(offsets) or int(offsets[-1]) != size:
            raise ValueError(f"{OFFSETS} does not fit the {size} bytes of {ROWS}")
        rows = np.memmap(folder / ROWS, dtype=np.uint8, mode="r")
        filters = read_json(folder / FILTERS, dict[str, list[str]], advice=AGAIN)
        # Opened now, since an index that is brought up to date removes the files of those who read it.
        columns = {name: np.load(folder / COLUMN.format(n), mmap_mode="r") for n, name in enumerate(filters)}
        if any(column.shape != (len(offsets) - 1,) for column in columns.values()):
            raise ValueError("a field's values are of another number of documents")
        return cls(folder, filters, columns, rows, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Document:
        """Return a document, or raise DamagedError."""
        line = self._rows[int(self._offsets[row]) : int(self._offsets[row + 1])].tobytes()
        where = f"{self.folder / ROWS}, line {row + 1}"
        try:
            document: Document = shaped(json.loads(line), Document, where, AGAIN)
        except (ValueError, RecursionError):
            raise DamagedError(f"{where} is damaged; {AGAIN}") from None
        return document

    def sample(self, n: int) -> list[str]:
        """Return the texts of at most `n` documents, evenly spaced."""
        return [self[row].text for row in range(0, len(self), max(1, -(-len(self) // n)))]

    def allowed(self, filters: Filters | None) -> NDArray[np.bool_] | None:
        """Return which documents fit, (n,) bool, None without filters; raise InputError for an unknown field."""
        if not filters:
            return None
        check_filters(filters)
        fits = np.ones(len(self), dtype=bool)
        for name, values in filters.items():
            if name not in self.filters:
                known = ", ".join(self.filters) or "none"
                raise InputError(f"no field {name[:40]!r} to filter by; this index has {known}")
            keys = {normalise(value) for value in ([values] if isinstance(values, str) else values)}
            codes = [code for code, value in enumerate(self.filters[name]) if normalise(value) in keys]
            fits &= np.isin(self._columns[name], codes)
        return fits


def check_filters(filters: Any) -> None:
    """Raise InputError where a value of a filter is a number, true or false."""
    for name, values in filters.items() if isinstance(filters, Mapping) else ():
        for value in values if isinstance(values, Sequence) else [values]:
            if isinstance(value, bool | int | float):
                advice = f'give "{json.dumps(value)[:40]}", or however the catalogue writes it'
                raise InputError(f"the field {str(name)[:40]} is compared as text; {advice}")


def write(folder: Path, ids: Sequence[str], texts: Sequence[str], fields: Mapping[str, Sequence[str]]) -> None:
    """Write documents into an existing folder; `fields` has a value for each document by name."""
    offsets = np.zeros(len(ids) + 1, dtype=np.uint64)
    with (folder / ROWS).open("wb") as file:
        for row, (key, text) in enumerate(zip(ids, texts, strict=True)):
            value = {"id": key, "text": text, "fields": {name: values[row] for name, values in fields.items()}}
            # Lone surrogates, which JSON can hold and UTF-8 cannot, stay escapes.
            offsets[row + 1] = offsets[row] + np.uint64(file.write(json.dumps(value).encode() + b"\n"))
    np.save(folder / OFFSETS, offsets)
    distinct = {name: list(dict.fromkeys(values)) for name, values in fields.items()}
    filters = {name: values for name, values in distinct.items() if len(values) <= MOST_VALUES}
    for n, (name, values) in enumerate(filters.items()):
        codes = {value: code for code, value in enumerate(values)}
        np.save(folder / COLUMN.format(n), np.array([codes[value] for value in fields[name]], dtype=np.int32))
    atomic.write_json(folder / FILTERS, filters)
