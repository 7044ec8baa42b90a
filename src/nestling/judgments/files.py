"""One file's bytes to a table: CSV, TSV, Parquet and JSON lines, packed or not, in whatever encoding."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError
from nestling.judgments.columns import Raw, listed

FORMATS = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
PACKINGS = (".gz", ".zip")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
MAGIC = ((b"PK\x03\x04", "a zip archive or a spreadsheet"), (b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet"))

# Windows-1252 as browsers read it: the five bytes that it leaves undefined are the control characters of that number.
_CP1252 = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(256))
_PACKING_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
_TABLE = re.compile(r".*\.(csv|tsv|parquet|jsonl|ndjson)(\.(gz|zip))*", re.IGNORECASE | re.DOTALL)
_DEEPEST = 4
_CHUNK = 100_000
_SNIFFED = 1 << 16
_MIB = 1 << 20


class _RowError(InputError):
    """A row that does not parse; `row` counts after the header, which is 0."""

    def __init__(self, source: str, row: int, line: int, why: str) -> None:
        where = f"row {row} after the header (line {line})" if row else "the header"
        super().__init__(f"{source}, {where}: {why}")
        self.row = row


def read_bytes(path: Path, source: str) -> bytes:
    """Return the bytes of a file; refuse what is missing, a folder, a pipe or a device."""
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


def parse(name: str, data: bytes, source: str, *, max_unpacked: int = MAX_UNPACKED) -> Raw:
    """Parse a file, whose name says how it is packed and which format it has; `source` names it in messages."""
    name, data = unpack(name, data, source, max_unpacked=max_unpacked)
    kind = PurePosixPath(name).suffix.lower()
    if kind not in FORMATS:
        what = f"no way to read {kind!r} files" if kind else f"{listed([name])} has no extension to tell its format"
        raise InputError(f"{source}: {what}; known are {', '.join(FORMATS)}, each also as .gz or .zip")
    if kind == ".parquet" and data.strip():
        return Raw(_parquet(data, source, max_unpacked), source)
    for magic, real in MAGIC:
        if data.startswith(magic):
            raise InputError(f"{source}: holds {real}, not {kind} text; give the file its right extension")
    text, encoding = decode(data, source)
    if not text.strip("\ufeff \t\r\n\v\f"):
        raise InputError(f"{source}: is empty; give a file with at least one judged pair")
    if kind in (".jsonl", ".ndjson"):
        return Raw(_json_lines(text, source), source, encoding)
    usual = "," if kind == ".csv" else "\t"
    delimiter = _delimiter(text, usual)
    note = f"fields of the {kind} are separated by {DELIMITERS[delimiter]}, and read so"
    frame = _tabbed(text, source) if delimiter == "\t" else _delimited(text, delimiter, source)[0]
    return Raw(frame, source, encoding, () if delimiter == usual else (note,))


def unpack(name: str, data: bytes, source: str, *, max_unpacked: int = MAX_UNPACKED) -> tuple[str, bytes]:
    """Return the name and the bytes of the one table in a .gz or .zip file; another file is returned as it is."""
    depth = 0
    while (packing := PurePosixPath(name).suffix.lower()) in PACKINGS:
        if depth == _DEEPEST:
            raise InputError(f"{source}: archives in archives, more than {_DEEPEST} deep; unpack it first")
        depth += 1
        if packing == ".gz":
            opened = partial(gzip.open, io.BytesIO(data))
            data = _read(opened, source, "is not gzip, or is cut short", max_unpacked)
            name = PurePosixPath(name).stem
            continue
        inside = members(data, source, max_unpacked=max_unpacked)
        tables = [member for member in inside if _TABLE.fullmatch(member)]
        if len(tables) != 1:
            what = f"holds {len(tables)} tables ({listed(tables)})" if tables else f"holds no table ({listed(inside)})"
            raise InputError(f"{source}: {what}; give a zip with exactly one file of {', '.join(FORMATS)}")
        name, data = PurePosixPath(tables[0]).name, inside[tables[0]]()
    return name, data


def members(data: bytes, source: str, *, max_unpacked: int = MAX_UNPACKED) -> dict[str, Callable[[], bytes]]:
    """Return what a zip archive holds: each file's path in it, with a function that unpacks and returns its bytes."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        infos = [info for info in archive.infolist() if not info.is_dir()]
    except _PACKING_ERRORS as error:
        raise InputError(f"{source}: is not a zip archive, or is cut short; fetch or pack it again") from error
    # macOS archives carry a shadow file for each file.
    real = [info for info in infos if not PurePosixPath(info.filename).name.startswith("._")]
    return {info.filename: partial(_member, archive, info, source, max_unpacked) for info in real}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str, max_unpacked: int) -> bytes:
    what = f"{listed([info.filename])} in it"
    if info.flag_bits & 1:
        raise InputError(f"{source}: {what} has a password; unpack it first")
    return _read(partial(archive.open, info), source, f"{what} is damaged", max_unpacked)


def _read(open_stream: Callable[[], Any], source: str, fault: str, max_unpacked: int) -> bytes:
    """Read a stream that unpacks while it is read, and stop at the bound, whatever the file says of its size."""
    unpacked = io.BytesIO()
    try:
        with open_stream() as stream:
            while unpacked.tell() <= max_unpacked * _MIB and (chunk := stream.read(_MIB)):
                unpacked.write(chunk)
    except _PACKING_ERRORS as error:
        raise InputError(f"{source}: {fault} ({str(error) or 'cut short'}); fetch or pack it again") from error
    if unpacked.tell() > max_unpacked * _MIB:
        raise _too_large(source, max_unpacked)
    return unpacked.getvalue()


def _too_large(source: str, max_unpacked: int) -> InputError:
    return InputError(
        f"{source}: unpacks to more than {max_unpacked:,} MiB, and takes several times that in memory; if it is meant "
        "to, raise the bound with --max-unpacked MIB (data.max_unpacked)"
    )


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
    """Return what separates the fields: the usual character, or another where the first rows fit the header by it."""
    fitting: dict[str, int] = {}
    for delimiter in DELIMITERS:
        rows = csv.reader(io.StringIO(text[:_SNIFFED], newline=""), delimiter=delimiter)
        counts = [len(fields) for fields in islice(rows, 40) if "".join(fields).strip()]
        if len(text) > _SNIFFED and len(counts) > 1:
            counts.pop()  # it may be cut
        if len(set(counts)) == 1 and counts[0] > 1:
            fitting[delimiter] = counts[0]
    return usual if usual in fitting else max(fitting, key=fitting.__getitem__, default=usual)


def _tabbed(text: str, source: str) -> pl.DataFrame:
    """Read TSV with the quotes of CSV; where that fails, or where quotes swallow lines, with quotes as plain text."""
    if '"' not in text:
        return _delimited(text, "\t", source, quotes=False)[0]
    quoted: pl.DataFrame | _RowError
    try:
        quoted, swallows = _delimited(text, "\t", source)
        # Who quotes the names of columns quotes the rest as well.
        if not swallows or text.lstrip().startswith('"'):
            return quoted
    except _RowError as error:
        quoted = error
    try:
        return _delimited(text, "\t", source, quotes=False)[0]
    except _RowError as plain:
        if isinstance(quoted, pl.DataFrame):
            return quoted
        raise max(quoted, plain, key=lambda error: error.row) from None


def _delimited(text: str, delimiter: str, source: str, *, quotes: bool = True) -> tuple[pl.DataFrame, bool]:
    """Return the table, and whether a field spans lines. Python's reader, as polars' fails on quotes within a field."""
    # Not StringIO, which takes four bytes a character.
    lines = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    header: list[str] = []
    pieces: list[pl.DataFrame] = []
    rows: list[list[str]] = []
    row, line, spans = 0, 1, False
    limit = csv.field_size_limit(min(len(text) + 1, 2**31 - 1))
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            spans = spans or line > start + 1
            if not fields or (len(fields) == 1 and not fields[0].strip()):
                continue
            if not header:
                header = _header(fields, source)
                continue
            row += 1
            if len(fields) != len(header):
                advice = "quote a field that holds the separator" if quotes else "remove tabs within fields"
                what = f"{len(fields)} fields where the header has {len(header)}; {advice}"
                raise _RowError(source, row, start, what)
            rows.append(fields)
            if len(rows) == _CHUNK:
                pieces.append(_frame(header, rows))
                rows = []
    except csv.Error as error:
        advice = "a quote in it is not closed or not doubled; write a quote within a quoted field twice"
        raise _RowError(source, row + 1 if header else 0, line, advice) from error
    finally:
        csv.field_size_limit(limit)
    return pl.concat([*pieces, _frame(header, rows)]), spans


def _header(fields: list[str], source: str) -> list[str]:
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(fields)]
    if twice := {name for name in names if names.count(name) > 1}:
        what = f"names {listed(sorted(twice))} more than once; give each column a name of its own"
        raise _RowError(source, 0, 1, what)
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
        records.append({_plain(name): _plain(value) for name, value in record.items()})
    names = dict.fromkeys(name for record in records for name in record)
    return pl.DataFrame({name: pl.Series([record.get(name, "") for record in records]) for name in names})


def _plain(value: Any) -> str:
    r"""Return a value as text, halves of surrogate pairs, which JSON can write as \ud800, replaced."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _parquet(data: bytes, source: str, max_unpacked: int) -> pl.DataFrame:
    from pyarrow import lib, parquet

    try:
        about = parquet.read_metadata(io.BytesIO(data))
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        # A column of one value is a few bytes of the file, and sixteen a row in memory.
        unpacked = sum(group.total_byte_size for group in groups) + 16 * about.num_rows * about.num_columns
        if unpacked <= max_unpacked * _MIB:
            return pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, lib.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{source}: is not Parquet, or is damaged; write or fetch it again") from error
    raise _too_large(source, max_unpacked)
