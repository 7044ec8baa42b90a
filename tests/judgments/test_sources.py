"""The public way in: which source a word means, which column holds what, and what is said when it goes wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.judgments import sources
from nestling.judgments.sources import load_judgments
from nestling.judgments.table import Judgments

TABLE = pl.DataFrame(
    {
        "id": ["1", "2", "3"],
        "Search Term": ["3/4 elbow", "grün, «paint»", "3/4 elbow"],
        "title": ['Elbow 3/4"', 'The "green" paint', "Elbow\n5/8"],
        "description": ["Bends", "", "Bends\tmore"],
        "brand": ["Acme", "Ubend", ""],
        "sku": ["007", "7", "08"],
        "relevance": ["2.50", "3", "1"],
    }
)


def csv_text(frame: pl.DataFrame, separator: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows([frame.columns, *frame.rows()])
    return out.getvalue()


def write(frame: pl.DataFrame, folder: Path, extension: str) -> Path:
    """Write a frame of strings as a file with this extension, packed if it says so."""
    kind, _, packing = extension.partition(".")
    if kind == "parquet":
        buffer = io.BytesIO()
        frame.with_columns(pl.col("relevance").cast(pl.Float64)).write_parquet(buffer)
        data = buffer.getvalue()
    elif kind in ("jsonl", "ndjson"):
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in frame.iter_rows(named=True)).encode()
    else:
        data = csv_text(frame, "\t" if kind == "tsv" else ",").encode()
    if packing == "gz":
        data = gzip.compress(data)
    if packing == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"pairs.{kind}", data)
        data = buffer.getvalue()
    path = folder / f"pairs.{extension}"
    path.write_bytes(data)
    return path


def put(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


# --- formats


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl", "ndjson"])
@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
def test_the_same_judgments_come_out_of_every_format(tmp_path: Path, kind: str, packing: str) -> None:
    path = write(TABLE, tmp_path, kind + packing)
    found = load_judgments(path)
    expected = Judgments.from_frame(
        TABLE.select(
            pl.col("Search Term").alias("query"),
            pl.col("title").alias("document"),
            pl.col("sku").alias("document_id"),
            pl.col("relevance").alias("score"),
        )
    )
    assert found.fingerprint == expected.fingerprint
    assert found.fields == ("title", "description", "brand")
    assert found.encoding == (None if kind == "parquet" else "utf-8")
    assert found.source == str(path)


def test_integer_ids_of_parquet_and_text_ids_of_csv_are_the_same(tmp_path: Path) -> None:
    frame = pl.DataFrame({"query": ["a"], "document": ["b"], "score": [2], "product_id": [17], "weight": [None]})
    frame.write_parquet(tmp_path / "a.parquet")
    put(tmp_path, "query,document,score,product_id,weight\na,b,2,17,\n", "a.csv")
    found = [load_judgments(tmp_path / name) for name in ("a.parquet", "a.csv")]
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].frame.equals(found[1].frame)


WORDS = st.text(st.characters(codec="utf-8"), max_size=10) | st.text(st.sampled_from("a,\" \t\r\n'é{}"), max_size=6)
RECORDS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["1", "2.5", "3"])), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(RECORDS.filter(lambda rows: any(q.strip() and d.strip() for q, d, _ in rows)))
def test_any_texts_survive_every_format(records: list[tuple[str, str, str]]) -> None:
    frame = pl.DataFrame(records, schema=["query", "document", "relevance"], orient="row")
    try:
        expected = Judgments.from_frame(frame.rename({"relevance": "score"}))
    except InputError:  # what counts as empty is the table's business
        return
    # With tabs and line breaks in one record a TSV may be whole with its quotes and without: it reads in two ways.
    two_ways = any("\t" in q + d and {"\r", "\n"} & set(q + d) for q, d, _ in records)
    with TemporaryDirectory() as folder:
        for kind in ("csv", "jsonl", "parquet", *(() if two_ways else ("tsv",))):
            assert load_judgments(write(frame, Path(folder), kind)).fingerprint == expected.fingerprint


# --- columns


def test_named_columns_win_over_usual_names(tmp_path: Path) -> None:
    text = "query,asked,document,shown,score,grade,query_id,q,document_id,d\n" + "a,b,c,d,1,2,e,f,g,h\n"
    found = load_judgments(
        put(tmp_path, text), query="asked", document="shown", score="grade", query_id="q", document_id="d"
    )
    assert found.frame.row(0, named=True) == {
        **{"query_id": "f", "query": "b", "document_id": "h", "document": "d", "score": 2.0},
        **{"query_": "a", "document_": "c", "shown": "d", "score_": "1", "query_id_": "e", "document_id_": "g"},
    }


@pytest.mark.parametrize("header", ["Search_Query,Passage,RATING", "question,positive,label", "search term,name,gain"])
def test_usual_names_are_found_whatever_their_case(tmp_path: Path, header: str) -> None:
    found = load_judgments(put(tmp_path, f"{header}\na,b,1\n"))
    assert found.frame.select("query", "document", "score").row(0) == ("a", "b", 1.0)


def test_several_columns_make_a_document_without_the_empty_ones(tmp_path: Path) -> None:
    text = "query,title,body,brand,score\na,T,B,X,1\na,,B2,Y,1\na,T3, ,,1\na,,,,1\n"
    found = load_judgments(put(tmp_path, text), document=("brand", "title", "body"))
    assert sorted(found.frame["document"]) == ["T3", "X\nT\nB", "Y\nB2"]
    assert found.fields == ("title", "body", "brand")
    assert found.cleaning.empty == 1


def test_record_numbers_are_no_document_fields(tmp_path: Path) -> None:
    text = ",Unnamed: 7,ID,index,query,document,score,size\n0,0,0,0,a,b,1,L\n"
    assert load_judgments(put(tmp_path, text)).fields == ("size",)


def test_columns_that_polars_would_take_for_patterns_are_fields_like_others(tmp_path: Path) -> None:
    text = "query,document,score,*,^a.*$,__key,__scores\na,b,1,s,t,u,v\n"
    found = load_judgments(put(tmp_path, text))
    assert found.frame.select(pl.nth(5, 6, 7, 8)).row(0) == ("s", "t", "u", "v")


def test_lists_are_fields_as_json_and_bytes_are_left_out(tmp_path: Path) -> None:
    frame = pl.DataFrame({"query": ["a"], "document": ["b"], "score": [1], "tags": [["x", "y"]], "image": [b"\xff"]})
    frame.write_parquet(tmp_path / "a.parquet")
    found = load_judgments(tmp_path / "a.parquet")
    assert found.frame["tags"].to_list() == ['["x", "y"]']
    assert found.fields == ("tags",)


def test_records_without_a_document_id_stay_documents_of_their_own(tmp_path: Path) -> None:
    found = load_judgments(put(tmp_path, "query,document,score,sku\na,x,1,\na,y,2,\na,z,3,7\n"))
    assert sorted(found.frame["document"]) == ["x", "y", "z"]
    assert found.cleaning.retitled == 0


@pytest.mark.parametrize("role", ["query", "document", "score", "query_id", "document_id"])
def test_a_column_that_is_not_there_is_an_error_with_what_is_near(tmp_path: Path, role: str) -> None:
    path = put(tmp_path, "query,document,score,colour\na,b,1,red\n")
    option = "--" + role.replace("_", "-")
    match = rf"pairs\.csv: no column 'Color' \(did you mean 'colour'\?\); give {option} one of: query, document, score"
    with pytest.raises(InputError, match=match):
        load_judgments(path, **{role: "Color"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("role", "header"), [("query", "x,title,score"), ("document", "query,x,score"), ("query", "x,title,y")]
)
def test_a_column_that_cannot_be_guessed_is_an_error_with_what_to_give(tmp_path: Path, role: str, header: str) -> None:
    path = put(tmp_path, f"{header}\na,b,1\n")
    match = rf"cannot tell which column is the {role}; give --{role} one of: {header.replace(',', ', ')}"
    with pytest.raises(InputError, match=match):
        load_judgments(path)


def test_without_a_score_column_every_pair_counts_as_relevant_and_that_is_told(tmp_path: Path) -> None:
    found = load_judgments(put(tmp_path, "query,title,brand\na,b,X\nc,d,Y\n"))
    assert found.frame["score"].to_list() == [1.0, 1.0]
    assert found.scale == (0.0, 1.0)
    assert found.notes == ("no score column: every pair counts as relevant",)
    assert found.fields == ("title", "brand")


def test_columns_of_numbers_are_named_where_one_may_be_the_score(tmp_path: Path) -> None:
    found = load_judgments(put(tmp_path, "id,query,title,stars,brand\n1,a,b,3,X\n2,c,d,1,Y\n"))
    assert found.notes[0].endswith(
        "every pair counts as relevant; if one of these holds scores, give it with --score: stars"
    )


def test_a_score_column_that_is_asked_for_and_not_there_stays_an_error(tmp_path: Path) -> None:
    path = put(tmp_path, "query,title,stars\na,b,3\n")
    with pytest.raises(InputError, match=r"no column 'star' \(did you mean 'stars'\?\); give --score one of"):
        load_judgments(path, score="star")


def test_with_a_scale_and_no_scores_every_pair_has_the_highest(tmp_path: Path) -> None:
    found = load_judgments(put(tmp_path, "query,title\na,b\n"), scale=(1, 3))
    assert (found.frame["score"].to_list(), found.scale) == ([3.0], (1, 3))


def test_query_and_score_as_utf_8_bytes_are_read_and_other_bytes_name_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"query": ["grün".encode(), b"b"], "title": [b"c", b"d"], "score": [b"1", b"2.5"]}).write_parquet(path)
    found = load_judgments(path)
    assert found.frame.select("query", "document", "score").rows() == [("b", "d", 2.5), ("grün", "c", 1.0)]
    pl.DataFrame({"query": [b"a", b"\xe9"], "title": ["c", "d"], "score": [1, 2]}).write_parquet(path)
    with pytest.raises(InputError, match=r"a\.parquet, row 2, column 'query': holds bytes that are no UTF-8 text"):
        load_judgments(path)


def test_the_delimiter_found_is_told(tmp_path: Path) -> None:
    found = load_judgments(put(tmp_path, "query;title;score\na;b, c;1\nd;e;2\n"))
    assert found.frame["document"].to_list() == ["b, c", "e"]
    assert found.notes == ("fields of the .csv are separated by semicolons, and read so",)


@pytest.mark.parametrize("packing", ["csv.gz", "csv.zip", "parquet"])
def test_the_bound_on_what_files_unpack_to_reaches_every_format(tmp_path: Path, packing: str) -> None:
    many = pl.concat([TABLE] * 8_000)
    path = write(many, tmp_path, packing)
    with pytest.raises(InputError, match=r"unpacks to more than 1 MiB"):
        load_judgments(path, max_unpacked=1)


def test_a_score_that_is_no_number_is_named_by_its_row_and_column(tmp_path: Path) -> None:
    path = put(tmp_path, 'query,title,rating\na,b,1\nc,d,"2,5"\n')
    with pytest.raises(InputError, match=r"pairs\.csv, row 2 after the header, column 'rating': the score is '2,5'"):
        load_judgments(path)


def test_a_header_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs\.csv: holds no records; give a file with at least one"):
        load_judgments(put(tmp_path, "query,document,score\n"))


def test_the_scale_given_is_the_scale(tmp_path: Path) -> None:
    found = load_judgments(put(tmp_path, "query,document,score\na,b,1\nc,d,9\n"), scale=(0, 5))
    assert (found.scale, found.cleaning.out_of_scale) == ((0, 5), 1)


# --- which source


def test_the_generated_catalogue_is_a_source() -> None:
    found = load_judgments("toolshed", records=200, seed=3)
    assert len(found) <= found.cleaning.read == 200
    assert found.fingerprint == load_judgments("toolshed", records=200, seed=3).fingerprint
    assert found.fingerprint != load_judgments("toolshed", records=200, seed=4).fingerprint


def test_the_generated_documents_may_be_put_together_from_fields() -> None:
    found = load_judgments("toolshed", records=200, document=("title", "description"))
    titled = found.frame["title"] + "\n" + found.frame["description"]
    assert found.frame["document"].to_list() == titled.to_list()
    assert found.fields == load_judgments("toolshed", records=200).fields


@pytest.mark.parametrize(
    "path",
    [
        "a.csv",
        "./pairs",
        "../pairs",
        "~/none/pairs",
        "~nobody-here/x",
        "/none/a",
        "C:\\data\\a.csv",
        "sub/a.jsonl.gz",
        "x" * 300 + "/a.csv",
    ],
)
def test_a_path_that_is_not_there_is_said_so(path: str) -> None:
    with pytest.raises(InputError, match=r"^no such file: .*; check the spelling, or give toolshed or home-depot, the"):
        load_judgments(path)


def test_a_path_object_is_always_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("toolshed", "home-depot", "owner/name", "hf:owner"):
        with pytest.raises(InputError, match=f"^no such file: {name}"):
            load_judgments(Path(name))


def test_a_word_that_is_nothing_names_the_presets_and_the_nearest() -> None:
    match = r"^no such source: 'Toolshet' \(did you mean 'toolshed'\?\); give toolshed or home-depot, .*hf:owner/name"
    with pytest.raises(InputError, match=match):
        load_judgments("Toolshet")


def test_no_source_is_an_error() -> None:
    with pytest.raises(InputError, match=r"^no source given; give toolshed or home-depot, the path of a file"):
        load_judgments(" ")


@pytest.mark.parametrize("option", ["split", "revision"])
@pytest.mark.parametrize("source", ["toolshed", "file"])
def test_options_of_the_hub_are_refused_elsewhere(tmp_path: Path, source: str, option: str) -> None:
    path = put(tmp_path, "query,document,score\na,b,1\n") if source == "file" else source
    with pytest.raises(InputError, match=f"has no {option} 'x'; leave --{option} out, it is for hub data sets"):
        load_judgments(path, **{option: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pairs (1) – é.csv", "a;b&c.csv", "UPPER.CSV", "dots.in.name.csv", "-dash.csv"])
def test_odd_paths_just_work(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    assert len(load_judgments(str(put(folder, "query,document,score\na,b,1\n", name)))) == 1


# --- datasets: local folders, and the hub with the line cut


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("offline")
def test_a_folder_of_parquet_files_is_a_data_set_with_splits(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    TABLE.write_parquet(folder / "train.parquet")
    TABLE.head(1).write_parquet(folder / "test.parquet")
    assert len(load_judgments(folder)) == 3
    assert len(load_judgments(str(folder), split="test")) == 1
    with pytest.raises(InputError, match="set: has no split 'dev'; give --split one of: train, test"):
        load_judgments(folder, split="dev")


@pytest.mark.usefixtures("offline")
def test_a_data_set_saved_to_disk_gives_what_the_file_gives(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_dict(TABLE.to_dict(as_series=False))
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"only": saved}).save_to_disk(tmp_path / "many")
    expected = load_judgments(write(TABLE, tmp_path, "csv")).fingerprint
    for folder in ("one", "many"):
        found = load_judgments(tmp_path / folder)
        assert (found.fingerprint, found.encoding) == (expected, None)


@pytest.mark.usefixtures("offline")
def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: cannot be loaded .*; give the path of a file in it"):
        load_judgments(tmp_path / "empty")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["nobody/nothing", "hf:nobody/nothing", "hf:nothing", "home-depot"])
def test_offline_the_hub_is_not_asked(source: str) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"hub data set .*with HF_HUB_OFFLINE set it must be in the cache; else unset"):
        load_judgments(source)
    assert time.monotonic() - begun < 5


def _answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    import datasets
    import huggingface_hub

    def answer(self: object, name: str, **options: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", answer)


def _http(kind: str, status: int) -> Exception:
    from huggingface_hub import errors

    error: Exception = getattr(errors, kind).__new__(getattr(errors, kind))
    error.args = (f"{status} from the hub\nand more",)
    return error


def test_a_hub_out_of_reach_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, OSError("Name or service not known"))
    match = r"hub data set a/b: the hub cannot be reached \(Name or service not known\); give a file, or set HF_HUB_OFF"
    with pytest.raises(InputError, match=match):
        load_judgments("a/b")


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("RepositoryNotFoundError", "a/b at v1: not on the hub, or private; check the name"),
        ("RevisionNotFoundError", "a/b at v1: it has no such revision; give --revision"),
        ("HfHubHTTPError", r"a/b at v1: the hub answers 5 from the hub; try later"),
    ],
)
def test_what_the_hub_answers_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, kind: str, match: str) -> None:
    _answer(monkeypatch, _http(kind, 5))
    with pytest.raises(InputError, match=match):
        load_judgments("a/b", revision="v1")


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../x", "hf:/etc"])
def test_what_cannot_be_a_name_on_the_hub_is_not_asked_for(name: str) -> None:
    with pytest.raises(InputError, match="is not a name that the hub has; give hf:owner/name"):
        load_judgments(name)


def test_the_home_depot_preset_reads_the_hubs_copy_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[str] = []
    rows = {"id": [2], "entity_id": [100001], "name": ["Angle"], "description": ["Strong"], "query": ["l bracket"]}
    copy = datasets.DatasetDict({"train": datasets.Dataset.from_dict({**rows, "relevance": [2.5]})})
    _answer(monkeypatch, None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: asked.append(name) or copy)
    found = load_judgments("home-depot")
    assert asked == [sources.HOME_DEPOT]
    assert found.frame.drop("query_id").row(0) == ("l bracket", "100001", "Angle", 2.5, "Angle", "Strong")
    assert (found.scale, found.source) == ((1.0, 3.0), "home-depot")
    assert load_judgments("home-depot", document=("title", "description")).frame["document"][0] == "Angle\nStrong"
