"""A split's summary as a terminal table."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table


def split_table(summary: dict[str, Any]) -> Table:
    """Return sizes and shares by side, with the method and what was dropped below.

    Args:
        summary: what `summarise` says of a split.
    """
    dropped = f"{summary['dropped']:,} records dropped to keep the sides apart"
    caption = f"by {summary['method']}: {summary['reason']}; {dropped}; {summary['promise']}"
    table = Table(title=escape(summary["source"]), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("side")
    for name in ("records", "share", "asked", "queries", "documents"):
        table.add_column(name, justify="right")
    for name, side in summary["sides"].items():
        table.add_row(
            name,
            f"{side['records']:,}",
            f"{summary['reached'][name]:.1%}",
            f"{summary['asked'][name]:.1%}",
            f"{side['queries']:,}",
            f"{side['documents']:,}",
        )
    return table
