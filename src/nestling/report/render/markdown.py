"""Templates, tables and code as GitHub Markdown, texts escaped for Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from nestling.report.render.html import environment, without_controls
from nestling.report.table import Cell, Table

# Half a surrogate pair cannot be written as UTF-8; marks of direction reorder what stands around them.
_UNSHOWN = re.compile(r"[\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ACTIVE = re.compile(
    r"""[&<>"|\\`*\[\]~$#]"""
    # Within words an underscore does nothing, and names stay readable.
    r"|(?<![^\W_])_|_(?![^\W_])"
    # Mentions, and addresses that become links by themselves.
    r"|(?<!\w)@|:(?=//)|(?<=www)\.",
    re.IGNORECASE,
)
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def render(template: str, **values: Any) -> str:
    """Return the text of a Markdown template, where tables become tables and all texts are `escaped`."""
    templates = environment(_shown_in_markdown)
    templates.filters["fenced"] = lambda text, language: Markup(fenced(text, language))
    return templates.get_template(template).render(**values).rstrip() + "\n"


def _shown_in_markdown(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    return Markup(markdown(value) if isinstance(value, Table) else escaped(str(value)))


def markdown(table: Table) -> str:
    """Return the caption, then a Markdown table for each group under the group's title."""
    parts = [escaped(table.description)]
    head = [_row(map(escaped, table.columns)), "".join("|---:" if n else "|:---" for n in table.numeric) + "|"]
    for title, rows in table.groups:
        parts += [f"**{escaped(title)}**"] if title else []
        parts.append("\n".join([*head, *(_row(map(_cell, each)) for each in rows)]))
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Return `text` as one line that Markdown and HTML show as it is: no markup, link or table cell of its own.

    What is active in either becomes a character reference, which no parser reads as structure (CommonMark 0.31, 2.5).
    """
    return _ACTIVE.sub(lambda match: _NAMED.get(match[0], f"&#{ord(match[0])};"), single_line(text))


def single_line(text: str) -> str:
    """Return `text` on one line, not escaped; control characters, marks of direction and surrogates become U+FFFD."""
    return _showable(" ".join(text.split()))


def fenced(text: str, language: str = "") -> str:
    """Return `text` as a code block that nothing in it can end."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return "\n".join([fence + language, *map(_showable, text.splitlines()), fence])


def _showable(line: str) -> str:
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", without_controls(line))


def _cell(cell: Cell) -> str:
    below = f"<br><sub>{escaped(cell.below)}</sub>" if cell.below else ""
    return escaped(cell.text) + below


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
