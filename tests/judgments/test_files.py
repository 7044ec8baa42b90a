"""A file's bytes to a table: formats, packings, encodings and everything that can be wrong with them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.judgments import files

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(
    st.sampled_from("a,\" \t\r\n'3|\\é\0\u2028"), max_size=8
)
TABLES = st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=6)


def rows(data: bytes | str, name: str = "a.csv") -> list[tuple[str, ...]]:
    return files.parse(name, data.encode() if isinstance(data, str) else data, name).frame.rows()


def zipped(contents: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def error(data: bytes | str, name: str = "a.csv") -> str:
    with pytest.raises(InputError) as caught:
        rows(data, name)
    text = str(caught.value)
    assert text.startswith(name)
    assert "\n" not in text
    return text


# --- CSV and TSV


def test_csv_quotes_hold_commas_quotes_and_line_breaks() -> None:
    assert rows('a,b\n"1, 2","3"" pipe\r\nof lead"\r\n') == [("1, 2", '3" pipe\r\nof lead')]


def test_csv_keeps_zeros_and_spaces_as_written() -> None:
    assert rows("id,score\n007, 2.50 \n") == [("007", " 2.50 ")]


def test_a_bare_inch_mark_in_an_unquoted_csv_field_is_read_as_is() -> None:
    assert rows('d,s\n3/4" pipe,2\n5" x 6",3\n') == [('3/4" pipe', "2"), ('5" x 6"', "3")]


def test_header_names_lose_the_spaces_around_them() -> None:
    assert files.parse("a.csv", b" query , score \nx,1\n", "a.csv").frame.columns == ["query", "score"]


def test_line_ends_of_every_system_and_blank_lines_are_read_alike() -> None:
    assert (
        rows("\na,b\r\n1,2\r\n\r\n3,4")
        == rows("a,b\r1,2\r3,4\r")
        == rows("a,b\n1,2\n   \n3,4\n")
        == [("1", "2"), ("3", "4")]
    )


def test_a_field_longer_than_the_csv_module_allows_is_read_and_the_limit_restored() -> None:
    limit = csv.field_size_limit()
    assert len(rows("a,b\n" + "x" * 200_000 + ",1\n")[0][0]) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("n", [199, 200, 201])
def test_more_rows_than_a_chunk_come_out_in_order(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(files, "_CHUNK", 100)
    found = files.parse("a.csv", ("a,b\n" + "".join(f"{i},x\n" for i in range(n))).encode(), "a").frame
    assert found["a"].cast(pl.Int64).to_list() == list(range(n))


@pytest.mark.parametrize("field", ['3" pipe', '"3" pipe', '"', '3/4"', '"big', "'tis"])
def test_tsv_with_stray_inch_marks_is_read_as_is(field: str) -> None:
    assert rows(f"q\td\ts\nx\t{field}\t2\ny\tz\t3\n", "a.tsv") == [("x", field, "2"), ("y", "z", "3")]


def test_tsv_with_proper_quotes_is_unquoted() -> None:
    assert rows('q\td\nx\t"a ""b""\tc\nd"\n', "a.tsv") == [("x", 'a "b"\tc\nd')]


def test_tsv_quotes_that_would_swallow_lines_are_plain_text() -> None:
    assert rows('q\td\ts\nx\t"pipe\t2\ny\t3"\t3\n', "a.tsv") == [("x", '"pipe', "2"), ("y", '3"', "3")]


def test_a_row_with_too_many_fields_is_named() -> None:
    assert "row 2 after the header (line 4): 3 fields where the header has 2" in error('a,b\n"1\n",2\n3,4,5\n')


def test_a_row_with_too_few_fields_is_named() -> None:
    assert "row 1 after the header (line 2): 1 fields where the header has 2" in error("a,b\n1\n")


def test_a_tsv_row_with_too_many_fields_is_named_behind_a_stray_quote() -> None:
    assert "row 2 after the header (line 3): 3 fields" in error('a\tb\n"x\t1\n2\t3\t4\n', "a.tsv")


@pytest.mark.parametrize("row", ['"open,1\n3,4', '"open" end,1', '"5" pipe",1'])
def test_a_quote_not_closed_or_not_doubled_names_its_row(row: str) -> None:
    text = error(f"a,b\n1,2\n{row}\n")
    assert "row 2 after the header (line 3): a quote in it is not closed or not doubled" in text


def test_a_column_named_twice_is_an_error() -> None:
    assert "the header: names b more than once; give each column a name" in error("a,b,b\n1,2,3\n")


# --- JSON lines


def test_json_lines_keep_numbers_as_written_and_fill_what_is_missing() -> None:
    data = '{"id": 1.10, "q": "x"}\r\n\n{"q": null, "tags": ["a", "é"], "ok": true}\n'
    frame = files.parse("a.jsonl", data.encode(), "a").frame
    assert frame.columns == ["id", "q", "tags", "ok"]
    assert frame.rows() == [("1.10", "x", "", ""), ("", "", '["a", "é"]', "true")]


def test_half_a_surrogate_pair_in_json_does_not_crash() -> None:
    assert rows('{"q": "a\\ud800b \\ud83d\\ude00"}', "a.ndjson") == [("a?b 😀",)]


@pytest.mark.parametrize("bad", ['{"q": ', "{'q': 1}", "[" * 100_000, "nonsense"])
def test_a_line_that_is_not_json_is_named(bad: str) -> None:
    assert "line 3: is not JSON" in error('{"q": 1}\n\n' + bad, "a.jsonl")


def test_a_json_line_that_is_no_object_is_named() -> None:
    assert "line 1: is not a JSON object; write one object a line" in error('[{"q": 1}]', "a.jsonl")


# --- encodings


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("é,b\n1,2\n".encode(), "utf-8"),
        ("é,b\n1,2\n".encode("utf-8-sig"), "utf-8"),
        ("é,b\n1,2\n".encode("utf-16"), "utf-16"),
        ("\ufeffé,b\n1,2\n".encode("utf-16-be"), "utf-16"),
        ("é,b\n1,2\n".encode("cp1252"), "cp1252"),
    ],
)
def test_the_encoding_is_found_and_the_mark_is_not_part_of_the_first_name(data: bytes, encoding: str) -> None:
    table = files.parse("a.csv", data, "a.csv")
    assert (table.frame.columns, table.encoding) == (["é", "b"], encoding)


def test_every_byte_is_a_character_of_cp1252_as_browsers_read_it() -> None:
    text, encoding = files.decode(bytes(range(256)), "a")
    assert encoding == "cp1252"
    assert [text[b] for b in (0x80, 0x81, 0x8D, 0x8F, 0x90, 0x9D, 0xE9)] == list("€\x81\x8d\x8f\x90\x9dé")


def test_broken_utf_16_is_an_error() -> None:
    assert "starts as UTF-16 and does not go on so; save it as UTF-8" in error(b"\xff\xfea")


def test_null_bytes_are_characters_like_others() -> None:
    assert rows(b"a,b\n1\x002,3\n") == [("1\x002", "3")]


# --- packings


@pytest.mark.parametrize("name", ["a.csv.zip", "A.ZIP", "a.zip"])
def test_a_zip_of_one_table_is_read_whatever_else_lies_in_it(name: str) -> None:
    data = zipped({"in/p.csv": "a,b\n1,2\n", "README.txt": "hello", "__MACOSX/in/._p.csv": "junk"})
    assert rows(data, name) == [("1", "2")]


def test_archives_in_archives_are_read() -> None:
    assert rows(gzip.compress(zipped({"p.csv.gz": gzip.compress(b"a,b\n1,2\n")})), "x.zip.gz") == [("1", "2")]


def test_archives_nested_without_end_are_an_error() -> None:
    data = b"a\n1\n"
    for _ in range(6):
        data = gzip.compress(data)
    assert "archives in archives" in error(data, "a.csv" + ".gz" * 6)


def test_a_zip_of_several_tables_lists_them() -> None:
    assert "holds 2 tables (p.csv, q.tsv); give a zip with exactly one" in error(
        zipped({"p.csv": "a", "q.tsv": "b"}), "a.zip"
    )


def test_a_zip_without_tables_says_what_it_holds() -> None:
    assert "holds no table (x.txt)" in error(zipped({"x.txt": "hello"}), "a.zip")


def test_a_zip_with_a_password_is_an_error() -> None:
    data = bytearray(zipped({"p.csv": "a,b\n1,2\n"}))
    data[6] |= 1  # the flag in the local header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "p.csv in it has a password; unpack it first" in error(bytes(data), "a.zip")


def test_a_zip_member_with_a_flipped_byte_is_an_error() -> None:
    data = zipped({"p.csv": "a,b\n1,2\n"}).replace(b"1,2", b"1,3", 1)
    assert "p.csv in it is damaged" in error(data, "a.zip")


def test_what_is_not_a_zip_is_an_error() -> None:
    assert "is not a zip archive, or is cut short" in error(b"hello", "a.csv.zip")


@pytest.mark.parametrize("data", [b"hello", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], b""])
def test_what_is_not_gzip_or_is_cut_short_is_an_error(data: bytes) -> None:
    if data:
        assert "is not gzip, or is cut short" in error(data, "a.csv.gz")
    else:
        assert "is empty" in error(data, "a.csv.gz")


BOMB = b"a,b\n" + b"1,2\n" * 600_000


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv.gz", gzip.compress(BOMB)),
        ("a.zip", zipped({"p.csv": BOMB})),
        ("a.csv.gz.gz", gzip.compress(gzip.compress(BOMB))),
        ("a.zip.gz", gzip.compress(zipped({"p.csv.gz": gzip.compress(BOMB)}))),
    ],
    ids=["gz", "zip", "gz in gz", "gz in zip in gz"],
)
def test_what_unpacks_to_more_than_the_bound_is_refused_with_the_option_that_raises_it(name: str, data: bytes) -> None:
    with pytest.raises(InputError, match=r"unpacks to more than 2 MiB.*--max-unpacked MIB \(data\.max_unpacked\)"):
        files.parse(name, data, name, max_unpacked=2)
    assert files.unpack(name, data, name, max_unpacked=3)[1] == BOMB


def test_a_zip_that_lies_about_its_sizes_is_stopped_all_the_same() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("p.csv", BOMB)
    data = bytearray(buffer.getvalue())
    size = len(BOMB).to_bytes(4, "little")
    assert data.count(size) == 2
    lying = bytes(data).replace(size, (9 << 20).to_bytes(4, "little"))
    with pytest.raises(InputError, match="unpacks to more than 2 MiB"):
        files.parse("a.zip", lying, "a.zip", max_unpacked=2)


def test_a_parquet_file_is_bounded_by_what_its_pages_and_rows_take() -> None:
    out = io.BytesIO()
    pl.DataFrame({"a": ["x" * 30] * 200_000, "b": ["y"] * 200_000}).write_parquet(out)
    assert len(out.getvalue()) < 1 << 20
    with pytest.raises(InputError, match="unpacks to more than 6 MiB"):
        files.parse("a.parquet", out.getvalue(), "a.parquet", max_unpacked=6)
    assert files.parse("a.parquet", out.getvalue(), "a.parquet", max_unpacked=7).frame.height == 200_000


# --- delimiters


@pytest.mark.parametrize(
    ("text", "name", "what"),
    [
        ("q;d;s\na;b, c;1\n", "a.csv", "semicolons"),
        ("q\td\ts\na\tb, c\t1\n", "a.csv", "tabs"),
        ("q|d|s\na|b, c|1\n", "a.csv", "vertical bars"),
        ('q,d,s\na,"b, c",1\n', "a.tsv", "commas"),
        ('"q";"d";"s"\r\n"a";"b, c";1\r\n', "a.csv", "semicolons"),
    ],
)
def test_another_delimiter_than_the_extension_says_is_found_and_told(text: str, name: str, what: str) -> None:
    table = files.parse(name, text.encode(), name)
    assert table.frame.rows() == [("a", "b, c", "1")]
    assert table.notes == (f"fields of the {name[1:]} are separated by {what}, and read so",)


def test_commas_in_some_rows_do_not_make_them_the_delimiter() -> None:
    assert rows("q;d, or title;s\na;b;1\nc;d, e;2\n") == [("a", "b", "1"), ("c", "d, e", "2")]


@pytest.mark.parametrize(
    "text",
    ["q,d\na;b;c,1;2;3\n", "q,d;e;f\na,b\n", "document\na; b\nc | d\n", "q,d;x;y;z\n", "q,d\n" + "a,b\n" * 50],
)
def test_commas_stay_the_delimiter_where_they_fit(text: str) -> None:
    table = files.parse("a.csv", text.encode(), "a.csv")
    assert table.frame.width == text.split("\n")[0].count(",") + 1
    assert table.notes == ()


def test_where_no_delimiter_fits_the_row_that_does_not_is_named() -> None:
    assert "row 2 after the header (line 3): 3 fields where the header has 2" in error("a,b\n1,2\n3,4,5\n")


# --- what is no table


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("data", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(name: str, data: bytes) -> None:
    assert any(what in error(data, name) for what in ("is empty", "is not Parquet"))


def test_a_header_without_rows_is_an_empty_table() -> None:
    assert files.parse("a.csv", b"a,b\n", "a").frame.shape == (0, 2)


def test_an_unknown_extension_lists_the_known_ones() -> None:
    assert "no way to read '.xlsx' files; known are .csv, .tsv, .parquet, .jsonl, .ndjson" in error("x", "a.xlsx")
    assert "has no extension to tell its format; known are" in error("x", "data")


def test_a_spreadsheet_named_csv_is_found_out() -> None:
    assert "holds a zip archive or a spreadsheet, not .csv text" in error(zipped({"x.xml": "1"}))


@pytest.mark.parametrize("data", [b"hello", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_what_is_not_parquet_is_an_error(data: bytes) -> None:
    assert "is not Parquet, or is damaged" in error(data, "a.parquet")


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: a\.csv; check"):
        files.read_bytes(tmp_path / "a.csv", "a.csv")
    with pytest.raises(InputError, match="is a folder, not a file"):
        files.read_bytes(tmp_path, "here")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"is a pipe or a device, not a file; write its contents to a file"):
        files.read_bytes(tmp_path / name, name)


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.csv: permission denied; make the file readable"):
        files.read_bytes(tmp_path / "a.csv", "a.csv")


# --- any table survives


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from([",", "\t"]))
def test_any_table_survives_csv_and_tsv(table: list[tuple[str, str, str]], delimiter: str) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *table])
    assert rows(out.getvalue(), "a.csv" if delimiter == "," else "a.tsv") == table


def test_quoted_names_say_that_quotes_of_a_tsv_are_quotes_though_both_readings_are_whole() -> None:
    assert rows('"a"\t"b"\t"c"\n"\t"\t"\n\t"\t""\n', "a.tsv") == [("\t", "\n\t", "")]


@settings(max_examples=40, deadline=None)
@given(TABLES.filter(len))
def test_any_table_survives_json_lines(table: list[tuple[str, str, str]]) -> None:
    for plain in (True, False):
        lines = "\n".join(json.dumps(dict(zip("abc", row, strict=True)), ensure_ascii=plain) for row in table)
        assert rows(lines, "a.jsonl") == table


@settings(max_examples=25, deadline=None)
@given(TABLES)
def test_any_table_survives_parquet(table: list[tuple[str, str, str]]) -> None:
    out = io.BytesIO()
    pl.DataFrame(table, schema=dict.fromkeys("abc", pl.String), orient="row").write_parquet(out)
    assert rows(out.getvalue(), "a.parquet") == table


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=60) | TEXTS.map(str.encode), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.zip", "a.csv.gz"])
)
def test_no_bytes_whatever_raise_another_error_than_ours(data: bytes, name: str) -> None:
    with contextlib.suppress(InputError):
        files.parse(name, data, "a")
