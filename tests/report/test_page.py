"""The page: what is on it, that hostile text stays text, and, where there is a browser, that it works in one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from fixtures.browser import opened
from fixtures.study import make_study
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.report.page import write_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser

N = 40
MARK = "document.title='RAN'"
HOSTILE = [
    f"<script>{MARK}</script>",
    f"</script><script>{MARK}</script>",
    f"<!--<script>{MARK}//",
    f'<img src=x onerror="{MARK}">',
    f"\"' onmouseover='{MARK}' x=\"",
    "abc \u202eright to left\u202c \u200f and \u2028 \u2029 lines",
    "drill 🛠️🔩 " + "x" * 10_000,
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &amp;",
    "nul \x07 bell \x1b[31m escape",
]


def share(found: int) -> list[float]:
    return [1.0] * found + [0.0] * (N - found)


FIGURES = {
    "pretrained": {Cell(64): share(20), Cell(32): share(15), Cell(16): share(10)},
    "mnrl": {Cell(64): share(30), Cell(32): share(25), Cell(16): share(18), Cell(64, "int8"): share(29)},
    "pretrained+bm25": {Cell(64): share(24), Cell(16): share(20)},
    "mnrl+bm25": {Cell(64): share(33), Cell(16): share(24)},
    "bm25-stemmed": {None: share(22)},
}


class Elements(HTMLParser):
    """Elements in order, and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def parsed(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    return elements


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Each of them is among the biggest wins, the list and the rankings.
    texts = [f"query {i} {HOSTILE[i % len(HOSTILE)]}" for i in range(N)]
    folder = make_study(
        tmp_path_factory.mktemp("runs") / "hostile",
        FIGURES,
        variants=["pretrained", "mnrl"],
        dev={"mnrl": (0.5, 0.6)},
        queries=texts,
        documents=texts,
        source=f'<img src=x onerror={MARK}><script>{MARK}<!-- & "shop".csv',
    )
    return write_pages(folder)


@pytest.fixture(scope="module")
def page(hostile: Path) -> Elements:
    return parsed(hostile.read_text(encoding="utf-8"))


def test_no_text_becomes_an_element_or_a_handler(page: Elements):
    kinds = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert kinds == ["application/json", None]
    assert not {"img", "iframe", "object", "foreignobject", "use", "image"} & {tag for tag, _ in page.tags}
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")}
    assert "href" not in {name for tag, attrs in page.tags for name in attrs if tag != "a"}


def test_data_inside_the_page_holds_nothing_that_ends_a_script(page: Elements):
    assert not set("<>&\u2028\u2029") & set(page.scripts[0])
    data = json.loads(page.scripts[0])
    assert any(f"</script><script>{MARK}" in text for text in data["queries"])
    assert max(map(len, data["queries"] + data["documents"])) <= 240
    assert not any("\x1b" in text for text in data["queries"])


def test_the_pages_own_script_is_the_only_one_that_may_run(page: Elements):
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_nothing_is_loaded_from_elsewhere(hostile: Path):
    html = hostile.read_text(encoding="utf-8")
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", html.split('<script type="application')[0])
    assert "@import" not in html


def test_every_figure_of_the_tables_is_on_the_page(page: Elements, hostile: Path):
    results = pl.read_parquet(hostile.parent / "results.parquet").filter(pl.col("precision") != "int8")
    for value in results["value"]:
        assert f"{value:.4f}" in page.text


def test_tables_have_captions_and_every_heading_its_scope(page: Elements):
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") >= 6
    assert all(attrs.get("scope") in {"row", "col", "rowgroup"} for tag, attrs in page.tags if tag == "th")


def test_ids_are_unique_and_links_lead_somewhere(page: Elements):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"] for tag, attrs in page.tags if tag == "a"} <= {f"#{name}" for name in ids}


def test_what_a_run_lacks_is_left_out_with_a_line_that_says_so(tmp_path: Path):
    folder = make_study(
        tmp_path / "bare", {"pretrained": {Cell(64): share(20)}}, variants=["pretrained"], rankings=False, pages=False
    )
    folder.slices.unlink()
    text = parsed(write_pages(folder).read_text(encoding="utf-8")).text
    assert "The query explorer is left out" in text
    assert "The score histogram is not in the run folder" in text
    for title in ("Slices", "Significance", "Training", "Size and quality"):
        assert title not in text


def test_a_leak_between_the_sides_stands_on_the_page_and_in_the_markdown(tmp_path: Path):
    queries = ["train 1", *(f"query {i}" for i in range(N - 1))]
    folder = make_study(
        tmp_path / "leaky", {"pretrained": {Cell(64): share(20)}}, variants=["pretrained"], queries=queries, pages=False
    )
    leak = "Leak, so the figures are too good: train and test share 1 query texts"
    assert leak in parsed(write_pages(folder).read_text(encoding="utf-8")).text
    assert f"**{leak}" in (folder.path / "report.md").read_text(encoding="utf-8")


def test_folders_of_this_machine_are_neither_on_the_page_nor_in_the_markdown(tmp_path: Path):
    folder = make_study(
        tmp_path / "run", {"pretrained": {Cell(64): share(20)}}, variants=["pretrained"], source="/srv/secret/shop.csv"
    )
    study = json.loads(folder.results_json.read_text(encoding="utf-8"))
    study["experiment"]["model"] = "/srv/secret/mini"
    folder.results_json.write_text(json.dumps(study), encoding="utf-8")
    for path in (write_pages(folder), folder.path / "report.md"):
        text = path.read_text(encoding="utf-8")
        assert "secret" not in text
        assert "source: shop.csv" in text
        assert "model: mini" in text
    assert str(tmp_path) not in text
    assert "query 001" not in text


def test_the_same_tables_give_the_same_page(hostile: Path):
    first = hostile.read_bytes()
    assert write_pages(RunFolder(hostile.parent)).read_bytes() == first


def test_an_unfinished_or_old_run_is_refused_in_a_line(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"holds no finished run: it has no results\.json; finish it with nestling run"
    ):
        write_pages(RunFolder(tmp_path))
    folder = make_study(tmp_path / "run", {"pretrained": {Cell(64): share(20)}}, variants=["pretrained"], pages=False)
    pl.read_parquet(folder.results).drop("rotation").write_parquet(folder.results)
    with pytest.raises(InputError, match=r"results\.parquet lacks column 'rotation', so an earlier version wrote it"):
        write_pages(folder)
    folder.results.write_bytes(b"no table")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        write_pages(folder)
    assert not folder.report.exists()


def test_in_a_browser_no_text_runs_and_the_explorer_shows_a_query(browser: Browser, hostile: Path):
    with opened(browser, hostile.as_uri()) as page:
        assert page.title() == "hostile · Nestling study"
        dom = parsed(page.content())
    assert f"{N} of {N} queries, biggest wins of B first" in dom.text
    assert "A: pretrained, 64 dims" in dom.text
    assert "B: mnrl, 64 dims" in dom.text
    # The tables' headings have become buttons, and the explorer is on.
    assert sum(tag == "button" for tag, _ in dom.tags) > 20
    assert "hidden" not in next(attrs for tag, attrs in dom.tags if attrs.get("id") == "explorer")


@pytest.fixture(scope="module")
def open_page(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page without its policy, so that escaping alone is what holds."""
    html, count = re.subn(r"<meta http-equiv[^>]*>", "", hostile.read_text(encoding="utf-8"))
    assert count == 1
    path = tmp_path_factory.mktemp("open") / "page.html"
    path.write_text(html, encoding="utf-8")
    return path


def test_search_filters_and_sorting_work_and_no_text_runs_even_without_the_policy(browser: Browser, open_page: Path):
    # Four numbers below 40 hold a 7, and three more queries do by their text; mnrl answers ten more than pretrained.
    driver = """() => {
    const form = document.getElementById("explorer");
    const report = [];
    const values = () => [...document.querySelectorAll("#list button")].map((b) => b.lastChild.textContent);
    const change = (name, value) => { form[name].value = value; form.dispatchEvent(new Event("input")); };
    change("outcome", "won"); report.push(values());
    change("outcome", "lost"); report.push(values().length);
    change("a", "2"); change("b", "0"); report.push(values());
    change("outcome", "all"); change("search", "QUERY  7"); report.push(document.getElementById("matches").textContent);
    change("search", "no such words"); report.push(document.getElementById("shown").textContent);
    const table = document.querySelector("#results table");
    const heads = table.tHead.rows[0].cells;
    const column = (n) => [...table.tBodies[0].rows].map((row) => row.cells[n].firstChild.textContent);
    heads[2].firstChild.click(); report.push(heads[2].getAttribute("aria-sort"), column(2));
    heads[2].firstChild.click(); report.push(heads[2].getAttribute("aria-sort"), column(2));
    return report;
    }"""
    with opened(browser, open_page.as_uri()) as page:
        assert page.title() == "hostile · Nestling study"
        won, lost, reversed_, matches, nothing, down, falling, up, rising = page.evaluate(driver)
    assert won == ["+1.00"] * 10
    assert lost == 0
    assert reversed_ == ["−1.00"] * 10
    assert matches.startswith("7 of 40 queries")
    assert nothing == "No query matches."
    assert (down, up) == ("descending", "ascending")
    assert falling == ["0.8250", "0.7500", "0.6000", "0.5500", "0.5000"]
    assert rising == falling[::-1]
