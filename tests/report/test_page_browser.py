"""The page in a browser, as its readers use it: by keyboard, in the dark, on a phone and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures.browser import opened
from fixtures.study import make_study
from nestling.evaluation.cells import Cell
from nestling.report.page import write_pages

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

N = 40


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def share(found: int) -> list[float]:
        return [1.0] * found + [0.0] * (N - found)

    texts = [f"query {i} {'wide ' * 3 if i else 'W' * 10_000} \u202e🔩" for i in range(N)]
    figures = {
        "pretrained": {Cell(64): share(20), Cell(16): share(10)},
        "mnrl": {Cell(64): share(30), Cell(16): share(18), Cell(64, "int8"): share(29)},
    }
    folder = make_study(
        tmp_path_factory.mktemp("runs") / "study",
        figures,
        variants=["pretrained", "mnrl"],
        dev={"mnrl": (0.5, 0.6)},
        queries=texts,
        documents=texts,
    )
    return write_pages(folder)


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.textContent.trim().slice(0, 40)"))


def luminance(colour: list[float]) -> float:
    """Relative luminance of sRGB as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Page, selector: str) -> float:
    read = "s => getComputedStyle(document.querySelector(s))"
    ink = page.evaluate(f"s => ({read})(s).color.match(/[\\d.]+/g).slice(0, 3).map(Number)", selector)
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)")
    high, low = sorted((luminance(ink), luminance(paper[:3])), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_by_keyboard_alone_one_sorts_a_table_and_opens_a_query(browser: Browser, report: Path):
    with opened(browser, report.as_uri()) as page:
        page.keyboard.press("Tab")
        assert focused(page) == "To the verdict"
        page.keyboard.press("Enter")
        page.wait_for_url("**#verdict")
        heading = page.locator("#results table thead th").nth(1)
        heading.locator("button").focus()
        page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "descending"
        page.keyboard.press("Space")
        assert heading.get_attribute("aria-sort") == "ascending"
        page.locator("#explorer input[type=search]").focus()
        page.keyboard.type("QUERY")
        for _ in range(4):
            page.keyboard.press("Tab")
        page.keyboard.press("ArrowRight")
        assert page.locator("input[name=outcome]:checked").get_attribute("value") == "won"
        assert page.locator("#list button").count() == 10
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        second = page.locator("#list button bdi").nth(1).inner_text()
        assert focused(page).startswith(second[:20])
        page.keyboard.press("Enter")
        assert page.locator("#shown h3").inner_text() == second
        assert page.locator("#list button[aria-current]").count() == 1


def test_every_control_shows_where_the_focus_is(browser: Browser, report: Path):
    with opened(browser, report.as_uri()) as page:
        seen, focus = 0, "document.activeElement"
        for _ in range(60):
            page.keyboard.press("Tab")
            outline, left = page.evaluate(f"() => [getComputedStyle({focus}).outlineStyle, {focus} === document.body]")
            if left:
                break
            assert outline not in ("none", ""), focused(page)
            seen += 1
        assert seen > 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_paper_in_light_and_dark(browser: Browser, report: Path, scheme: str):
    with opened(browser, report.as_uri(), color_scheme=scheme) as page:
        paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(paper[:3]) < 3 * 60) == (scheme == "dark")
        # 4.5 is what WCAG 2 asks of body text at level AA.
        for selector in ("p", ".note", "a", "td", ".verdict strong", "caption"):
            assert contrast(page, selector) >= 4.5, selector


@pytest.mark.parametrize("width", [390, 1280])
def test_no_text_pushes_the_page_wider_than_the_screen(browser: Browser, report: Path, width: int):
    with opened(browser, report.as_uri(), width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.locator("#list button").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_on_paper_the_controls_are_gone_and_the_tables_are_whole(browser: Browser, report: Path):
    with opened(browser, report.as_uri()) as page:
        page.emulate_media(media="print")
        for selector in ("nav", "#explorer", "#explored"):
            assert not page.locator(selector).first.is_visible(), selector
        for selector in (".verdict", "#results table", "#reproduce"):
            assert page.locator(selector).first.is_visible(), selector
        assert page.pdf(format="A4").startswith(b"%PDF")
