"""A catalogue cut into partitions that are read one by one: a folder of Parquet files, or any other source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars import selectors

from nestling import atomic
from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError, first_line, unread
from nestling.judgments.catalogue import OWN, load_catalogue
from nestling.judgments.columns import Raw, as_names
from nestling.judgments.identity import VISIBLE
from nestling.judgments.table import with_ids


@dataclass(frozen=True)
class Slice:
    """Rows of one Parquet file, `start` to `start + rows`; `file` is the name of the one for their vectors."""

    file: str
    path: str
    start: int
    rows: int


@dataclass(frozen=True)
class Source:
    """The source of partitions: columns of the text, joined by newlines, and of the id, None to derive it from texts.

    It holds no texts, so it travels to other processes.
    """

    name: str
    document: tuple[str, ...]
    document_id: str | None
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()

    def read(self, part: Slice) -> tuple[list[str], list[str]]:
        """Return ids and texts of a partition; rows without a text are left out."""
        names = dict.fromkeys([*self.document, *as_names(self.document_id)])
        rows = pl.scan_parquet(part.path, glob=False).slice(part.start, part.rows)
        # By name, since polars takes ^...$ for a pattern and * for all columns.
        raw = Raw(_collected(rows.select(selectors.by_name(*names)), part.path), part.path)
        texts = raw.joined(self.document)
        no_ids = pl.repeat("", len(texts), eager=True)
        ids = raw.text(self.document_id).str.strip_chars() if self.document_id else no_ids
        frame = pl.DataFrame({"document_id": ids, "document": texts}).filter(pl.col("document").str.contains(VISIBLE))
        return with_ids(frame)["document_id"].to_list(), frame["document"].to_list()


def open_source(
    source: str | Path,
    work: Path,
    partition: int,
    document: Sequence[str] = (),
    document_id: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
) -> Source:
    """Cut a catalogue into partitions of so many rows at most.

    A folder of Parquet files is not loaded: each file is cut by itself, in the order of their names, each row is a
    document, and an id that comes twice stays twice. Any other source is loaded and written to `work` as Parquet,
    which has to be kept while partitions are read.
    """
    notes: list[str] = []
    folder = Path(source).expanduser()
    found = (path.relative_to(folder) for path in folder.rglob("*.parquet") if path.is_file())
    # Writers of Parquet keep what is not data under names that start so.
    paths = sorted(folder / path for path in found if not any(part[0] in "._" for part in path.parts))
    if not paths:
        catalogue = load_catalogue(
            source, document=document or None, document_id=document_id, fields=(), max_unpacked=max_unpacked
        )
        notes = list(catalogue.notes)
        paths, document, document_id = [work / "catalogue.parquet"], ("document",), "document_id"
        with atomic.new_file(paths[0]) as temporary:
            catalogue.frame.select(OWN).write_parquet(temporary, row_group_size=partition)
    columns = {"document": tuple(document), "document_id": as_names(document_id)}
    parts: list[tuple[str, int, int]] = []
    for path in paths:
        scan = pl.scan_parquet(path, glob=False)
        raw = Raw(_collected(scan.head(0), str(path)), str(path))
        # The first file settles the columns; the others need only have them.
        columns = {role: names for role, names in raw.choose(columns, "document_id").items() if names}
        rows = _collected(scan.select(pl.len()), str(path)).item()
        parts += [(str(path.resolve()), start, min(partition, rows - start)) for start in range(0, rows, partition)]
    if not parts:
        raise InputError(f"{source}: its Parquet files hold no row; give a catalogue with at least one document")
    slices = tuple(Slice(f"part-{number:05d}.parquet", *part) for number, part in enumerate(parts))
    key = next(iter(columns.get("document_id", ())), None)
    return Source(str(source), columns["document"], key, slices, tuple(notes))


def _collected(scan: pl.LazyFrame, path: str) -> pl.DataFrame:
    try:
        return scan.collect()
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        what = f"{path}: no Parquet file that can be read ({first_line(error)}); mend or remove it"
        raise unread(Path(path), error, what) from None
