"""Advice from the grid: the share of full quality that cells keep, the Pareto front, the smallest that keeps enough."""

from __future__ import annotations

import polars as pl

from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.evaluation.grid import CELL
from nestling.evaluation.significance import RESAMPLES, compare_all

MANY = 50
"""Of more cells than this the smallest that keeps enough is likely one that was lucky, so it is chosen strictly."""

KEPT = {**CELL, **dict.fromkeys(("value", "kept", "kept_low", "kept_high"), pl.Float64), "front": pl.Boolean}


def kept_by(per_query: pl.DataFrame, measure: str, *, resamples: int = RESAMPLES) -> pl.DataFrame:
    """Return what share of the quality of the full embedding, the largest plain float32 cell, each cell keeps.

    Takes `System.per_query` of one model. Returns a row for each cell, columns as `KEPT`: `kept` is the mean over the
    full embedding's mean, with its interval of 95 % over queries; `front` marks the cells that no other beats in
    quality with as few bytes. Of cells equal in both, the one without rescoring, then without rotation, is on it.
    """
    tables = per_query.partition_by(list(CELL), maintain_order=True, as_dict=True)
    cells = {Cell(*row[:4]): table[measure].to_numpy() for row, table in tables.items()}
    plain = [cell for cell in cells if cell == Cell(cell.dim)]
    if not plain:
        raise InputError("what a cell keeps is counted from the full embedding in float32; add float32 to the grid")
    full = max(plain)
    base = float(cells[full].mean())
    if base == 0:
        raise InputError(f"the full embedding has {measure} 0, so nothing can be kept of it")
    bounds = {str(full): (0.0, 0.0)}
    if len(cells) > 1:
        series = {str(cell): values for cell, values in cells.items()}
        compared = compare_all(series, reference=str(full), resamples=resamples)
        bounds |= {row["b"]: (row["low"], row["high"]) for row in compared.iter_rows(named=True)}
    rows = []
    for cell, values in cells.items():
        low, high = bounds[str(cell)]
        value = float(values.mean())
        rows.append((*cell.row, value, value / base, 1 + low / base, 1 + high / base, False))
    table = pl.DataFrame(rows, schema=KEPT, orient="row").with_row_index("row")
    ordered = _plainest_first(table)
    best_before = ordered["value"].cum_max().shift(1, fill_value=-1.0)
    front = ordered.filter(ordered["value"] > best_before + 1e-12)["row"]
    return table.with_columns(pl.col("row").is_in(front.implode()).alias("front")).drop("row")


def smallest(kept: pl.DataFrame, keep: float, *, strict: bool = False, rescored: bool = False) -> Cell | None:
    """Return the cell of the fewest bytes that keeps a share of full quality, the best of equal ones, or None.

    With `strict` the interval's lower end must reach `keep`, not the share itself; with `rescored` cells may rescore,
    and so need the full embedding on disk.
    """
    enough = kept.filter(pl.col("kept_low" if strict else "kept") >= keep - 1e-12)
    if not rescored:
        enough = enough.filter(pl.col("oversampling") == 0)
    return None if enough.is_empty() else cell_of(_plainest_first(enough).row(0, named=True))


def cell_of(row: dict[str, object]) -> Cell:
    """Return the cell that a row of any of these tables is of."""
    return Cell(*(row[name] for name in list(CELL)[:4]))  # type: ignore[arg-type]


def _plainest_first(table: pl.DataFrame) -> pl.DataFrame:
    """Sort cells by bytes, then falling quality, then rescoring and rotation."""
    # The same figures added up in another order differ in the last bit, and are equal.
    by = (pl.col("bytes"), -pl.col("value").round(12), pl.col("oversampling"), pl.col("rotation"))
    return table.sort(*by, maintain_order=True)
