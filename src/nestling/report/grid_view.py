"""The grid of sizes and precisions for people: a terminal table of its cells, and lines that advise one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from rich.markup import escape
from rich.table import Table

from nestling.report.tables import label

FULL_BYTES, STORED_BYTES = 4, 2
"""Bytes a dim: of the full embedding in float32, and in float16, which is what rescoring reads."""
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
FRONT, ALONE = "*", "+"


def grid_table(kept: pl.DataFrame, measure: str, *, title: str | None = None, front_only: bool = False) -> Table:
    """Return the terminal table of a grid: a line a cell, largest first, the Pareto front starred.

    Where cells are rescored too, a plus marks those that are on the front of the cells without rescoring alone.

    Args:
        kept: columns as `evaluation.advice.KEPT`.
        measure: which it is of.
        title: what stands before the title, say a variant's name.
        front_only: leave out all cells but those on either front.
    """
    marked = kept.with_columns(
        pl.when("front")
        .then(pl.lit(FRONT))
        .when(front_alone(kept))
        .then(pl.lit(ALONE))
        .otherwise(pl.lit(" "))
        .alias("mark")
    )
    shown = marked.filter(pl.col("mark") != " ") if front_only else marked
    some = f"; {shown.height} of {kept.height} cells" if front_only else ""
    table = Table(
        title=(f"{escape(title)}: " if title else "") + f"{escape(label(measure))} kept, by bytes a vector{some}",
        caption=_legend(shown),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("dims", justify="right", no_wrap=True)
    table.add_column("stored as")
    table.add_column(escape(label(measure)), justify="right")
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    order = shown.sort("bytes", "value", "dim", "oversampling", descending=[True, True, True, False])
    for row in order.iter_rows(named=True):
        low, high = row["kept_low"], row["kept_high"]
        table.add_row(
            f"{row['bytes']:,} {row['mark']}",
            f"{row['dim']:,}",
            stored_as(row["precision"], row["rotation"], row["oversampling"]),
            f"{row['value']:.4f}",
            share(row["kept"]),
            # Alike on every query, as the full embedding and itself: then there is none.
            f"{100 * low:.1f}-{100 * high:.1f}" if low < high else "",
        )
    return table


def advice_lines(
    dev: Mapping[str, Any],
    test: Mapping[str, Any] | None = None,
    *,
    measure: str,
    full: int,
    documents: int,
) -> list[str]:
    """Return what a chosen cell keeps and costs: a sentence, then a line each on memory, on scanning and on rescoring.

    Sizes are in decimal units (1 MB is 1,000,000 bytes) and of the vectors alone: ids and texts come on top.

    Args:
        dev: the cell's row of `evaluation.advice.KEPT` on the side that it was chosen on.
        test: its row on the side that nothing was chosen on; None leaves that out.
        measure: as in `recall@10`; rescoring fetches candidates for as many results as stand behind its @.
        full: the model's own size in dims.
        documents: how many there are.

    Raises:
        ValueError: `full` or `documents` is below 1.
    """
    if full < 1 or documents < 1:
        raise ValueError(f"full and documents must be 1 or more, not {full} and {documents}")
    small, whole = int(dev["bytes"]), FULL_BYTES * full
    cell = f"{dev['dim']:,} dims, {stored_as(dev['precision'], dev['rotation'], dev['oversampling'], long=True)}"
    times = f"{whole / small:.1f}"
    smaller = f"{times} times smaller than {whole:,}" if small < whole else f"no smaller than {whole:,}"
    on_test = "" if test is None else f", {share(test['kept'])} on test"
    lines = [
        f"{cell}: {small:,} bytes a vector, {smaller}; keeps {share(dev['kept'])} of {label(measure)} on dev "
        f"(at least {share(dev['kept_low'])}){on_test}",
        f"memory for {documents:,} documents: {size(small * documents)} instead of {size(whole * documents)} "
        "(1 MB is 1,000,000 bytes)",
        f"a query that is compared with all of them scans {size(small * documents)}, "
        f"{small / whole:.1%} of what the full size scans",
    ]
    if dev["oversampling"]:
        candidates = min(documents, dev["oversampling"] * int(measure.partition("@")[2]))
        stored = STORED_BYTES * full
        lines.append(
            f"rescoring keeps {size(stored * documents)} of float16 embeddings on disk and reads "
            f"{candidates:,} of them a query, {size(stored * candidates)}"
        )
    return lines


def stored_as(precision: str, rotation: str, oversampling: int, *, long: bool = False) -> str:
    """Return in words how a cell stores embeddings: `int8, PCA, rescored x4`; `long` says `PCA-rotated`."""
    rotated = {"none": "", "pca": "PCA-rotated" if long else "PCA", "trained": "rotated"}.get(rotation, rotation)
    return ", ".join(filter(None, (precision, rotated, f"rescored x{oversampling}" if oversampling else "")))


def share(value: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{value:.1%}"


def size(n_bytes: float) -> str:
    """Return a number of bytes in decimal units with three digits: `50 B`, `1.54 kB`, `30.7 MB`, `154 GB`."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    value, unit = float(n_bytes), 0
    # 999,950 is 1.00 MB, as 1000 kB is no figure of three digits.
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {UNITS[unit]}"


def front_alone(kept: pl.DataFrame) -> pl.Series:
    """Return which cells no other cell without rescoring beats in quality with as few bytes, a bool a row."""
    ordered = kept.with_row_index("row").filter(pl.col("oversampling") == 0)
    ordered = ordered.sort("bytes", "value", "rotation", descending=[False, True, False])
    best_before = pl.col("value").cum_max().shift(1, fill_value=-1.0)
    rows = ordered.filter(pl.col("value") > best_before)["row"].to_list()
    return pl.Series("alone", [row in set(rows) for row in range(kept.height)], dtype=pl.Boolean)


def _legend(shown: pl.DataFrame) -> str:
    parts = [
        "kept: share of the full float32 embedding's quality, with its 95% interval",
        f"{FRONT}: no other cell is better with as few bytes",
    ]
    if (shown["mark"] == ALONE).any():
        parts.append(f"{ALONE}: no other without rescoring is")
    if (shown["rotation"] == "trained").any():
        parts.append("rotated: turned before it is cut, so that prefixes rank like the whole")
    if (shown["rotation"] == "pca").any():
        parts.append("PCA: turned by its principal axes before it is cut")
    if (shown["oversampling"] > 0).any():
        parts.append("rescored xN: N times as many candidates, scored by the full embedding from disk")
    return "; ".join(parts)
