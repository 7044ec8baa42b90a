"""A catalogue is read from whatever a shop has: each document once, with the fields that say one thing of it."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.judgments.catalogue import load_catalogue


def test_a_judged_file_gives_each_document_once_and_no_query(tmp_path: Path):
    path = tmp_path / "judged.csv"
    path.write_text(
        "search_term,product_title,product_uid,relevance,brand\n"
        "saw,Hand saw,7,3,Acme\nhammer,Claw hammer,5,3,Bolt\nwood saw,Hand saw,7,1,Acme\n"
    )
    found = load_catalogue(path)
    assert found.frame.to_dicts() == [
        {"document_id": "7", "document": "Hand saw", "brand": "Acme"},
        {"document_id": "5", "document": "Claw hammer", "brand": "Bolt"},
    ]
    assert found.notes == ()


def test_one_text_a_line_gets_ids_from_its_text_so_that_a_new_first_line_changes_no_other(tmp_path: Path):
    path = tmp_path / "titles.txt"
    path.write_text("Hand saw\n\nClaw  hammer\nhand SAW\n", encoding="utf-8")
    before = load_catalogue(path)
    assert before.frame["document"].to_list() == ["Hand saw", "Claw  hammer"]
    assert before.notes == ("1 rows without a text, left out",)
    packed = tmp_path / "titles.txt.gz"
    packed.write_bytes(gzip.compress(b"New thing\n" + path.read_bytes()))
    after = load_catalogue(packed)
    assert after.frame["document_id"].to_list()[1:] == before.frame["document_id"].to_list()


def test_several_columns_are_joined_and_named_fields_are_kept(tmp_path: Path):
    path = tmp_path / "shop.jsonl"
    path.write_text('{"sku": 1, "title": "Saw", "text": "Cuts.", "brand": "A", "size": "L"}\n')
    found = load_catalogue(path, document=["title", "text"], fields=["brand"])
    assert found.frame.to_dicts() == [{"document_id": "1", "document": "Saw\nCuts.", "brand": "A"}]


def test_of_several_texts_under_an_id_the_longest_stands_and_is_counted(tmp_path: Path):
    path = tmp_path / "shop.csv"
    path.write_text("id,sku,title\n1,a,Saw\n2,a,Hand saw\n3,b,Nail\n")
    found = load_catalogue(path)
    assert found.frame.select("document_id", "document").rows() == [("a", "Hand saw"), ("b", "Nail")]
    assert found.notes == ("1 ids with several texts, of which the longest stands",)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("sku,titel\na,b\n", {}, "cannot tell which column is the document; give --document one of: sku, titel"),
        ("sku,title\na,b\n", {"document": "titel"}, r"no column 'titel' \(did you mean 'title'\?\); give --document"),
        ("sku,title\na,b\n", {"fields": ["brand"]}, "no column 'brand'; give --fields one of"),
        ("sku,title\na,b\n", {"document_id": "uid"}, "no column 'uid'; give --document-id one of"),
        ("sku,title\na, \n", {}, "none of its 1 rows has a text"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, text: str, options: dict, message: str):
    path = tmp_path / "shop.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_catalogue(path, **options)


def test_a_damaged_text_file_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "titles.txt.gz"
    path.write_bytes(gzip.compress(b"Saw\n")[:-4])
    with pytest.raises(InputError, match=r"titles\.txt\.gz: is not gzip, or is cut short"):
        load_catalogue(path)


def test_a_text_file_that_unpacks_to_more_than_the_bound_is_refused(tmp_path: Path):
    path = tmp_path / "titles.txt.gz"
    path.write_bytes(gzip.compress(b"Saw\n" * 500_000))
    with pytest.raises(InputError, match=r"unpacks to more than 1 MiB.*--max-unpacked"):
        load_catalogue(path, max_unpacked=1)
    assert len(load_catalogue(path, max_unpacked=2)) == 1


@pytest.mark.parametrize("blank", ["\u200b", "\u3000 \ufeff", "\u2800", "\u00ad\u2060", "\x00", "\u3164"])
def test_a_text_of_which_nothing_shows_is_left_out_and_counted(tmp_path: Path, blank: str):
    path = tmp_path / "shop.parquet"
    pl.DataFrame({"sku": ["a", "b"], "title": [blank, "Saw"]}).write_parquet(path)
    found = load_catalogue(path)
    assert found.frame["document_id"].to_list() == ["b"]
    assert found.notes == ("1 rows without a text, left out",)


def test_semicolons_of_a_catalogue_are_found_and_told(tmp_path: Path):
    path = tmp_path / "shop.csv"
    path.write_text("sku;title\n1;Saw, hand\n2;Nail\n")
    found = load_catalogue(path)
    assert found.frame["document"].to_list() == ["Saw, hand", "Nail"]
    assert found.notes == ("fields of the .csv are separated by semicolons, and read so",)


def test_texts_and_ids_as_utf_8_bytes_are_text_and_others_name_their_row(tmp_path: Path):
    path = tmp_path / "shop.parquet"
    pl.DataFrame({"sku": [b"1", None], "title": ["Säge".encode(), b"Nail"]}).write_parquet(path)
    assert load_catalogue(path).frame["document"].to_list() == ["Säge", "Nail"]
    assert load_catalogue(path).frame["document_id"][0] == "1"
    pl.DataFrame({"sku": ["1", "2"], "title": [b"Saw", b"\xff\xfe"]}).write_parquet(path)
    with pytest.raises(InputError, match=r"shop\.parquet, row 2, column 'title': holds bytes that are no UTF-8 text"):
        load_catalogue(path)


def test_the_generated_catalogue_has_fields_to_filter_by(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nestling.judgments.sources.RECORDS", 5_000)
    found = load_catalogue("toolshed")
    assert found.frame["document_id"].n_unique() == len(found) > 1000
    assert {"brand", "colour"} <= set(found.fields)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)


def is_blank(text: str) -> bool:
    return regex.fullmatch(r"[\s\p{Z}\p{Cc}\p{Default_Ignorable_Code_Point}\u2800]*", text) is not None


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", " a"]), texts, st.sampled_from("xy")), min_size=1))
@example([("", "\x1f", "x")])
def test_any_table_gives_unique_ids_and_no_empty_text(tmp_path_factory: pytest.TempPathFactory, rows: list):
    path = tmp_path_factory.mktemp("c") / "shop.parquet"
    pl.DataFrame(rows, schema=["sku", "title", "brand"], orient="row").write_parquet(path)
    full = [text for _, text, _ in rows if not is_blank(text)]
    try:
        found = load_catalogue(path)
    except InputError:
        assert not full
        return
    assert found.frame["document_id"].is_unique().all()
    assert set(found.frame["document"]) <= set(full)
    assert len(found) <= len(full)
