"""report.md: the page's figures are in it, and no text of a user becomes markup of Markdown or HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from markdown_it import MarkdownIt

from fixtures.study import make_study
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.report.contents import contents
from nestling.report.page import study_markdown, write_pages
from nestling.report.page_data import load_page_data
from nestling.report.render.markdown import single_line

N = 40
HOSTILE = (
    "<img src=x onerror=alert(1)>|`x`[a](javascript:b)\n# ![c](d) **e** <!-- "
    "www.f.com https://g.h @i $j$ \x1b\u202e.csv"
)
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def share(found: int) -> list[float]:
    return [1.0] * found + [0.0] * (N - found)


FIGURES = {
    "pretrained": {Cell(64): share(20), Cell(32): share(15), Cell(16): share(10)},
    "mnrl": {Cell(64): share(30), Cell(32): share(25), Cell(16): share(18)},
    "bm25-stemmed": {None: share(22)},
}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def run(path: Path, *, dev: float = 0.6, **options: Any) -> RunFolder:
    options = {"variants": ["pretrained", "mnrl"], "dev": {"mnrl": (0.5, dev)}, "pages": False, **options}
    return make_study(path / "run", FIGURES, **options)


def markdown_of(folder: RunFolder) -> str:
    return study_markdown(contents(load_page_data(folder)), folder)


def shown(text: str) -> Tags:
    tags = Tags()
    tags.feed(PARSER.render(text))
    return tags


def test_a_hostile_source_adds_no_element_and_no_link(tmp_path: Path):
    folder = make_study(
        tmp_path / "run",
        FIGURES,
        variants=["pretrained", "mnrl"],
        dev={"mnrl": (0.5, 0.6)},
        source=HOSTILE,
        pages=False,
    )
    found = shown(markdown_of(folder))
    allowed = {
        "h1",
        "h2",
        "p",
        "ul",
        "li",
        "strong",
        "code",
        "pre",
        "br",
        "sub",
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert {tag for tag, _ in found.seen} <= allowed
    assert {name for _, attrs in found.seen for name in attrs} <= {"style", "class"}
    assert "\x1b" not in found.text
    assert "\u202e" not in found.text


def test_every_figure_of_the_tables_and_every_answer_is_in_it(tmp_path: Path):
    from nestling.report.verdict import verdict

    folder = make_study(
        tmp_path / "run", FIGURES, variants=["pretrained", "mnrl"], dev={"mnrl": (0.5, 0.6)}, pages=False
    )
    data = load_page_data(folder)
    text = shown(study_markdown(contents(data))).text
    for value in pl.read_parquet(folder.results)["value"]:
        assert f"{value:.4f}" in text
    for answer in verdict(data):
        assert f"{answer.question} {answer.word}. {single_line(answer.text)}" in text
    for title in ("Verdict", "Data", "Results", "Significance", "Training", "How to reproduce"):
        assert f"\n{title}\n" in text


def test_the_full_size_table_has_value_gain_and_interval_of_each_variant(tmp_path: Path):
    folder = make_study(
        tmp_path / "run", FIGURES, variants=["pretrained", "mnrl"], dev={"mnrl": (0.5, 0.4)}, pages=False
    )
    rows = [line for line in markdown_of(folder).splitlines() if line.startswith("| mnrl<br>")]
    # 30 of 40 against 20 of 40, and a worse figure on dev.
    assert rows[0].startswith("| mnrl<br><sub>on dev below its base</sub> | 64 | 0.7500<br><sub>")
    assert "| +50.0% | 0.3750<br>" in rows[0]


def test_slices_of_the_first_measure_are_a_table_for_each_kind(tmp_path: Path):
    folder = run(tmp_path)
    pl.DataFrame(
        [
            ("length", "1|2 words", 12, name, measure, value, 0.1, 0.9)
            for name, value in (("pretrained", 0.5), ("mnrl", 0.6), ("bm25-stemmed", 0.4))
            for measure in ("recall@10", "mrr@10")
        ],
        schema=["slice", "label", "queries", "variant", "measure", "value", "low", "high"],
        orient="row",
    ).write_parquet(folder.slices)
    text = markdown_of(folder)
    row = "| 1&#124;2 words | 12 | 0.5000 | 0.6000<br><sub>+20.0%</sub> | 0.4000<br><sub>-20.0%</sub> |"
    assert (
        f"**length**\n\n| group | queries | pretrained | mnrl | bm25-stemmed |\n|:---|---:|---:|---:|---:|\n{row}"
        in text
    )


def test_what_a_run_lacks_is_left_out(tmp_path: Path):
    folder = make_study(
        tmp_path / "bare", {"bm25": {None: share(20)}, "pretrained": {Cell(64): share(20)}}, variants=["pretrained"]
    )
    folder.slices.unlink()
    text = markdown_of(folder)
    assert "## Slices" not in text
    assert "## Training" not in text
    assert "## Significance" in text


def test_pictures_of_the_run_are_shown_where_they_are(tmp_path: Path):
    folder = run(tmp_path)
    shown_files = [folder.picture("recall@10").with_suffix(".png"), folder.curve / "curve.png"]
    folder.curve.mkdir()
    for path in shown_files:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (folder.curve / "curve.json").write_text('{"variant": "mnrl", "verdict": "more *would* help."}')
    text = markdown_of(folder)
    images = re.findall(r"!\[([^]]*)\]\(([^)]*)\)", text)
    # Of mrr@10 there is no picture.
    assert images == [
        ("recall@10 over sizes", "recall_at_10_by_dim.png"),
        ("Learning curve: curve", "curve/curve.png"),
    ]
    assert all((folder.path / target).is_file() for _, target in images)
    assert "more &#42;would&#42; help." in text


def test_an_unfinished_run_is_refused_and_leaves_no_file(tmp_path: Path):
    with pytest.raises(InputError, match="holds no finished run"):
        write_pages(RunFolder(tmp_path))
    assert not list(tmp_path.iterdir())
