"""The grid's cells: their bytes worked out by hand, what the grid leaves out, and what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.config.names import PRECISIONS, ROTATIONS, Rotation
from nestling.errors import InputError
from nestling.evaluation.cells import Cell, cells_of
from nestling.retrieval.codec import fit_codec

# Bits a dim, and two bytes for the scale of a row that has one.
BYTES = {
    ("float32", 384): 384 * 4,
    ("float16", 384): 384 * 2,
    ("int8", 384): 384 + 2,
    ("int4", 384): 192 + 2,
    ("binary", 384): 48 + 2,
    ("float32", 48): 192,
    ("float16", 48): 96,
    ("int8", 48): 50,
    ("int4", 48): 26,
    ("binary", 48): 8,
    ("int4", 5): 3 + 2,
    ("binary", 9): 2 + 2,
    ("float32", 1): 4,
}

precisions = st.lists(st.sampled_from(PRECISIONS), min_size=1, max_size=5, unique=True)
rotations = st.lists(st.sampled_from(ROTATIONS), min_size=1, max_size=3, unique=True)
factors = st.lists(st.integers(2, 16), max_size=3, unique=True)
sizes = st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True).map(lambda some: sorted(some, reverse=True))


@pytest.mark.parametrize(("precision", "dim"), BYTES)
def test_the_bytes_of_a_document_worked_by_hand(precision: str, dim: int) -> None:
    assert Cell(dim, precision).bytes == BYTES[precision, dim]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [2, 7, 16])
def test_the_bytes_are_those_that_encoded_documents_take(precision: str, dim: int) -> None:
    rows = np.random.default_rng(0).standard_normal((20, dim)).astype(np.float32)
    assert fit_codec(precision, rows).encode(rows).nbytes == 20 * Cell(dim, precision).bytes


def test_rotation_and_rescoring_cost_no_bytes_in_memory() -> None:
    assert Cell(48, "int8", "pca", 4).bytes == Cell(48, "int8").bytes


def test_a_cell_reads_as_what_it_is() -> None:
    assert str(Cell(384)) == "384 float32"
    assert str(Cell(48, "int8", "pca")) == "48 int8 pca"
    assert str(Cell(48, "binary", "none", 4)) == "48 binary rescored x4"
    assert str(Cell(48, "int4", "pca", 8)) == "48 int4 pca rescored x8"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 8, "precision": "int7"}, "unknown precision 'int7'; choose float32, float16, int8, int4, binary"),
        ({"dim": 8, "precision": ""}, "unknown precision ''"),
        ({"dim": 8, "rotation": "ica"}, "unknown rotation 'ica'; choose none, pca, trained"),
        ({"dim": 8, "oversampling": 1}, r"oversampling must be 0 \(none\) or 2 and more, not 1"),
        ({"dim": 8, "oversampling": -2}, "not -2"),
        ({"dim": 0}, "a size must be 1 or more, not 0"),
    ],
)
def test_what_is_no_cell_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Cell(**fields)  # type: ignore[arg-type]


def test_by_default_the_grid_is_plain_float32_at_each_size() -> None:
    assert cells_of([32, 16, 8]) == [Cell(32), Cell(16), Cell(8)]


def test_the_whole_grid_in_its_order_without_the_full_float32_rotated_or_rescored() -> None:
    found = cells_of([32, 8], precisions=["float32", "binary"], rotations=["none", "pca"], oversampling=[2, 4])
    assert found == [
        Cell(32, "float32"),
        Cell(32, "binary"),
        Cell(32, "binary", "none", 2),
        Cell(32, "binary", "none", 4),
        Cell(8, "float32"),
        Cell(8, "float32", "none", 2),
        Cell(8, "float32", "none", 4),
        Cell(8, "binary"),
        Cell(8, "binary", "none", 2),
        Cell(8, "binary", "none", 4),
        Cell(32, "binary", "pca"),
        Cell(32, "binary", "pca", 2),
        Cell(32, "binary", "pca", 4),
        Cell(8, "float32", "pca"),
        Cell(8, "float32", "pca", 2),
        Cell(8, "float32", "pca", 4),
        Cell(8, "binary", "pca"),
        Cell(8, "binary", "pca", 2),
        Cell(8, "binary", "pca", 4),
    ]


def test_without_plain_cells_the_full_float32_stands_in_rotated_and_is_not_rescored() -> None:
    assert cells_of([32, 8], rotations=["pca"], oversampling=[2]) == [
        Cell(32, "float32", "pca"),
        Cell(8, "float32", "pca"),
        Cell(8, "float32", "pca", 2),
    ]


def test_the_full_float32_is_left_out_rotated_also_where_rotation_comes_first() -> None:
    assert cells_of([32, 8], rotations=["pca", "none"]) == [Cell(8, "float32", "pca"), Cell(32), Cell(8)]


@settings(max_examples=100, deadline=None)
@given(sizes, precisions, rotations, factors)
def test_a_grid_has_every_combination_once_but_for_those_that_cannot_differ(
    some_sizes: list[int], some_precisions: list[str], some_rotations: list[str], some_factors: list[int]
) -> None:
    found = cells_of(some_sizes, precisions=some_precisions, rotations=some_rotations, oversampling=some_factors)
    every = {
        Cell(*fields)  # type: ignore[arg-type]
        for fields in product(some_sizes, some_precisions, some_rotations, [0, *some_factors])
    }
    full = {cell for cell in every if cell.dim == max(some_sizes) and cell.precision == "float32"}
    assert len(found) == len(set(found))
    assert set(found) - full == every - full
    plainest: Rotation = next(name for name in ROTATIONS if name in some_rotations)
    assert set(found) & full == (
        {Cell(max(some_sizes), "float32", plainest)} if "float32" in some_precisions else set()
    )
