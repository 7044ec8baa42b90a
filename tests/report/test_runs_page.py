"""The comparison of runs: its figures against hand-worked ones, what it refuses, and that hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.browser import opened
from fixtures.study import make_study
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.report.runs_data import RunsData, load_runs
from nestling.report.runs_page import page, verdict, write_runs_page
from nestling.report.runs_settings import distinct_names

if TYPE_CHECKING:
    from playwright.sync_api import Browser

N = 40
MARK = "document.title='RAN'"


def share(found: int) -> list[float]:
    return [1.0] * found + [0.0] * (N - found)


def study(
    path: Path, found: int, *, dev: float = 0.6, pretrained: int = 20, name: str = "mnrl", **rest: Any
) -> RunFolder:
    """A run whose trained variant answers `found` of 40 queries at full size, and two fewer at 16 dims."""
    figures = {
        "pretrained": {Cell(64): share(pretrained), Cell(16): share(10)},
        name: {Cell(64): share(found), Cell(16): share(found - 2)},
        "bm25-stemmed": {None: share(22)},
    }
    options = {"variants": ["pretrained", "mnrl"], "dev": {name: (0.5, dev)}, "pages": False, "rankings": False}
    return make_study(path, figures, **{**options, **rest})


def edited(folder: RunFolder, change: Callable[[dict[str, Any]], None]) -> RunFolder:
    found = json.loads(folder.results_json.read_text(encoding="utf-8"))
    change(found)
    folder.results_json.write_text(json.dumps(found), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    path = tmp_path_factory.mktemp("runs")
    a, b = study(path / "a", 30, dev=0.6), study(path / "b", 33, dev=0.7)

    def change(found: dict[str, Any]) -> None:
        found["experiment"]["training"]["learning_rate"] = 0.002
        found["experiment"]["variants"][1]["training"] = {"epochs": 2}
        found["versions"]["torch"] = "9.9"

    return a, edited(b, change)


@pytest.fixture(scope="module")
def data(two: tuple[RunFolder, RunFolder]) -> RunsData:
    return load_runs(two)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "small":
            self.cells[-1] += "|"

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None:
            self.text += data
            if self.cells:
                self.cells[-1] += data.strip()


def parsed(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    return elements


@pytest.fixture(scope="module")
def html(data: RunsData) -> Elements:
    return parsed(page(data))


def test_what_no_run_trained_and_has_the_same_figures_stands_once(data: RunsData):
    assert [line.name for line in data.lines] == ["pretrained", "a: mnrl", "b: mnrl", "bm25-stemmed"]
    assert [line.runs for line in data.lines] == [(0, 1), (0,), (1,), (0, 1)]


def test_pretrained_models_with_other_figures_are_lines_of_their_own(tmp_path: Path):
    found = load_runs([study(tmp_path / "a", 30), study(tmp_path / "b", 30, pretrained=21)])
    names = [line.name for line in found.lines]
    # Trained variants never become one, though their figures are the same.
    assert names == ["a: pretrained", "a: mnrl", "b: pretrained", "b: mnrl", "bm25-stemmed"]
    assert found.reference == "a: pretrained"


def test_sizes_that_only_one_run_measured_are_shown_too(tmp_path: Path):
    b = make_study(
        tmp_path / "b",
        {"pretrained": {Cell(64): share(20), Cell(32): share(15)}},
        variants=["pretrained"],
        pages=False,
        rankings=False,
    )
    found = load_runs([study(tmp_path / "a", 30), b])
    dims = found.results.filter(variant="pretrained", measure="recall@10").sort("dim")
    assert dims.select("dim", "value").rows() == [(16, 0.25), (32, 0.375), (64, 0.5)]


def test_gains_and_their_p_are_those_worked_out_by_hand(data: RunsData):
    # All differences have one sign, so p is twice 2^-n of n queries; the smallest counts threefold, the next twice.
    rows = {row["b"]: row for row in data.gains.filter(measure="recall@10").iter_rows(named=True)}
    assert {name: row["difference"] for name, row in rows.items()} == pytest.approx(
        {"a: mnrl": 0.25, "b: mnrl": 0.325, "bm25-stemmed": 0.05}
    )
    assert {name: row["p_holm"] for name, row in rows.items()} == pytest.approx(
        {"a: mnrl": 2 * 2 / 2**10, "b: mnrl": 3 * 2 / 2**13, "bm25-stemmed": 0.5}
    )


def test_the_picks_are_compared_query_by_query_the_better_on_dev_as_b(data: RunsData):
    row = data.pairs.filter(measure="recall@10").row(0, named=True)
    assert (row["a"], row["b"], row["wins"], row["ties"], row["losses"]) == ("a: mnrl", "b: mnrl", 3, 37, 0)
    assert row["difference"] == pytest.approx(0.075)
    assert row["p"] == row["p_holm"] == pytest.approx(2 / 2**3)
    assert data.pairs.height == 2


def test_queries_are_matched_by_id_and_not_by_place(two: tuple[RunFolder, RunFolder], tmp_path: Path):
    a = RunFolder(shutil.copytree(two[0].path, tmp_path / "a"))
    b = RunFolder(shutil.copytree(two[1].path, tmp_path / "b"))
    pl.read_parquet(b.per_query).reverse().write_parquet(b.per_query)
    assert load_runs([a, b]).pairs.equals(load_runs(two).pairs)


def test_pairs_of_three_runs_are_corrected_for_their_number(two: tuple[RunFolder, RunFolder], tmp_path: Path):
    found = load_runs([*two, study(tmp_path / "c", 37, dev=0.65)])
    rows = {
        (row["a"], row["b"]): row["p_holm"] for row in found.pairs.filter(measure="recall@10").iter_rows(named=True)
    }
    # By dev the order is a, c, b. Singly p is 2/2^7, 2/2^3 and 2/2^4; Holm counts them 3, 2 and 1 times.
    assert rows == pytest.approx(
        {("a: mnrl", "c: mnrl"): 3 / 64, ("a: mnrl", "b: mnrl"): 0.25, ("c: mnrl", "b: mnrl"): 0.25}
    )


def test_the_page_shows_the_figures_with_gains_and_p(html: Elements):
    cells = html.cells
    at = cells.index("a: mnrl|its run's best on dev")
    assert cells[at + 1 : at + 4][0] == "64"
    assert cells[at + 2].startswith("0.7500|.")
    assert cells[at + 3] == "+50.0%|p = .004"
    at = cells.index("b: mnrl|its run's best on dev")
    assert (cells[at + 2][:6], cells[at + 3]) == ("0.8250", "+65.0%|p = .0007")
    at = cells.index("bm25-stemmed")
    assert cells[at + 1] == "–"
    assert cells[at + 3] == "+10.0%|p = .500"


def test_only_settings_that_differ_are_listed(data: RunsData, html: Elements):
    assert data.settings == {
        "training.learning_rate": {"a": 1e-4, "b": 0.002},
        "mnrl: training.epochs": {"b": 2},
    }
    assert data.environment == {"torch": {"b": "9.9"}}
    cells = html.cells
    at = cells.index("training.learning_rate")
    assert cells[at : at + 3] == ["training.learning_rate", "0.0001", "0.002"]
    at = cells.index("torch")
    assert cells[at : at + 3] == ["torch", "–", "9.9"]


def test_folders_of_this_machine_are_not_on_the_page_but_to_tell_two_models_apart(tmp_path: Path):
    def moved(found: dict[str, Any], place: str) -> None:
        found["data"]["source"] = found["experiment"]["data"]["source"] = f"/srv/secret/{place}/shop.csv"
        found["experiment"]["model"] = f"/srv/secret/{place}/mini"

    runs = [
        edited(study(tmp_path / name, 30), lambda found, place=name: moved(found, place))  # type: ignore[misc]
        for name in ("a", "b")
    ]
    found = load_runs(runs)
    assert found.settings == {"model": {"a": "a/mini", "b": "b/mini"}}
    assert "secret" not in page(found)


def test_the_verdict_names_the_best_on_dev_and_what_test_says(data: RunsData):
    first, second = verdict(data)
    assert first.word == "b: mnrl on dev, not shown on test"
    assert "On dev b: mnrl has recall@10 0.7000 and a: mnrl, the next, 0.6000" in first.text
    assert "recall@10 0.7500 → 0.8250 (+10.0%, interval " in first.text
    assert "p = .250, not significant" in first.text
    assert second.word == "Yes"
    assert "recall@10 0.5000 → 0.8250 (+65.0%" in second.text


@pytest.mark.parametrize(
    ("found", "dev", "word"),
    [
        ((30, 20), (0.6, 0.7), "b: mnrl on dev, a: mnrl on test"),
        ((20, 30), (0.6, 0.7), "b: mnrl"),
        ((30, 20), (0.7, 0.6), "a: mnrl"),
        ((30, 30), (0.6, 0.6), "a: mnrl on dev, the same on test"),
        ((24, 34), (0.6, 0.6), "a: mnrl on dev, b: mnrl on test"),
    ],
)
def test_test_confirms_or_refutes_what_dev_chose(
    tmp_path: Path, found: tuple[int, int], dev: tuple[float, float], word: str
):
    runs = [study(tmp_path / name, n, dev=d) for name, n, d in zip("ab", found, dev, strict=True)]
    answer = verdict(load_runs(runs))[0]
    assert answer.word == word
    if word.endswith("the same on test"):
        assert "On test both have the same figures: recall@10 0.7500 and MRR@10 0.3750." in answer.text


def test_other_dev_queries_rank_nothing(tmp_path: Path):
    def other_dev(found: dict[str, Any]) -> None:
        found["split"]["sides"]["dev"]["fingerprint"] = "other"

    found = load_runs([study(tmp_path / "a", 30), edited(study(tmp_path / "b", 33), other_dev)])
    (answer,) = verdict(found)
    assert answer.word == "Cannot be said"
    assert "dev sides are not the same" in answer.text
    assert found.ranked == []


def test_runs_without_training_have_no_best(tmp_path: Path):
    runs = [
        make_study(
            tmp_path / name,
            {"pretrained": {Cell(64): share(n)}},
            variants=["pretrained"],
            pages=False,
            rankings=False,
        )
        for name, n in (("a", 20), ("b", 30))
    ]
    found = load_runs(runs)
    assert verdict(found)[0].text == "No run trained a model, so dev has nothing to choose from."
    assert "Training" not in parsed(page(found)).text
    assert found.pairs["difference"].to_list() == pytest.approx([-0.25, -0.125])


def test_a_training_that_fell_below_its_base_is_marked(tmp_path: Path):
    found = load_runs([study(tmp_path / "a", 30, dev=0.4), study(tmp_path / "b", 33, dev=0.3)])
    assert "a: mnrl|its run's best on dev; on dev below its base" in parsed(page(found)).cells
    assert "On dev it ended below its base." in verdict(found)[0].text


def set_at(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [set_at("data", "fingerprint", value="f"), set_at("experiment", "data", "records", value=50)],
            r"runs a and b were given other judgments, so nothing can be said of which is better: "
            r"data\.records is not set in a and 50 in b; run one of them again",
        ),
        (
            [set_at("data", "fingerprint", value="f")],
            "their settings of data are the same, so the source or the version of Nestling has changed",
        ),
        (
            [
                set_at("split", "sides", "test", "fingerprint", value="f"),
                set_at("experiment", "split", "seed", value=1),
            ],
            r"runs a and b measured other test queries, .*: split\.seed is 0 in a and 1 in b;",
        ),
        ([set_at("threshold", value=2.0)], r"the threshold is 2\.5 in a and 2 in b"),
        ([set_at("test", "protocol", value="per-pair")], r"evaluation\.protocol is per-query in a and per-pair in b"),
        (
            [set_at("experiment", "evaluation", "measures", value=["recall@10"])],
            r"evaluation\.measures is recall@10, mrr@10 in a and recall@10 in b",
        ),
    ],
)
def test_runs_that_measured_something_else_are_refused_by_the_setting_that_differs(
    two: tuple[RunFolder, RunFolder], tmp_path: Path, changes: list[Callable[[dict[str, Any]], None]], message: str
):
    b = study(tmp_path / "b", 33)
    for change in changes:
        edited(b, change)
    with pytest.raises(InputError, match=message) as raised:
        load_runs([two[0], b])
    assert "\n" not in str(raised.value)


def test_records_drawn_by_another_seed_are_refused_by_that_seed(tmp_path: Path):
    runs = [study(tmp_path / name, 30) for name in ("a", "b")]
    for seed, run in enumerate(runs):
        edited(run, set_at("experiment", "data", "records", value=50))
        edited(run, set_at("experiment", "split", "seed", value=seed))
        edited(run, set_at("data", "fingerprint", value=str(seed)))
    with pytest.raises(InputError, match=r"were given other judgments, .*: split\.seed is 0 in a and 1 in b;"):
        load_runs(runs)


def test_tables_of_other_queries_are_refused_whatever_results_json_says(
    two: tuple[RunFolder, RunFolder], tmp_path: Path
):
    b = study(tmp_path / "b", 33)
    table = pl.read_parquet(b.per_query)
    table.with_columns(pl.col("query_id").str.replace("0001", "9999")).write_parquet(b.per_query)
    with pytest.raises(InputError, match=r"per_query\.parquet does not fit results\.json"):
        load_runs([two[0], b])
    table.with_columns(pl.lit(float("nan")).alias("recall@10")).write_parquet(b.per_query)
    with pytest.raises(InputError, match=r"per_query\.parquet does not fit results\.json"):
        load_runs([two[0], b])


def test_one_run_nine_runs_and_the_same_run_twice_are_refused(two: tuple[RunFolder, RunFolder], tmp_path: Path):
    with pytest.raises(InputError, match="a comparison takes 2 to 8 runs, not 1"):
        load_runs(two[:1])
    with pytest.raises(InputError, match="a comparison takes 2 to 8 runs, not 9"):
        load_runs([two[0]] * 9)
    (tmp_path / "link").symlink_to(two[0].path)
    with pytest.raises(InputError, match="is given twice; give each run once"):
        load_runs([*two, RunFolder(tmp_path / "link")])


def test_runs_of_one_name_are_called_by_their_folders_too(tmp_path: Path):
    found = load_runs([study(tmp_path / "x" / "a", 30), study(tmp_path / "y" / "a", 33), study(tmp_path / "b", 31)])
    assert found.labels == ("x/a", "y/a", "b")
    assert "x/a: mnrl" in [line.name for line in found.lines]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.sampled_from("abc"), min_size=1, max_size=3)), min_size=1))
def test_labels_are_always_different(given_runs: list[tuple[str, list[str]]]):
    names = {Path("/", *parts): name for name, parts in given_runs}
    labels = distinct_names(list(names.values()), list(names))
    assert len(set(labels)) == len(names)
    if len(set(names.values())) == len(names):
        assert labels == list(names.values())


def test_an_earlier_comparison_is_replaced_and_nothing_else(data: RunsData, tmp_path: Path):
    out = tmp_path / "page.html"
    assert write_runs_page(data, out) == out
    first = out.read_bytes()
    write_runs_page(data, out)
    assert out.read_bytes() == first
    out.write_text("<html>mine</html>", encoding="utf-8")
    with pytest.raises(InputError, match=r"page\.html exists and is no comparison of runs; give another file"):
        write_runs_page(data, out)
    assert out.read_text(encoding="utf-8") == "<html>mine</html>"
    with pytest.raises(InputError, match="is a folder"):
        write_runs_page(data, tmp_path)


HOSTILE = f'<img src=x onerror="{MARK}">'
SCRIPT = f"</title></script><script>{MARK}</script>\x1b[31m\u202e"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile")

    def renamed(found: dict[str, Any]) -> None:
        found["experiment"]["name"] = SCRIPT
        found["experiment"]["variants"][1]["name"] = HOSTILE
        found["experiment"]["model"] = SCRIPT
        found["versions"][HOSTILE] = SCRIPT
        found["experiment"]["training"][HOSTILE] = SCRIPT

    a = study(path / "a", 30)
    b = edited(study(path / "b", 33, dev=0.7, name=HOSTILE), renamed)
    return write_runs_page(load_runs([a, b]), path / "page.html")


def test_no_name_becomes_an_element_or_a_handler(hostile: Path):
    page = parsed(hostile.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert not {"img", "iframe", "object", "foreignobject", "use", "image"} & set(tags)
    assert not {name for _, attrs in page.tags for name in attrs if name.startswith("on")}
    assert HOSTILE in page.text
    assert "\x1b" not in page.text
    title = page.text.split("·")[0]
    assert f"</script><script>{MARK}" in title


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(hostile: Path):
    html = hostile.read_text(encoding="utf-8")
    page = parsed(html)
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", html)


def test_ids_are_unique_links_lead_somewhere_and_headings_have_scopes(html: Elements):
    ids = [attrs["id"] for _, attrs in html.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"] for tag, attrs in html.tags if tag == "a"} <= {f"#{name}" for name in ids}
    assert all(attrs.get("scope") in {"row", "col", "rowgroup"} for tag, attrs in html.tags if tag == "th")


def test_in_a_browser_no_name_runs_and_tables_sort(browser: Browser, hostile: Path, tmp_path: Path):
    driver = """() => {
    const table = document.querySelector("#results table");
    table.tHead.rows[0].cells[2].firstChild.click();
    return [...table.tBodies[0].rows].map((row) => row.cells[2].firstChild.textContent);
    }"""
    # Without its policy, so that escaping alone is what holds.
    html, count = re.subn(r"<meta http-equiv[^>]*>", "", hostile.read_text(encoding="utf-8"))
    assert count == 1
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    with opened(browser, path.as_uri()) as page:
        assert page.title() != "RAN"
        assert page.evaluate(driver) == ["0.8250", "0.7500", "0.5500", "0.5000"]
