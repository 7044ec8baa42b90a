"""HTML of a page: the templates with escaped texts, tables, and charts as SVG that can run and load nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from importlib import resources
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SVG = "http://www.w3.org/2000/svg"
TAGS = re.compile("svg|g|path|rect|line|text|tspan|circle|title")
ATTRIBUTES = re.compile(
    "width|height|viewBox|transform|d|x|y|x1|y1|x2|y2|cx|cy|r|dx|dy|opacity|display|aria-hidden|"
    "fill|fill-opacity|stroke|stroke-width|stroke-dasharray|stroke-opacity|stroke-miterlimit|"
    "text-anchor|font-family|font-size|font-weight|font-style"
)
VALUES = frozenset({"point", "bar"})
"""Marks, as charts call them, that stand for one value and show it when pointed at."""
REPEATED = ("embedding size", "bytes a vector")
"""Parts of labels and their shorter words."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def environment(finalize: Callable[[Any], Any]) -> Environment:
    """Return the templates, escaping every text; `finalize` makes a value ready to be written."""
    return Environment(
        loader=PackageLoader("nestling.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )


def render(template: str, **values: Any) -> str:
    """Return a page with its style and the only script that may run in it; texts are escaped."""
    pages = environment(lambda value: without_controls(value) if type(value) is str else value)
    files = resources.files("nestling.report") / "templates"
    style, script = ((files / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return pages.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def without_controls(text: str) -> str:
    """Return `text` without the characters that neither XML nor HTML can hold."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def shortened(text: str, length: int) -> str:
    """Return `text` in `length` characters at most, with an ellipsis where it was cut."""
    text = without_controls(text)
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def picture(chart: Any, *, name: str) -> Markup:
    """Return an altair chart as SVG that stands in a page; `name` as in `inline`."""
    import vl_convert

    return inline(str(vl_convert.vegalite_to_svg(chart.to_dict())), name=name)


def inline(svg: str, *, name: str) -> Markup:
    """Return an SVG that is safe to stand in a page as it is, and that a screen reader calls by its `name`.

    Elements and attributes that a static chart does not need are dropped: scripts, links, styles, ids and handlers.
    What is drawn in a chart's own white and ink follows the page by its style sheet, which selects by these colours.

    Raises:
        ValueError: it is no well-formed SVG.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"no well-formed SVG: {error}") from None
    if root.tag != f"{{{SVG}}}svg":
        raise ValueError(f"no SVG, but {root.tag}")
    kept = _kept(root)
    kept.attrib |= {"role": "img", "aria-label": name, "class": "chart"}
    # Scaled by the style sheet; the view box keeps the shape.
    for side in ("width", "height"):
        kept.attrib.pop(side, None)
    return Markup(ElementTree.tostring(kept, encoding="unicode"))


def _kept(element: ElementTree.Element) -> ElementTree.Element:
    safe = {
        name: value
        for name, value in element.attrib.items()
        if ATTRIBUTES.fullmatch(name) and "url(" not in value.lower()
    }
    copy = ElementTree.Element(element.tag.removeprefix(f"{{{SVG}}}"), safe)
    copy.text, label = element.text, element.get("aria-label", "")
    if element.get("aria-roledescription") in VALUES and label:
        copy.set("class", "value")
        title = ElementTree.SubElement(copy, "title")
        title.text = "; ".join(dict.fromkeys(part for part in label.split("; ") if not part.startswith(REPEATED)))
    for child in element:
        if isinstance(child.tag, str) and TAGS.fullmatch(child.tag.removeprefix(f"{{{SVG}}}")):
            copy.append(_kept(child))
    return copy
