"""Charts inside a page: an SVG without all that could run or load, in the page's colours, that tells its values."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"
TAGS = frozenset({"svg", "g", "path", "rect", "line", "text", "tspan", "circle", "title"})
ATTRIBUTES = frozenset(
    [
        "width",
        "height",
        "viewBox",
        "transform",
        "d",
        "fill",
        "fill-opacity",
        "stroke",
        "stroke-width",
        "stroke-dasharray",
        "stroke-opacity",
        "stroke-miterlimit",
        "opacity",
        "x",
        "y",
        "x1",
        "y1",
        "x2",
        "y2",
        "cx",
        "cy",
        "r",
        "dx",
        "dy",
        "text-anchor",
        "font-family",
        "font-size",
        "font-weight",
        "font-style",
        "role",
        "aria-hidden",
        "aria-label",
        "aria-roledescription",
        "display",
    ]
)
TOLD = frozenset({"point", "bar"})
"""Marks, as charts call them, that stand for one value and show it when pointed at."""
REPEATED = ("embedding size", "bytes a vector")
"""What labels say a second time in shorter words."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def without_controls(text: str) -> str:
    """Return `text` without the characters that neither XML nor HTML can hold."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def drawn(chart: Any) -> str:
    """Return an altair chart as SVG."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def inline(svg: str, *, name: str) -> str:
    """Return an SVG that is safe to stand in a page as it is.

    Elements and attributes that a static chart does not need are dropped: scripts, links, styles, ids and handlers.
    What is drawn in a chart's own white and ink follows the page by its style sheet, which selects by these colours.

    Args:
        name: what a screen reader calls the picture.

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
    kept.set("role", "img")
    kept.set("aria-label", name)
    kept.set("class", "chart")
    # Scaled by the style sheet; the view box keeps the shape.
    for side in ("width", "height"):
        kept.attrib.pop(side, None)
    return ElementTree.tostring(kept, encoding="unicode")


def _kept(element: ElementTree.Element) -> ElementTree.Element:
    tag = element.tag.removeprefix(f"{{{SVG}}}")
    attributes = {
        name: value for name, value in element.attrib.items() if name in ATTRIBUTES and "url(" not in value.lower()
    }
    label = attributes.pop("aria-label", "")
    described = attributes.pop("aria-roledescription", "")
    attributes.pop("role", None)
    copy = ElementTree.Element(tag, attributes)
    copy.text = element.text
    if described in TOLD and label:
        title = ElementTree.SubElement(copy, "title")
        title.text = "; ".join(dict.fromkeys(part for part in label.split("; ") if not part.startswith(REPEATED)))
        copy.set("class", "value")
    for child in element:
        if isinstance(child.tag, str) and child.tag.removeprefix(f"{{{SVG}}}") in TAGS:
            copy.append(_kept(child))
    return copy
