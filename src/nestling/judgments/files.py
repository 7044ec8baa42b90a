"""One file's bytes to a table: CSV, TSV, Parquet and JSON lines, packed or not, in whatever encoding."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError

FORMATS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
PACKINGS = (".gz", ".zip")
KNOWN = f"{', '.join(FORMATS)}, each also as .gz or .zip"

# Windows-1252 as browsers read it: the five bytes that it leaves undefined are the control characters of that number.
_CP1252 = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(256))
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
_DEEPEST = 4
_CHUNK = 100_000
_READ = 1 << 20
_MIB = 1 << 20

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class Table:
    """What a file holds: text files as strings only, Parquet with its own types; the text encoding found, and notes.

    Attributes:
        notes: a line for each thing about the reading that a person should know.
    """

    frame: pl.DataFrame
    encoding: str | None = None
    notes: tuple[str, ...] = ()


class _BrokenError(Exception):
    """A row that does not parse: its number after the header (0: the header itself), its line, and why."""

    def __init__(self, row: int, line: int, why: str) -> None:
        super().__init__(why)
        self.row, self.line, self.why = row, line, why


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def listed(names: Iterable[str], most: int = 20) -> str:
    """Return names as a line for an error message: printable, each cut to 40 characters, at most `most` of them."""
    shown = ["".join(c if c.isprintable() else "?" for c in name[:40]) or "''" for name in names]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "none") + more


def read_table(path: Path, source: str, *, max_unpacked: int = MAX_UNPACKED) -> Table:
    """Read one file whatever its format and packing; see `parse`."""
    return parse(path.name, read_bytes(path, source), source, max_unpacked=max_unpacked)


def read_bytes(path: Path, source: str) -> bytes:
    """Return the bytes of a file, which has to be there, and no folder, pipe or device."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            # A pipe that nobody writes to would never end.
            raise InputError(f"{source}: is a pipe or a device, not a file; write its contents to a file first")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"no such file: {source}; check the spelling and the folder") from error
    except IsADirectoryError as error:
        raise InputError(f"{source}: is a folder, not a file; give the file in it") from error
    except PermissionError as error:
        raise InputError(f"{source}: permission denied; make the file readable for this user") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: cannot be read ({error}); check the path") from error


def parse(name: str, data: bytes, source: str, *, max_unpacked: int = MAX_UNPACKED) -> Table:
    """Parse the bytes of a file called `name`, whose extensions say how it is packed and which format it has.

    Args:
        source: the file's name in messages.
        max_unpacked: MiB that it may unpack to.

    Raises:
        InputError: it cannot be unpacked or parsed, holds nothing, or its extension is not known.
    """
    name, data = unpack(name, data, source, max_unpacked=max_unpacked)
    kind = PurePosixPath(name).suffix.lower()
    if kind not in FORMATS:
        what = f"no way to read {kind!r} files" if kind else f"{listed([name])} has no extension to tell its format"
        raise InputError(f"{source}: {what}; known are {KNOWN}")
    if not data.strip():
        raise InputError(f"{source}: is empty; give a file with at least one judged pair")
    if kind == ".parquet":
        return Table(_parquet(data, source, max_unpacked))
    for magic, real in ((b"PK\x03\x04", "a zip archive or a spreadsheet"), (b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet")):
        if data.startswith(magic):
            raise InputError(f"{source}: holds {real}, not {kind} text; give the file its right extension")
    text, encoding = decode(data, source)
    if not text.strip("\ufeff \t\r\n"):
        raise InputError(f"{source}: is empty; give a file with at least one judged pair")
    if kind in (".jsonl", ".ndjson"):
        return Table(_json_lines(text, source), encoding)
    usual = "," if kind == ".csv" else "\t"
    found = _delimiter(text, usual)
    notes = () if found == usual else (f"fields of the {kind} are separated by {DELIMITERS[found]}, and read so",)
    return Table(_delimited(text, found, source), encoding, notes)


def unpack(
    name: str, data: bytes, source: str, depth: int = 0, *, max_unpacked: int = MAX_UNPACKED
) -> tuple[str, bytes]:
    """Return the name and the bytes of what a .gz or .zip file holds, in memory; another file is returned as it is.

    Raises:
        InputError: it is damaged, is locked by a password, unpacks to more, or is a zip without exactly one table.
    """
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix.lower()
    if suffix not in PACKINGS:
        return name, data
    if depth == _DEEPEST:
        raise InputError(f"{source}: archives in archives, more than {_DEEPEST} deep; unpack it first")
    if suffix == ".gz":
        return unpack(stem, gunzip(data, source, max_unpacked), source, depth + 1, max_unpacked=max_unpacked)
    inside = members(data, source, max_unpacked=max_unpacked)
    tables = [member for member in inside if is_table(member)]
    if len(tables) != 1:
        what = f"holds {len(tables)} tables ({listed(tables)})" if tables else f"holds no table ({listed(inside)})"
        raise InputError(f"{source}: {what}; give a zip with exactly one file of {', '.join(FORMATS)}")
    name = PurePosixPath(tables[0]).name
    return unpack(name, inside[tables[0]](), source, depth + 1, max_unpacked=max_unpacked)


def gunzip(data: bytes, source: str, max_unpacked: int = MAX_UNPACKED) -> bytes:
    """Return what gzip packed; refuse what is damaged, or unpacks to more than `max_unpacked` MiB."""
    try:
        return _bounded(gzip.GzipFile(fileobj=io.BytesIO(data)), source, max_unpacked)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{source}: is not gzip, or is cut short ({error}); fetch or pack it again") from error


def _bounded(stream: _Readable, source: str, max_unpacked: int) -> bytes:
    """Read a stream that unpacks while it is read, and stop at the bound, whatever the file says of its size."""
    unpacked = io.BytesIO()
    while chunk := stream.read(_READ):
        if unpacked.tell() + len(chunk) > max_unpacked * _MIB:
            raise _too_large(source, max_unpacked)
        unpacked.write(chunk)
    return unpacked.getvalue()


def _too_large(source: str, max_unpacked: int) -> InputError:
    return InputError(
        f"{source}: unpacks to more than {max_unpacked:,} MiB, and takes several times that in memory; if it is meant "
        "to, raise the bound with --max-unpacked MIB (data.max_unpacked)"
    )


def is_table(name: str) -> bool:
    """Say whether a file's name has an extension that `parse` reads, packed or not."""
    while name.lower().endswith(PACKINGS):
        name = PurePosixPath(name).stem
    return name.lower().endswith(FORMATS)


def members(data: bytes, source: str, *, max_unpacked: int = MAX_UNPACKED) -> dict[str, Callable[[], bytes]]:
    """Return what a zip archive holds: each file's path in it, with a function that unpacks and returns its bytes."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        infos = [info for info in archive.infolist() if not info.is_dir()]
    except _ZIP_ERRORS as error:
        raise InputError(f"{source}: is not a zip archive, or is cut short; fetch or pack it again") from error

    # macOS archives carry a shadow file for each file.
    real = [info for info in infos if not PurePosixPath(info.filename).name.startswith("._")]
    return {info.filename: partial(_member, archive, info, source, max_unpacked) for info in real}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str, max_unpacked: int) -> bytes:
    where = listed([info.filename])
    if info.flag_bits & 1:
        raise InputError(f"{source}: {where} in it has a password; unpack it first")
    try:
        with archive.open(info) as stream:
            return _bounded(stream, source, max_unpacked)
    except InputError:
        raise
    except _ZIP_ERRORS as error:
        why = str(error) or "cut short"
        raise InputError(f"{source}: {where} in it is damaged ({why}); fetch or pack it again") from error


def decode(data: bytes, source: str) -> tuple[str, str]:
    """Return the text of `data` and its encoding: UTF-8, UTF-16 by its mark, else cp1252, which never fails."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding), encoding
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise InputError(f"{source}: starts as UTF-16 and does not go on so; save it as UTF-8") from error
        return codecs.charmap_decode(data.removeprefix(codecs.BOM_UTF8), "strict", _CP1252)[0], "cp1252"


def _delimiter(text: str, usual: str) -> str:
    """Return what separates the fields: the usual character, unless the first rows fit the header with another alone.

    Rows fit that have as many fields as the header, and more than one; of several characters the one with the most.
    """
    counts = {found: _field_counts(text, found) for found in (usual, *DELIMITERS)}
    fitting = {found: each[0] for found, each in counts.items() if each and each[0] > 1 and len(set(each)) == 1}
    return usual if usual in fitting else max(fitting, key=lambda found: fitting[found], default=usual)


def _field_counts(text: str, delimiter: str) -> list[int]:
    """Return how many fields the header and the first rows have, blank lines left out."""
    counts: list[int] = []
    try:
        # One row more than may be cut by the end of what is looked at.
        rows = csv.reader(io.StringIO(text[: _READ // 16], newline=""), delimiter=delimiter)
        counts += (len(fields) for fields in islice(rows, 40) if "".join(fields).strip())
    except csv.Error:
        return counts
    return counts[:-1] if len(text) > _READ // 16 and len(counts) > 1 else counts


def _delimited(text: str, delimiter: str, source: str) -> pl.DataFrame:
    try:
        return _tabbed(text) if delimiter == "\t" else _separated(text, delimiter)[0]
    except _BrokenError as broken:
        where = f"row {broken.row} after the header (line {broken.line})" if broken.row else "the header"
        raise InputError(f"{source}, {where}: {broken.why}") from broken


def _tabbed(text: str) -> pl.DataFrame:
    """Read TSV with the quotes of CSV; where that fails, or where quotes swallow lines, with quotes as plain text."""
    if '"' not in text:
        return _separated(text, "\t", quotes=False)[0]
    first: pl.DataFrame | _BrokenError
    try:
        first, swallowed = _separated(text, "\t")
        # Who quotes the names of columns quotes the rest as well.
        if not swallowed or text.lstrip().startswith('"'):
            return first
    except _BrokenError as broken:
        first = broken
    try:
        return _separated(text, "\t", quotes=False)[0]
    except _BrokenError as plain:
        if isinstance(first, pl.DataFrame):
            return first
        raise max(first, plain, key=lambda broken: broken.row) from None


def _separated(text: str, delimiter: str, *, quotes: bool = True) -> tuple[pl.DataFrame, bool]:
    """Return the table, and whether a field spans lines. Python's reader, as polars' fails on quotes within a field."""
    # Not StringIO, which takes four bytes a character.
    lines = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    header: list[str] = []
    pieces: list[pl.DataFrame] = []
    chunk: list[list[str]] = []
    row, line, spans = 0, 1, False
    limit = csv.field_size_limit(min(len(text) + 1, 2**31 - 1))
    try:
        for fields in reader:
            spans = spans or reader.line_num > line
            start, line = line, reader.line_num + 1
            if not fields or (len(fields) == 1 and not fields[0].strip()):
                continue
            if not header:
                header = _header(fields)
                continue
            row += 1
            if len(fields) != len(header):
                advice = "quote a field that holds the separator" if quotes else "remove tabs within fields"
                raise _BrokenError(row, start, f"{len(fields)} fields where the header has {len(header)}; {advice}")
            chunk.append(fields)
            if len(chunk) == _CHUNK:
                pieces.append(_frame(header, chunk))
                chunk = []
    except csv.Error as error:
        advice = "a quote in it is not closed or not doubled; write a quote within a quoted field twice"
        raise _BrokenError(row + 1 if header else 0, line, advice) from error
    finally:
        csv.field_size_limit(limit)
    return pl.concat([*pieces, _frame(header, chunk)]), spans


def _header(fields: list[str]) -> list[str]:
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(fields)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _BrokenError(0, 1, f"names {listed(twice)} more than once; give each column a name of its own")
    return names


def _frame(names: list[str], rows: list[list[str]]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return pl.DataFrame([pl.Series(n, c, dtype=pl.String) for n, c in zip(names, columns, strict=True)])


def _json_lines(text: str, source: str) -> pl.DataFrame:
    records: list[dict[str, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:  # numbers stay as they are written, so that an id such as 1.10 does
            record = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise InputError(f"{source}, line {number}: is not JSON ({why}); write one object a line") from error
        if not isinstance(record, dict):
            raise InputError(f"{source}, line {number}: is not a JSON object; write one object a line")
        records.append({_well_formed(name): _plain(value) for name, value in record.items()})
    names = dict.fromkeys(name for record in records for name in record)
    return pl.DataFrame({name: pl.Series([record.get(name, "") for record in records]) for name in names})


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return _well_formed(value)
    return "" if value is None else _well_formed(json.dumps(value, ensure_ascii=False))


def _well_formed(text: str) -> str:
    r"""Replace halves of surrogate pairs, which JSON can write as \ud800 and no encoding can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _parquet(data: bytes, source: str, max_unpacked: int) -> pl.DataFrame:
    from pyarrow import lib, parquet

    try:
        about = parquet.read_metadata(io.BytesIO(data))
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        # A column of one value is a few bytes of the file, and sixteen a row in memory.
        unpacked = sum(group.total_byte_size for group in groups) + 16 * about.num_rows * about.num_columns
        if unpacked > max_unpacked * _MIB:
            raise _too_large(source, max_unpacked)
        return pl.read_parquet(io.BytesIO(data))
    except InputError:
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, lib.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{source}: is not Parquet, or is damaged; write or fetch it again") from error
