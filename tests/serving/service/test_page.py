"""The search page in a browser: two ways side by side, what shrinking does, and hostile texts that stay texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2 as httpx
import polars as pl
import pytest

from fixtures.browser import opened
from fixtures.served import Shop, make_service, serving, write_index
from nestling.cli.serve import read_key
from nestling.judgments.split_files import read_split
from nestling.serving.service.app import load_page
from nestling.serving.service.compare import read_judged
from nestling.serving.service.served import Source

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
expect = pytest.importorskip("playwright.sync_api").expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = [
    "<img src=x onerror=\"document.title='broken'\"> hammer",
    "</script><script>document.title='broken'</script> hammer",
    "hammer \u202e rtl \u0000 " + "W" * 3_000,
]


@pytest.fixture(scope="module")
def server(light_shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    frame, model = light_shop.frame, light_shop.model
    odd = pl.DataFrame({name: [f"{text} {name}" for text in HOSTILE] for name in frame.columns})
    write_index(folder / "shop", pl.concat([frame, odd]), model)
    write_index(folder / "words", frame[:100], model, bm25=False)
    sources = Source("shop", folder / "shop"), Source("<b>second</b>", folder / "words")
    with serving(make_service(*sources, judged=read_judged(light_shop.split))) as url:
        yield url


@pytest.fixture(scope="module")
def judged(light_shop: Shop) -> str:
    frame = read_split(light_shop.split).test.frame
    return str(frame.filter(frame["score"] > 2.5)["query"][0])


def ask(page: Page, query: str) -> None:
    expect(page.locator(".side")).to_have_count(2)
    page.get_by_role("combobox", name="Query").fill(query)
    page.keyboard.press("Enter")
    settled(page)


def settled(page: Page) -> None:
    expect(page.locator("#sides")).to_have_attribute("aria-busy", "false")


def column(page: Page, number: int) -> list[str]:
    return page.locator(".side").nth(number).locator(".top .text").all_inner_texts()


def test_a_query_is_answered_in_two_ways_with_moves_between_them(browser: Browser, server: str):
    with opened(browser, server) as page:
        ask(page, "white claw hammer steel")
        left, right = column(page, 0), column(page, 1)
        assert (len(left), len(right)) == (10, 10)
        assert left != right
        moves = page.locator(".side").nth(1).locator(".move").all_inner_texts()
        for text, move in zip(right, moves, strict=True):
            by = left.index(text) - right.index(text) if text in left else None
            assert move == ("new" if by is None else "=" if not by else f"↑{by}" if by > 0 else f"↓{-by}")
        same = len(set(left) & set(right))
        assert (
            page.locator("#status").inner_text().startswith(f"{same} of 10 results of the right are in the left too.")
        )
        figures = page.locator(".figures").all_inner_texts()
        # Both halves stored as float32: 32 dims as served, 8 dims on the right.
        assert "128 bytes a document" in figures[0]
        assert "32 bytes a document" in figures[1]
        assert all(re.match(r"[\d.]+ ms \(search [\d.]+\)", line) for line in figures)


def test_the_same_way_on_both_sides_gives_the_same_list(browser: Browser, server: str):
    with opened(browser, server) as page:
        ask(page, "hammer")
        page.get_by_label("Size").nth(1).select_option("as served")
        page.get_by_label("Mode").nth(1).select_option("fused")
        settled(page)
        assert column(page, 0) == column(page, 1)
        assert set(page.locator(".side").nth(1).locator(".move").all_inner_texts()) == {"="}


def test_the_slider_sets_the_size_and_tells_what_is_kept(browser: Browser, server: str):
    with opened(browser, server) as page:
        ask(page, "claw hammer")
        answer = httpx.post(f"{server}sizes", json={"query": "claw hammer"}).json()
        rows = page.locator("#sizes li")
        shown = [rows.nth(n).inner_text().split() for n in range(rows.count())]
        assert [(row[0], row[2]) for row in shown] == [(str(s["dim"]), f"{s['recall']:.2f}") for s in answer["sizes"]]
        page.get_by_role("slider").focus()
        page.keyboard.press("Home")
        expect(rows.nth(0)).to_have_attribute("aria-current", "true")
        settled(page)
        assert page.get_by_label("Size").nth(1).input_value() == "32"
        page.keyboard.press("ArrowRight")
        expect(rows.nth(1)).to_have_attribute("aria-current", "true")
        settled(page)
        assert page.get_by_label("Size").nth(1).input_value() == "16"
        assert page.locator("#dim-value").inner_text() == "16 dims"


def test_a_judged_query_is_suggested_and_its_relevant_documents_are_marked(
    browser, server, light_shop: Shop, judged: str
):
    with opened(browser, server) as page:
        expect(page.locator("#judged option")).to_have_count(len(httpx.get(f"{server}queries").json()["queries"]))
        assert judged in page.eval_on_selector_all("#judged option", "all => all.map(one => one.value)")
        ask(page, judged)
        frame = read_split(light_shop.split).test.frame
        relevant = frame.filter((frame["query"] == judged) & (frame["score"] > 2.5))["document"].to_list()
        for number in (0, 1):
            marked = page.locator(".side").nth(number).locator(".text.relevant").all_inner_texts()
            assert marked == [text for text in column(page, number) if text in relevant]
        assert page.locator(".mark").count() > 0
        assert "judged" in page.locator("#status").inner_text()
        assert "judged relevant documents" in page.locator("#against").inner_text()


def test_hostile_texts_names_and_queries_are_shown_as_they_are(browser: Browser, server: str):
    with opened(browser, server) as page:
        for text in HOSTILE:
            ask(page, f"{text.split()[0]} hammer {text[:60]} document")
        assert page.title() == "Nestling search"
        assert page.locator("main img, .top script, .top b").count() == 0
        assert any("<img src=x" in text or "</script>" in text for text in column(page, 0))
        assert "<b>second</b> (table)" in page.get_by_label("Index").first.inner_text()
        page.goto(f"{server}?q=%3Cscript%3Edocument.title%3D1%3C/script%3E")
        settled(page)
        assert page.title() == "Nestling search"


def test_another_index_offers_what_it_has(browser: Browser, server: str):
    with opened(browser, server) as page:
        ask(page, "hammer")
        page.get_by_label("Index").nth(1).select_option("<b>second</b>")
        expect(page.get_by_label("Mode").nth(1).locator("option")).to_have_text(["dense"])
        settled(page)
        assert page.locator("#against").inner_text().endswith("of <b>second</b>, vectors alone.")


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_and_every_control_is_reached_by_key(browser: Browser, server: str, judged: str, width: int):
    with opened(browser, server, width=width) as page:
        ask(page, judged)
        ask(page, HOSTILE[2][:200])
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (sum(paper[:3]) < 180) == (scheme == "dark")
        page.locator("body").focus()
        page.evaluate("document.activeElement.blur()")
        reached = set()
        for _ in range(16):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline not in ("none", "") or page.evaluate("document.activeElement === document.body")
        assert {"query", "BUTTON", "SELECT", "dim"} <= reached


def test_where_a_key_is_set_the_page_asks_for_it_and_keeps_it_to_itself(browser, light_shop: Shop, monkeypatch):
    # With the line end of a file that it was read from.
    monkeypatch.setenv("NESTLING_API_KEY", "s3cret\n")
    with serving(make_service(Source("shop", light_shop.folder)), key=read_key()) as locked:
        assert httpx.get(f"{locked}indexes").status_code == 401
        page = browser.new_page()
        page.goto(locked)
        field = page.get_by_label("Key of this server")
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#status.bad")).to_have_text("The key is wrong.")
        assert page.locator(".side").count() == 0
        field.fill(" s3cret")
        page.keyboard.press("Enter")
        expect(field).to_be_hidden()
        ask(page, "hammer")
        assert len(column(page, 0)) == 10
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert "s3cret" not in page.content()
        page.reload()
        expect(field).to_be_visible()
        page.close()


def test_the_policy_lets_nothing_but_the_pages_own_script_and_style_run(server: str):
    answer = httpx.get(server)
    policy = answer.headers["Content-Security-Policy"]
    assert answer.content == load_page().body
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in re.sub(r"https?-equiv", "", answer.text.split("<script>")[0].split("</style>")[1])


def test_an_error_of_the_server_is_shown_and_the_page_goes_on(browser: Browser, server: str):
    with opened(browser, server) as page:
        page.route("**/compare", lambda route: route.fulfill(status=200, body="oops"))
        ask(page, "hammer")
        assert page.locator("#status.bad").inner_text() == "The server's answer (200) cannot be read."
        page.unroute("**/compare")
        ask(page, "hammer")
        assert len(column(page, 0)) == 10
