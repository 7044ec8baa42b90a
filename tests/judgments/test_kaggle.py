"""The layout of the Home Depot competition: where it is found, what is joined, and the real file."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from fixtures.places import HOME_DEPOT
from nestling.errors import InputError
from nestling.judgments.sources import load_judgments

REAL = HOME_DEPOT / "train.csv.zip"

PAIRS = (
    '"id","product_uid","product_title","search_term","relevance"\n'
    '2,100001,"Angle Bracket®","l bracket",2.5\n'
    '3,100002,"Deck ""Over"" Coating","deck over",3\n'
)
DESCRIPTIONS = '"product_uid","product_description"\n100001,"Angles, strong"\n100001,"again"\n100009,"Other"\n'
ATTRIBUTES = (
    '"product_uid","name","value"\n100001,"Bullet01","Strong"\n,,\n100001,"MFG Brand Name","Simpson"\n'
    '100009,"Color","Red"\n'
)
ALL = {"train.csv": PAIRS, "product_descriptions.csv": DESCRIPTIONS, "attributes.csv": ATTRIBUTES}


def zipped(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def lay_out(folder: Path, packing: str, texts: dict[str, str]) -> str:
    """Write the layout in one of the ways it comes, and return the path to give."""
    contents = {name: text.encode("cp1252") for name, text in texts.items()}
    if packing == "one zip":
        (folder / "all.zip").write_bytes(zipped({f"home-depot/{name}": data for name, data in contents.items()}))
        return str(folder / "all.zip")
    if packing == "zips in a zip":
        inner = {f"{name}.zip": zipped({name: data}) for name, data in contents.items()}
        (folder / "all.zip").write_bytes(zipped(inner))
        return str(folder / "all.zip")
    for name, data in contents.items():
        if packing == "zips":
            (folder / f"{name}.zip").write_bytes(zipped({name: data}))
        elif packing == "gz":
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return str(folder / "train.csv") if packing == "the file" else str(folder)


@pytest.mark.parametrize("preset", ["", "home-depot:"])
@pytest.mark.parametrize("packing", ["folder", "zips", "gz", "one zip", "zips in a zip", "the file"])
def test_pairs_are_joined_with_descriptions_and_attributes_however_packed(
    tmp_path: Path, packing: str, preset: str
) -> None:
    found = load_judgments(preset + lay_out(tmp_path, packing, ALL))
    assert (found.scale, found.encoding, found.cleaning.read) == ((1.0, 3.0), "cp1252", 2)
    assert found.fields == ("product_title", "product_description", "brand", "attributes")
    first, second = found.frame.drop("query_id").rows()
    assert first == ("deck over", "100002", 'Deck "Over" Coating', 3.0, 'Deck "Over" Coating', "", "", "")
    assert second == (
        *("l bracket", "100001", "Angle Bracket®", 2.5, "Angle Bracket®"),
        *("Angles, strong", "Simpson", "Bullet01: Strong; MFG Brand Name: Simpson"),
    )


def test_the_document_may_be_put_together_by_short_names(tmp_path: Path) -> None:
    source = lay_out(tmp_path, "folder", ALL)
    found = load_judgments(source, document=("title", "description", "brand"))
    assert found.frame["document"].to_list() == ['Deck "Over" Coating', "Angle Bracket®\nAngles, strong\nSimpson"]


def test_without_the_further_files_only_titles_are_there(tmp_path: Path) -> None:
    found = load_judgments(lay_out(tmp_path, "folder", {"train.csv": PAIRS}))
    assert found.fields == ("product_title",)


def test_asking_for_descriptions_that_are_not_there_says_which_file_to_add(tmp_path: Path) -> None:
    source = lay_out(tmp_path, "folder", {"train.csv": PAIRS})
    with pytest.raises(
        InputError,
        match=r"no column 'product_description' \(put product_descriptions\.csv beside train\.csv\); give --document",
    ):
        load_judgments(source, document="description")


def test_a_further_file_with_other_columns_is_an_error(tmp_path: Path) -> None:
    source = lay_out(tmp_path, "folder", {**ALL, "attributes.csv": "product_uid,key\n1,2\n"})
    with pytest.raises(InputError, match=r"attributes\.csv: no column 'name'; it has product_uid, key; put"):
        load_judgments(source)


def test_the_preset_wants_the_layout(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("query,document,score\na,b,1\n")
    with pytest.raises(InputError, match=r"holds no train\.csv with the columns product_uid, product_title, search"):
        load_judgments(f"home-depot:{tmp_path}")


def test_another_train_csv_is_a_file_like_others(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("query,document,score\na,b,1\nc,d,9\n")
    assert load_judgments(tmp_path / "train.csv").scale == (1.0, 9.0)


def test_scale_and_columns_may_be_overruled(tmp_path: Path) -> None:
    source = lay_out(tmp_path, "folder", ALL)
    found = load_judgments(source, scale=(0, 3), document_id="id")
    assert found.scale == (0, 3)
    assert found.frame["document_id"].to_list() == ["3", "2"]


@pytest.mark.skipif(not REAL.exists(), reason="the competition's file is not part of the project")
@pytest.mark.parametrize("source", [REAL, REAL.parent])
def test_the_real_file_is_read_whole(source: Path) -> None:
    found = load_judgments(source)
    assert (found.cleaning.read, len(found)) == (74_067, 74_062)
    assert (found.encoding, found.scale) == ("cp1252", (1.0, 3.0))
    assert found.frame["document_id"].n_unique() == 54_667
    assert found.frame["document"].str.contains("\x90").sum() == 2  # a byte that Python's own cp1252 rejects
