"""The grid of sizes and precisions for people: a table of its cells, and lines that advise one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from nestling.report.format import label, size, stored_as
from nestling.report.table import Table, row

FULL_BYTES, STORED_BYTES = 4, 2
"""Bytes a dim: of the full embedding in float32, and in float16, which is what rescoring reads."""
FRONT, ALONE = "*", "+"


def grid_table(kept: pl.DataFrame, measure: str, *, title: str | None = None, front_only: bool = False) -> Table:
    """Return the table of a grid (columns as `evaluation.recommend.KEPT`): a line a cell, largest first.

    Marked are the Pareto front, and that of the cells without rescoring alone; `front_only` leaves out all others.
    """
    mark = pl.when("front").then(pl.lit(FRONT)).when(front_alone(kept)).then(pl.lit(ALONE)).otherwise(pl.lit(" "))
    shown = kept.with_columns(mark.alias("mark")).filter((pl.col("mark") != " ") | (not front_only))
    body = []
    order = shown.sort("bytes", "value", "dim", "oversampling", descending=[True, True, True, False])
    for cell in order.iter_rows(named=True):
        low, high = cell["kept_low"], cell["kept_high"]
        body.append(
            row(
                f"{cell['bytes']:,} {cell['mark']}",
                f"{cell['dim']:,}",
                stored_as(cell["precision"], cell["rotation"], cell["oversampling"]),
                f"{cell['value']:.4f}",
                f"{cell['kept']:.1%}",
                # Equal on every query, as the full embedding and itself: then there is none.
                f"{100 * low:.1f}-{100 * high:.1f}" if low < high else "",
            )
        )
    count = f"; {shown.height} of {kept.height} cells" if front_only else ""
    title = (f"{title}: " if title else "") + f"{label(measure)} kept, by bytes a vector{count}"
    columns = ["bytes", "dims", "stored as", label(measure), "kept", "interval"]
    return Table(_legend(shown), columns, [("", body)], title=title, words=(2,))


def advice_lines(
    dev: Mapping[str, Any],
    test: Mapping[str, Any] | None = None,
    *,
    measure: str,
    full: int,
    documents: int,
) -> list[str]:
    """Return what a chosen cell keeps and costs: a sentence, then a line each on memory, on scanning and on rescoring.

    Sizes are of the vectors alone: ids and texts come on top.

    Args:
        dev: the cell's row of `evaluation.recommend.KEPT` on the side that it was chosen on.
        measure: rescoring fetches candidates for as many results as stand behind its @.
        full: the model's own size in dims.
    """
    small, whole = int(dev["bytes"]), FULL_BYTES * full
    cell = f"{dev['dim']:,} dims, {stored_as(dev['precision'], dev['rotation'], dev['oversampling'], long=True)}"
    smaller = f"{whole / small:.1f} times smaller than {whole:,}" if small < whole else f"no smaller than {whole:,}"
    on_test = "" if test is None else f", {test['kept']:.1%} on test"
    lines = [
        f"{cell}: {small:,} bytes a vector, {smaller}; keeps {dev['kept']:.1%} of {label(measure)} on dev "
        f"(at least {dev['kept_low']:.1%}){on_test}",
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


def front_alone(kept: pl.DataFrame) -> pl.Series:
    """Return which cells no other cell without rescoring beats in quality with as few bytes, a bool a row."""
    rows = kept.with_row_index("row")
    ordered = rows.filter(oversampling=0).sort("bytes", "value", "rotation", descending=[False, True, False])
    best_before = pl.col("value").cum_max().shift(1, fill_value=-1.0)
    front = ordered.filter(pl.col("value") > best_before)["row"]
    return rows.select(pl.col("row").is_in(front.implode()).alias("alone")).to_series()


def _legend(shown: pl.DataFrame) -> str:
    marks, rotations, rescored = (set(shown[name]) for name in ("mark", "rotation", "oversampling"))
    parts = (
        ("kept: share of the full float32 embedding's quality, with its 95% interval", True),
        (f"{FRONT}: no other cell is better with as few bytes", True),
        (f"{ALONE}: no other without rescoring is", ALONE in marks),
        ("rotated: turned before it is cut, so that prefixes rank like the whole", "trained" in rotations),
        ("PCA: turned by its principal axes before it is cut", "pca" in rotations),
        ("rescored xN: N times as many candidates, scored by the full embedding from disk", any(rescored)),
    )
    return "; ".join(text for text, applies in parts if applies)
