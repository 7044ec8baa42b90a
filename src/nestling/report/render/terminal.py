"""A table value as a terminal table."""

from __future__ import annotations

from rich import table as rich
from rich.padding import Padding
from rich.text import Text

from nestling.errors import clean
from nestling.report.table import Cell, Table


def terminal(table: Table) -> rich.Table:
    """Return the terminal table: title above, caption below, groups under their titles; no text is markup."""
    shown = rich.Table(
        title=Text(clean(table.title)) if table.title else None,
        caption=Text(clean(table.caption)) if table.caption else None,
        title_justify="left",
        caption_justify="left",
        show_header=any(table.columns),
    )
    for column, numeric in zip(table.columns, table.numeric, strict=True):
        # Names of variants grow by +PART, and are best broken there.
        heading = Text(clean(column).replace("+", "\n+").strip())
        minimum = 7 if numeric and "+" in column else None
        shown.add_column(heading, justify="right" if numeric else "left", overflow="fold", min_width=minimum)
    for title, rows in table.groups:
        if title:
            shown.add_section()
            shown.add_row(Text(clean(title)), style="bold")
        for row in rows:
            cells = [_cell(cell) for cell in row]
            shown.add_row(Padding(cells[0], (0, 0, 0, 2 if title else 0)), *cells[1:])
    return shown


def _cell(cell: Cell) -> Text:
    text = Text(clean(cell.text))
    if cell.below:
        text.append(f"\n{clean(cell.below)}", style="bold red" if cell.below.startswith("REGRESSION") else None)
    return text
