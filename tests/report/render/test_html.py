"""Pictures inside the page: values can be read, and nothing that runs, loads or clashes gets in."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.report.render.html import SVG, inline, shortened

HOSTILE = f"""<svg xmlns="{SVG}" xmlns:xlink="http://www.w3.org/1999/xlink" width="10" height="20" viewBox="0 0 10 20"
 onload="alert(1)"><script>alert(2)</script><style>* {{ fill: red }}</style>
<a xlink:href="javascript:alert(3)"><text>link</text></a>
<foreignObject><body xmlns="http://www.w3.org/1999/xhtml"><img src="x" onerror="alert(4)"/></body></foreignObject>
<image href="https://example.org/x.png"/><use href="#x"/>
<g id="x" style="fill: red" fill="URL(#y)" onclick="alert(5)"><text x="1">&lt;b&gt; &amp; kept</text></g>
<path aria-label="embedding size (dims, log scale): 48; recall@10: 0.71; dim: 48; dim: 48" d="M0,0h1"
 aria-roledescription="point"/></svg>"""


@pytest.fixture
def picture() -> ElementTree.Element:
    return ElementTree.fromstring(inline(HOSTILE, name='"a" <b>'))


def test_only_drawing_is_kept(picture: ElementTree.Element):
    tags = {element.tag.rpartition("}")[2] for element in picture.iter()}
    assert tags == {"svg", "g", "text", "path", "title"}
    names = {name for element in picture.iter() for name in element.attrib}
    assert names == {"viewBox", "role", "aria-label", "class", "x", "d"}
    assert "alert" not in ElementTree.tostring(picture, encoding="unicode")


def test_texts_stay_texts(picture: ElementTree.Element):
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert texts == ["<b> & kept"]
    assert picture.get("aria-label") == '"a" <b>'


def test_a_mark_tells_its_values_once(picture: ElementTree.Element):
    (title,) = [element.text for element in picture.iter() if element.tag.endswith("title")]
    assert title == "recall@10: 0.71; dim: 48"


def test_what_is_no_svg_is_refused():
    with pytest.raises(ValueError, match="no well-formed SVG"):
        inline("<svg", name="")
    with pytest.raises(ValueError, match="no SVG, but html"):
        inline("<html/>", name="")


@given(st.text(), st.integers(1, 30))
def test_a_shortened_text_has_the_length_asked_for(text: str, length: int):
    short = shortened(text, length)
    assert len(short) <= length
    assert len(text) <= length or short.endswith("…")
