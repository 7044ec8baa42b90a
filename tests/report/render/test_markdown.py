"""No text becomes markup of Markdown or HTML, and every text is shown as it is."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from nestling.report.render.markdown import escaped, fenced, single_line

MARKUP = [
    "|",
    "`",
    "[a](b)",
    "<b>",
    "&amp;",
    "\\",
    "\\|",
    "*a*",
    "_a_",
    "__a__",
    "~~a~~",
    "![a](b)",
    "#",
    "$a$",
    "\n",
    "\t",
]
EXAMPLES = st.lists(st.sampled_from(MARKUP) | st.text(max_size=5), max_size=12).map("".join)
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def cells(tokens: list[Token]) -> list[Token]:
    return [token for token in tokens if token.type == "inline"]


@given(EXAMPLES)
@example("a \\| b")
@example("a\\")
@example("\ud800 \u202e \x00")
def test_an_escaped_text_in_a_table_is_one_cell_that_shows_the_text(text: str):
    found = cells(PARSER.parse(f"| h | i |\n|---|---|\n| {escaped(text)} | next |"))
    assert len(found) == 4
    children = found[2].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children) == single_line(text)
    assert found[3].content == "next"


@given(EXAMPLES)
def test_an_escaped_text_within_a_line_stays_one_paragraph_of_text(text: str):
    tokens = PARSER.parse(f"x {escaped(text)}")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children or []} <= {"text", "text_special"}
    assert "".join(child.content for child in tokens[1].children or []) == f"x {single_line(text)}".rstrip()


@given(EXAMPLES | st.text("`~\n a", max_size=20))
def test_nothing_in_a_code_block_ends_it(text: str):
    tokens = PARSER.parse(f"{fenced(text)}\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]


def test_what_a_hub_turns_into_links_or_mentions_is_broken_up():
    assert escaped("see https://a.b www.c.d @e $f$") == "see https&#58;//a.b www&#46;c.d &#64;e &#36;f&#36;"


def test_plain_names_stay_readable():
    assert escaped("static_table+matryoshka recall@10 (a-b)") == "static_table+matryoshka recall@10 (a-b)"


def test_half_a_surrogate_pair_can_be_written():
    assert escaped("a\ud800b").encode() == "a\ufffdb".encode()
