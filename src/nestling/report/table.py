"""A table as a value: title, caption, headings, and cells with what they are sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell: its text, small print below it, and the value it is sorted by (its text by default)."""

    text: str
    below: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of groups (title, rows), the title empty where there is but one; the first column heads the rows.

    Columns hold numbers, but for those of `words`. A terminal shows no headings where all are empty.
    """

    caption: str
    columns: list[str]
    groups: list[tuple[str, list[list[Cell]]]]
    title: str = ""
    words: Sequence[int] = (0,)
    sortable: bool = True

    @property
    def description(self) -> str:
        """Title and caption as one text."""
        return ". ".join(filter(None, (self.title, self.caption)))

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [n not in self.words for n in range(len(self.columns))]


def row(*cells: str | Cell) -> list[Cell]:
    """Return a row of cells, of which some may be bare texts."""
    return [Cell(cell) if isinstance(cell, str) else cell for cell in cells]


def number_cell(value: float, text: str = "", below: str = "") -> Cell:
    """Return a number's cell: a count, unless `text` says how it is written."""
    return Cell(text or f"{value:,}", below, float(value))
