"""What is kept, the Pareto front and the smallest cell: made-up tables, worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.evaluation.grid import CELL
from nestling.evaluation.recommend import KEPT, cell_of, kept_by, smallest

FULL = Cell(8)
# Cell: (bytes, quality in quarters of four queries). Full quality is 3/4.
QUALITY: dict[Cell, list[float]] = {
    FULL: [1, 1, 1, 0],
    Cell(8, "float16"): [1, 1, 1, 0],
    Cell(8, "float16", "pca"): [1, 1, 1, 1],
    Cell(4, "float32"): [1, 1, 0, 0],
    Cell(2, "float32"): [1, 0, 0, 0],
    Cell(2, "float32", "none", 4): [1, 1, 1, 0],
    Cell(2, "float32", "pca", 4): [1, 1, 1, 0],
    Cell(2, "float32", "pca"): [1, 0, 0, 0],
    Cell(2, "binary"): [1, 0, 0, 0],
    Cell(8, "binary"): [0, 1, 0, 0],
    Cell(6, "int8"): [1, 1, 0, 0],
}
BYTES = [32, 16, 16, 16, 8, 8, 8, 8, 3, 3, 8]


def table_of(quality: dict[Cell, list[float]]) -> pl.DataFrame:
    """A table as measure_cells returns it, with one measure."""
    rows = [
        (cell.dim, cell.precision, cell.rotation, cell.oversampling, cell.bytes, f"q{i}", f"query {i}", value)
        for cell, values in quality.items()
        for i, value in enumerate(values)
    ]
    schema = {**CELL, "query_id": pl.String, "query": pl.String, "recall@10": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def kept_of(quality: dict[Cell, list[float]]) -> pl.DataFrame:
    return kept_by(table_of(quality), "recall@10", resamples=500)


def cells_on_front(kept: pl.DataFrame) -> list[Cell]:
    return [cell_of(row) for row in kept.filter("front").iter_rows(named=True)]


def made(*rows: tuple[Cell, float, float, float]) -> pl.DataFrame:
    """A table as kept_by returns it: cell, value, kept, kept_low."""
    return pl.DataFrame(
        [
            (cell.dim, cell.precision, cell.rotation, cell.oversampling, cell.bytes, value, kept, low, 2.0, False)
            for cell, value, kept, low in rows
        ],
        schema=KEPT,
        orient="row",
    )


def test_a_row_for_each_cell_in_the_order_given_with_its_share_of_full_quality() -> None:
    kept = kept_of(QUALITY)
    assert dict(kept.schema) == KEPT
    assert [cell_of(row) for row in kept.iter_rows(named=True)] == list(QUALITY)
    assert kept["bytes"].to_list() == BYTES
    assert kept["value"].to_list() == [0.75, 0.75, 1, 0.5, 0.25, 0.75, 0.75, 0.25, 0.25, 0.25, 0.5]
    thirds = [3, 3, 4, 2, 1, 3, 3, 1, 1, 1, 2]
    assert kept["kept"].to_list() == pytest.approx([third / 3 for third in thirds])


def test_the_full_embedding_keeps_exactly_all_of_itself_and_so_does_what_equals_it_query_by_query() -> None:
    kept = kept_of({FULL: [1 / 3, 0.1, 0.7], Cell(8, "int8"): [1 / 3, 0.1, 0.7]})
    assert kept.select("kept", "kept_low", "kept_high").rows() == [(1.0, 1.0, 1.0)] * 2


def test_a_table_of_the_full_embedding_alone_keeps_all() -> None:
    kept = kept_of({FULL: [1.0, 0.0]})
    assert kept.select("kept", "kept_low", "kept_high", "front").rows() == [(1.0, 1.0, 1.0, True)]


def test_the_interval_is_of_paired_differences_in_shares_of_full_quality() -> None:
    # Of two queries one loses half: by pairs drawn with replacement the mean loss is 0, 1/4 or 1/2 of quality 1.
    kept = kept_of({FULL: [1.0, 1.0], Cell(4): [1.0, 0.5]}).row(1, named=True)
    assert (kept["kept"], kept["kept_low"], kept["kept_high"]) == (0.75, 0.5, 1.0)
    # The same at half the quality: shares stay.
    halved = kept_of({FULL: [0.5, 0.5], Cell(4): [0.5, 0.25]}).row(1, named=True)
    assert (halved["kept"], halved["kept_low"], halved["kept_high"]) == (0.75, 0.5, 1.0)


def test_a_loss_that_is_the_same_for_every_query_has_an_interval_of_no_width() -> None:
    kept = kept_of({FULL: [1.0, 0.5, 0.75], Cell(4): [0.75, 0.25, 0.5]}).row(1, named=True)
    assert kept["kept_low"] == kept["kept_high"] == pytest.approx(kept["kept"]) == pytest.approx(0.5 / 0.75)


def test_the_front_worked_by_hand_with_ties_in_bytes_and_in_quality() -> None:
    # 3 bytes: two cells alike in all that counts, either may stand for both. 8 bytes: the best are the rescored,
    # unrotated first. 16: only what beats 3/4. 32: nothing is added.
    front = cells_on_front(kept_of(QUALITY))
    assert front[:2] == [Cell(8, "float16", "pca"), Cell(2, "float32", "none", 4)]
    assert front[2:] in ([Cell(2, "binary")], [Cell(8, "binary")])


def test_of_cells_alike_in_bytes_and_quality_the_one_without_rescoring_then_without_rotation_is_on_the_front() -> None:
    alike = [
        Cell(4, "float32", "pca", 2),
        Cell(4, "float32", "none", 2),
        Cell(4, "float32", "pca"),
        Cell(4, "float32"),
    ]
    for last in range(4):
        some = {FULL: [1.0, 1.0], **{cell: [1.0, 0.0] for cell in alike[: last + 1]}}
        assert cells_on_front(kept_of(some)) == [FULL, alike[last]]


def test_a_cell_of_quality_0_is_on_the_front_where_nothing_is_smaller() -> None:
    assert cells_on_front(kept_of({FULL: [1.0], Cell(1): [0.0], Cell(2): [0.0]})) == [FULL, Cell(1)]


def test_quality_that_differs_by_the_order_of_a_sum_alone_is_equal() -> None:
    # The same three numbers; their floating-point means differ in the last bit.
    small, large = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    assert np.mean(small) != np.mean(large)
    for first, second in ((small, large), (large, small)):
        kept = kept_of({FULL: first, Cell(4): second, Cell(4, "float32", "pca"): first})
        assert cells_on_front(kept) == [Cell(4)]
        assert smallest(kept, 1.0) == Cell(4)


values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4)
others = st.builds(
    Cell,
    st.integers(1, 7),
    st.sampled_from(["float32", "float16", "int8", "int4", "binary"]),
    st.sampled_from(["none", "pca"]),
    st.sampled_from([0, 2, 4]),
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(others, values, max_size=12))
def test_the_front_is_what_no_cell_beats_and_one_of_each_that_are_alike(quality: dict[Cell, list[float]]) -> None:
    quality = {FULL: [1.0, 0.5, 0.25, 0.0], **quality}
    kept = kept_by(table_of(quality), "recall@10", resamples=20)
    figures = {cell: (cell.bytes, sum(map(Fraction, values)) / 4) for cell, values in quality.items()}
    unbeaten = {
        (size, value)
        for size, value in figures.values()
        if not any(other != (size, value) and other[0] <= size and other[1] >= value for other in figures.values())
    }
    front = cells_on_front(kept)
    assert sorted(figures[cell] for cell in front) == sorted(unbeaten)
    for cell in front:
        same = [other for other in figures if figures[other] == figures[cell]]
        plainest = min(same, key=lambda other: (other.oversampling, other.rotation))
        assert (cell.oversampling, cell.rotation) == (plainest.oversampling, plainest.rotation)


def test_full_is_the_largest_plain_float32_wherever_it_stands() -> None:
    kept = kept_of({Cell(4): [1.0, 0.0], Cell(8, "float32", "pca"): [1.0, 1.0], Cell(8): [0.5, 0.0]})
    assert kept["kept"].to_list() == [2.0, 4.0, 1.0]


def test_without_a_plain_float32_cell_nothing_can_be_counted() -> None:
    with pytest.raises(InputError, match="counted from the full embedding in float32; add float32 to the grid"):
        kept_of({Cell(8, "int8"): [1.0, 0.0]})


def test_a_full_embedding_that_finds_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"the full embedding has recall@10 0, so nothing can be kept of it"):
        kept_of({FULL: [0.0, 0.0], Cell(4): [1.0, 0.0]})


SOME = (
    (FULL, 0.50, 1.0, 1.0),
    (Cell(8, "int8"), 0.495, 0.99, 0.97),
    (Cell(4, "float16"), 0.48, 0.96, 0.93),
    (Cell(2, "float32"), 0.49, 0.98, 0.95),
    (Cell(2, "int8", "none", 4), 0.50, 1.0, 0.98),
    (Cell(1, "int8", "none", 8), 0.49, 0.98, 0.91),
)


@pytest.mark.parametrize(
    ("keep", "strict", "rescored", "expected"),
    [
        # 4 float16 and 2 float32 take 8 bytes each; of equal bytes the best.
        (0.95, False, False, Cell(2)),
        (0.98, False, False, Cell(2)),
        (0.981, False, False, Cell(8, "int8")),
        (0.991, False, False, FULL),
        (1.001, False, False, None),
        (0.95, True, False, Cell(2)),
        (0.96, True, False, Cell(8, "int8")),
        (0.98, True, False, FULL),
        (0.98, False, True, Cell(1, "int8", "none", 8)),
        (0.99, False, True, Cell(2, "int8", "none", 4)),
        (0.98, True, True, Cell(2, "int8", "none", 4)),
        (0.985, True, True, FULL),
        (1.001, True, True, None),
    ],
)
def test_the_smallest_that_keeps_enough_worked_by_hand(
    keep: float, strict: bool, rescored: bool, expected: Cell | None
) -> None:
    assert smallest(made(*SOME), keep, strict=strict, rescored=rescored) == expected
    assert smallest(made(*SOME[::-1]), keep, strict=strict, rescored=rescored) == expected


def test_a_share_that_misses_by_rounding_alone_is_enough() -> None:
    assert smallest(made((FULL, 1.0, 1.0, 1.0), (Cell(4), 0.9, 0.9 - 1e-15, 0.8)), 0.9) == Cell(4)
    assert smallest(made((FULL, 1.0, 1.0, 1.0), (Cell(4), 0.9, 0.9 - 1e-9, 0.8)), 0.9) == FULL


def test_of_equal_bytes_and_quality_the_smallest_is_the_plainest() -> None:
    rows = [
        (Cell(4, "float32", "pca", 2), 1.0, 1.0, 1.0),
        (Cell(4, "float32", "none", 2), 1.0, 1.0, 1.0),
        (Cell(4, "float32", "pca"), 1.0, 1.0, 1.0),
        (Cell(4, "float32"), 1.0, 1.0, 1.0),
    ]
    assert smallest(made(*rows), 1.0, rescored=True) == Cell(4)
    assert smallest(made(*rows[:3]), 1.0, rescored=True) == Cell(4, "float32", "pca")
    assert smallest(made(*rows[:2]), 1.0, rescored=True) == Cell(4, "float32", "none", 2)


@pytest.mark.parametrize("cell", [Cell(48), Cell(7, "binary", "pca", 8)])
def test_a_row_of_a_table_gives_its_cell_back(cell: Cell) -> None:
    assert cell_of(made((cell, 1.0, 1.0, 1.0)).row(0, named=True)) == cell
