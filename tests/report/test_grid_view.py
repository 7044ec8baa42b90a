"""The table of a grid and the advice: order, words and stars, and costs worked out by hand."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nestling.evaluation.cells import Cell
from nestling.evaluation.recommend import KEPT, smallest
from nestling.report.grid_view import advice_lines, front_alone, grid_table
from nestling.report.render.terminal import terminal
from nestling.report.table import Table

CELLS = [
    (Cell(384), 0.80, False),
    (Cell(384, "int8"), 0.80, True),
    (Cell(192, "float16", "pca"), 0.76, False),
    (Cell(48, "int8", "trained"), 0.72, False),
    (Cell(384, "binary"), 0.70, False),
    (Cell(384, "binary", "none", 4), 0.79, True),
    (Cell(48, "binary", "pca", 10), 0.60, True),
]


def kept_of(cells: list[tuple[Cell, float, bool]]) -> pl.DataFrame:
    rows = []
    for cell, value, front in cells:
        spread = 0.0 if cell == Cell(384) else 0.01
        kept = value / 0.8
        where = (cell.dim, cell.precision, cell.rotation, cell.oversampling, cell.bytes)
        rows.append((*where, value, kept, kept - spread, kept + spread, front))
    return pl.DataFrame(rows, schema=KEPT, orient="row")


KEPT_ROWS = kept_of(CELLS)


def shown(table: Table) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(terminal(table))
    return captured.get().splitlines()


def rows_of(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_cells_stand_from_many_bytes_to_few_with_what_they_keep():
    lines = shown(grid_table(KEPT_ROWS, "recall@10", title="tuned"))
    assert lines[0].strip() == "tuned: recall@10 kept, by bytes a vector"
    assert rows_of(lines) == [
        ["1,536", "384", "float32", "0.8000", "100.0%", ""],
        ["386 *", "384", "int8", "0.8000", "100.0%", "99.0-101.0"],
        ["384 +", "192", "float16, PCA", "0.7600", "95.0%", "94.0-96.0"],
        ["50 *", "384", "binary, rescored x4", "0.7900", "98.8%", "97.8-99.8"],
        ["50 +", "48", "int8, rotated", "0.7200", "90.0%", "89.0-91.0"],
        ["50", "384", "binary", "0.7000", "87.5%", "86.5-88.5"],
        ["8 *", "48", "binary, PCA, rescored x10", "0.6000", "75.0%", "74.0-76.0"],
    ]


def test_the_front_alone_can_be_shown_with_that_of_the_cells_without_rescoring():
    lines = shown(grid_table(KEPT_ROWS, "recall@10", front_only=True))
    assert [row[0] for row in rows_of(lines)] == ["386 *", "384 +", "50 *", "50 +", "8 *"]
    assert "5 of 7 cells" in lines[0]


def test_marks_and_words_are_explained_where_they_occur():
    text = " ".join(" ".join(shown(grid_table(KEPT_ROWS, "recall@10"))).split())
    explained = ("*: no other cell", "+: no other without", "PCA: turned by", "rotated: turned before", "rescored xN")
    assert all(part in text for part in explained)
    plain = " ".join(" ".join(shown(grid_table(kept_of(CELLS[:2]), "recall@10"))).split())
    assert not any(part in plain for part in ("+:", "PCA:", "rotated:", "rescored xN"))


def test_the_front_without_rescoring_holds_what_none_beats_with_as_few_bytes():
    assert front_alone(KEPT_ROWS).to_list() == [False, True, True, True, False, False, False]


cells = st.builds(
    Cell,
    st.sampled_from([384, 192, 48]),
    st.sampled_from(["float32", "int8", "binary"]),
    st.sampled_from(["none", "pca"]),
    st.sampled_from([0, 4]),
)


@given(st.lists(st.tuples(cells, st.sampled_from([0.1, 0.5, 0.7, 0.8])), min_size=1, unique_by=lambda one: one[0]))
def test_the_smallest_cell_that_keeps_enough_is_on_the_front_without_rescoring(found: list[tuple[Cell, float]]):
    kept = kept_of([(cell, value, False) for cell, value in found])
    front = [cell for (cell, _), alone in zip(found, front_alone(kept), strict=True) if alone]
    chosen = smallest(kept, 0.8)
    assert chosen is None or chosen in front
    for cell in front:
        value = dict(found)[cell]
        assert not any(
            other.bytes <= cell.bytes and better > value for other, better in found if not other.oversampling
        )


def test_titles_cannot_inject_markup_and_all_fits_80_columns():
    wide = pl.concat([KEPT_ROWS, kept_of([(Cell(4096, "float16", "pca", 16), 0.85, False)])])
    lines = shown(grid_table(wide, "recall@10", title="[red]x[/red]"))
    assert lines[0].startswith("[red]x[/red]: ")
    assert max(map(len, lines)) <= 80
    assert any("│   8,192" in line and "105.2-107.2" in line for line in lines)


def row(kept: float, low: float, *where: object) -> dict[str, object]:
    return dict(zip(KEPT, (*where, 0.7, kept, low, 1.0, True), strict=True))


def test_advice_says_what_a_cell_keeps_and_what_it_costs():
    dev = row(0.984, 0.976, 48, "int8", "pca", 0, 50)
    test = row(0.989, 0.97, 48, "int8", "pca", 0, 50)
    assert advice_lines(dev, test, measure="recall@10", full=384, documents=1_000_000) == [
        "48 dims, int8, PCA-rotated: 50 bytes a vector, 30.7 times smaller than 1,536; "
        "keeps 98.4% of recall@10 on dev (at least 97.6%), 98.9% on test",
        "memory for 1,000,000 documents: 50.0 MB instead of 1.54 GB (1 MB is 1,000,000 bytes)",
        "a query that is compared with all of them scans 50.0 MB, 3.3% of what the full size scans",
    ]


def test_advice_on_rescoring_counts_what_is_read_from_disk():
    dev = row(0.984, 0.976, 96, "binary", "none", 4, 14)
    lines = advice_lines(dev, measure="mrr@5", full=768, documents=2_000)
    assert lines[0].endswith("219.4 times smaller than 3,072; keeps 98.4% of MRR@5 on dev (at least 97.6%)")
    assert lines[3] == ("rescoring keeps 3.07 MB of float16 embeddings on disk and reads 20 of them a query, 30.7 kB")
    assert advice_lines(dev, measure="mrr@5", full=768, documents=7)[3].endswith("reads 7 of them a query, 10.8 kB")


def test_the_full_embedding_itself_is_not_called_smaller():
    lines = advice_lines(row(1.0, 1.0, 384, "float32", "none", 0, 1536), measure="recall@10", full=384, documents=1)
    assert lines[0].startswith("384 dims, float32: 1,536 bytes a vector, no smaller than 1,536; keeps 100.0%")
    assert "100.0% of what" in lines[2]
