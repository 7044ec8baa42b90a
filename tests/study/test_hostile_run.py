"""Hostile product and query text goes through a whole run, and what comes out of it runs nothing anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures.browser import opened
from nestling.config.yaml_files import make_experiment
from nestling.study import run as pipeline
from nestling.study.run import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MARK = "document.title='RAN'"
TEXTS = (
    f"<script>{MARK}</script>",
    f"</script><script>{MARK}</script>",
    f'<img src=x onerror="{MARK}">',
    f"\"' onmouseover='{MARK}' x=\"",
    "=HYPERLINK('http://example.org') +1 -2 @3",
    "abc \u202eright to left\u202c \u200f \u2028",
    "drill 🛠️🔩 " + "x" * 10_000,
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; |`code`| [a](javascript:alert(1))",
    "bell \x07 escape \x1b[31m",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Run:
    folder = tmp_path_factory.mktemp("hostile")
    path = folder / "judged.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(120):
            text = TEXTS[n % len(TEXTS)]
            row = {"query": f"{text} query {n}", "document": f"{text} product {n}", "score": 3 if n % 3 else 1}
            file.write(json.dumps(row) + "\n")
    values = {
        "name": "hostile",
        "model": str(tiny_model_path),
        "data": {"source": str(path), "threshold": 2.5},
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
        "variants": ["pretrained", "mnrl"],
        "evaluation": {"dims": [32, 8]},
    }
    return pipeline.run(make_experiment(values), runs=folder / "runs")


def test_the_page_of_the_run_shows_the_texts_and_runs_none_of_them(browser: Browser, done: Run):
    with opened(browser, done.report.as_uri()) as page:
        assert page.title() == "hostile · Nestling study"
        assert page.locator("#list button").count() > 10
        page.fill("#explorer input[type=search]", "onerror")
        page.locator("#list button").first.click()
        assert "<img src=x onerror=" in page.locator("#shown h3").inner_text()
        assert page.locator("main img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 1280
        assert page.title() == "hostile · Nestling study"


def test_its_markdown_and_cards_hold_no_markup_of_the_texts(done: Run):
    for path in (done.folder / "report.md", done.folder / "models" / "mnrl" / "README.md"):
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert "<img" not in text
        assert "\x1b" not in text
