"""A table as a value: title, caption, headings, and cells with what they are sorted by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What a cell shows, in small print below it what goes with it, and what it is sorted by (its text by default)."""

    text: str
    below: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: the first column heads its rows; `numeric` says of each column whether it holds numbers.

    Attributes:
        groups: (title, rows); the title is empty where there is but one group.
        title: what it is of, which pages show before the caption and terminals above the table.
    """

    caption: str
    columns: list[str]
    numeric: list[bool]
    groups: list[tuple[str, list[list[Cell]]]]
    sortable: bool = True
    title: str = ""

    @property
    def told(self) -> str:
        """Title and caption as one text."""
        return ". ".join(filter(None, (self.title, self.caption)))
