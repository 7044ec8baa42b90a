"""A catalogue cut into partitions that are read one by one: a folder of Parquet files, or any other source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars import selectors

from nestling import atomic
from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError, unread
from nestling.judgments.catalogue import OWN, load_catalogue
from nestling.judgments.columns import Raw, as_names
from nestling.judgments.identity import VISIBLE
from nestling.judgments.table import with_ids


@dataclass(frozen=True)
class Slice:
    """Rows of one Parquet file: `start` to `start + rows`."""

    number: int
    path: str
    start: int
    rows: int


@dataclass(frozen=True)
class Source:
    """Where partitions are read. It holds no texts, so it travels to other processes.

    Attributes:
        document: columns of the text, joined by newlines.
        document_id: column of the id; None derives ids from the texts.
        notes: as `Catalogue.notes`; none of a folder, where nothing is counted.
    """

    name: str
    document: tuple[str, ...]
    document_id: str | None
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()

    def read(self, part: Slice) -> tuple[list[str], list[str]]:
        """Return ids and texts of a partition; rows without a text are left out.

        Raises:
            InputError: the file cannot be read.
        """
        columns = [*self.document, *([self.document_id] if self.document_id else [])]
        try:
            scan = pl.scan_parquet(part.path, glob=False).slice(part.start, part.rows)
            # By name, since polars takes ^...$ for a pattern and * for all columns.
            found = scan.select(selectors.by_name(*dict.fromkeys(columns))).collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            what = f"{part.path}: cannot be read ({str(error).splitlines()[0]}); mend the file"
            raise unread(Path(part.path), error, what) from None
        raw = Raw(found, part.path)
        texts = raw.joined(self.document).alias("document")
        empty = pl.Series("document_id", [""] * len(texts), dtype=pl.String)
        ids = raw.text(self.document_id).str.strip_chars() if self.document_id else empty
        kept = pl.DataFrame({"document_id": ids, "document": texts}).filter(pl.col("document").str.contains(VISIBLE))
        return with_ids(kept)["document_id"].to_list(), kept["document"].to_list()


def open_source(
    source: str | Path,
    work: Path,
    *,
    partition: int,
    document: Sequence[str] = (),
    document_id: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
) -> Source:
    """Cut a catalogue into partitions.

    A folder of Parquet files is not loaded: each file is cut by itself, in the order of their names, and each row is a
    document. Any other source is read by `load_catalogue` and written to `work`, so that both are read alike.

    Args:
        work: a folder for what has to be kept while partitions are read.
        partition: most rows of one.
        document: columns of the text; by default one with a usual name.
        document_id: column of the id; by default one with a usual name, else ids are derived from the texts.
        max_unpacked: MiB that a packed file may unpack to.

    Raises:
        InputError: a source that cannot be read, or lacks a column.
    """
    if paths := _parquet_files(Path(source).expanduser()):
        return _of_files(paths, str(source), partition, tuple(document), document_id)
    found = load_catalogue(
        source, document=list(document) or None, document_id=document_id, fields=(), max_unpacked=max_unpacked
    )
    path = (work / "catalogue.parquet").resolve()
    with atomic.new_file(path) as temporary:
        found.frame.select(OWN).write_parquet(temporary, row_group_size=partition)
    slices = _cut([(path, len(found))], partition)
    return Source(found.source, ("document",), "document_id", slices, found.notes)


def _of_files(paths: Sequence[Path], name: str, partition: int, document: tuple[str, ...], key: str | None) -> Source:
    import pyarrow as pa
    from pyarrow import parquet

    sizes: list[tuple[Path, int]] = []
    columns = {"document": document, "document_id": as_names(key)}
    for path in paths:
        try:
            about = parquet.read_metadata(path)
            there = list(about.schema.to_arrow_schema().names)
        except (OSError, pa.ArrowException) as error:
            what = f"{path}: no Parquet file ({str(error).splitlines()[0]}); mend or remove it"
            raise unread(path, error, what) from None
        # The first file settles the columns; the others need only have them.
        raw = Raw(pl.DataFrame(schema=dict.fromkeys(there, pl.String)), str(path))
        columns = {role: names for role, names in raw.choose(columns, "document_id").items() if names}
        sizes.append((path.resolve(), int(about.num_rows)))
    if not any(rows for _, rows in sizes):
        raise InputError(f"{name}: its Parquet files hold no row; give a catalogue with at least one document")
    document_id = next(iter(columns.get("document_id", ())), None)
    return Source(name, columns["document"], document_id, _cut(sizes, partition))


def _parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder and its folders; none of anything else."""
    found = (path for path in folder.rglob("*.parquet") if path.is_file())
    # Writers of Parquet keep what is not data under names that start so.
    return sorted(path for path in found if not any(p[0] in "._" for p in path.relative_to(folder).parts))


def _cut(sizes: Sequence[tuple[Path, int]], partition: int) -> tuple[Slice, ...]:
    pieces = [
        (path, start, min(partition, rows - start)) for path, rows in sizes for start in range(0, rows, partition)
    ]
    return tuple(Slice(number, str(path), start, rows) for number, (path, start, rows) in enumerate(pieces))
