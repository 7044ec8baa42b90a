"""The picture of a grid: every cell is drawn, the front is joined and named, and names stay inside and apart."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.evaluation.cells import Cell, cells_of
from nestling.evaluation.recommend import KEPT
from nestling.report.charts import save
from nestling.report.grid_charts import HEIGHT, LINE, WIDTH, Box, Plane, cell_label, pareto, place

CELLS = [
    (Cell(384), 0.80, False),
    (Cell(384, "int8"), 0.80, True),
    (Cell(48, "int8", "pca"), 0.72, False),
    (Cell(384, "binary"), 0.70, False),
    (Cell(384, "binary", "none", 4), 0.79, True),
    (Cell(48, "binary", "pca", 8), 0.60, True),
]


def kept_of(cells: list[tuple[Cell, float, bool]]) -> pl.DataFrame:
    rows = []
    for cell, value, front in cells:
        where = (cell.dim, cell.precision, cell.rotation, cell.oversampling, cell.bytes)
        rows.append((*where, value, value / 0.8, value / 0.8 - 0.01, value / 0.8 + 0.01, front))
    return pl.DataFrame(rows, schema=KEPT, orient="row")


def layers(chart: object, mark: str) -> list[tuple[dict[str, object], list[dict[str, object]]]]:
    """Return (mark, rows of data) of each layer of a kind of mark."""
    spec = chart.to_dict()
    sets = spec.get("datasets", {})
    return [
        (layer["mark"], layer["data"]["values"] if "values" in layer["data"] else sets[layer["data"]["name"]])
        for layer in spec["layer"]
        if layer["mark"]["type"] == mark
    ]


def plane_of(chart: object) -> Plane:
    encoding = next(layer["encoding"] for layer in chart.to_dict()["layer"] if layer["mark"]["type"] == "point")
    return Plane(*encoding["x"]["scale"]["domain"], *encoding["y"]["scale"]["domain"])


def texts(svg: Path) -> set[str]:
    return {"".join(e.itertext()) for e in ElementTree.parse(svg).iter() if e.tag.endswith("text")}


def test_every_cell_is_a_mark_and_those_that_rescore_are_hollow():
    marks = layers(pareto(kept_of(CELLS), "recall@10", subtitle=""), "point")
    drawn = {(row["name"], row["bytes"], row["kept"]): mark["filled"] for mark, rows in marks for row in rows}
    assert drawn == {
        (cell_label(c.dim, c.precision, c.rotation, c.oversampling), c.bytes, value / 0.8): not c.oversampling
        for c, value, _ in CELLS
    }


def test_both_fronts_are_joined_up_to_the_right_edge():
    chart = pareto(kept_of(CELLS), "recall@10", subtitle="")
    (_, alone), (_, front) = layers(chart, "line")
    assert [(row["bytes"], row["kept"]) for row in front[:-1]] == [
        (8, pytest.approx(0.75)),
        (50, pytest.approx(0.9875)),
        (386, pytest.approx(1.0)),
    ]
    assert [row["bytes"] for row in alone[:-1]] == [50, 386]
    assert front[-1]["bytes"] == plane_of(chart).right
    assert front[-1]["kept"] == 1.0


def test_the_cells_of_both_fronts_are_named(tmp_path: Path):
    _, svg = save(pareto(kept_of(CELLS), "recall@10", subtitle="of </svg>", keep=0.98), tmp_path / "grid")
    named = {"384 int8", "384 binary x4", "48 binary PCA x8", "48 int8 PCA"}
    assert named <= texts(svg)
    assert not {"384 float32", "384 binary"} & texts(svg)
    others = {"float32", "int8", "binary", "recall@10 kept", "bytes a vector (log scale)", "100%", "1,536"}
    assert others <= texts(svg)
    assert any(text.startswith("of </svg>") for text in texts(svg))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "grid.svg"]


def test_the_full_size_and_what_was_asked_to_keep_are_lines_across():
    kept = kept_of(CELLS)
    rules = {
        rows[0]["name"]: rows[0]["value"]
        for _, rows in layers(pareto(kept, "recall@10", subtitle="", keep=0.98), "text")
        if rows and "label" in rows[0]
    }
    assert rules == {"full recall@10 0.8000": 1.0, "keep 98%": 0.98}
    assert not any(
        rows and rows[0]["name"].startswith("keep")
        for _, rows in layers(pareto(kept, "recall@10", subtitle=""), "text")
    )


def test_a_grid_without_rescoring_has_one_front_and_no_word_of_it():
    chart = pareto(kept_of([CELLS[0], CELLS[1], (*CELLS[2][:2], True)]), "recall@10", subtitle="dev")
    assert len(layers(chart, "line")) == 1
    assert chart.to_dict()["title"]["subtitle"] == "dev"


@pytest.mark.parametrize(
    "cells", [CELLS[:1], [(Cell(384), 0.8, True)], [(Cell(384), 0.8, True), (Cell(48), 0.0, True)]]
)
def test_grids_of_a_cell_or_two_can_be_drawn(cells: list[tuple[Cell, float, bool]], tmp_path: Path):
    assert save(pareto(kept_of(cells), "recall@10", subtitle=""), tmp_path / "grid")[0].exists()


def test_labels_of_a_large_grid_stay_inside_and_apart():
    cells = cells_of(
        (384, 192, 96, 48),
        precisions=("float32", "float16", "int8", "int4", "binary"),
        rotations=("none", "pca"),
        oversampling=(2, 8),
    )
    # Quality rises with bytes, ever slower, and rescoring adds to it: a front that is flat where labels are dense.
    valued = [(cell, 0.8 - 0.9 / cell.bytes / (1 + cell.oversampling) - cell.dim / 1e6) for cell in cells]
    kept = kept_of([(cell, value, False) for cell, value in valued])
    best = [max(v for c, v in valued if c.bytes <= cell.bytes) for cell, _ in valued]
    first = {value: cell for cell, value in reversed(valued) if value in best}
    kept = kept.with_columns(
        pl.Series(
            "front", [value == top and first[value] == cell for (cell, value), top in zip(valued, best, strict=True)]
        )
    )
    chart = pareto(kept, "recall@10", subtitle="")
    plane = plane_of(chart)
    boxes = []
    for mark, rows in layers(chart, "text"):
        # The halo has the same places.
        if mark.get("stroke") or not rows or "foot" not in rows[0]:
            continue
        for row in rows:
            x, y = plane.x(row["bytes"]) + mark["dx"], plane.y(row["foot"])
            wide = 6.6 * len(row["name"])
            boxes.append(Box(x, y, x + wide, y + 12) if mark["align"] == "left" else Box(x - wide, y - 12, x, y))
    assert len(boxes) > 8
    assert all(box.left >= 0 and box.top >= 0 and box.right <= WIDTH and box.bottom <= HEIGHT for box in boxes)
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_a_label_that_would_cross_the_front_goes_below_its_cell():
    # 0.0075 are about 10 of the 440 pixels, within the height of a label.
    cells = [
        (Cell(48, "binary", "pca", 8), 0.82, True),
        (Cell(48, "binary", "pca"), 0.5, False),
        (Cell(384, "int8"), 0.8125, False),
        (Cell(384), 0.8, False),
    ]
    chart = pareto(kept_of(cells), "recall@10", subtitle="")
    sides = {row.get("name"): mark["align"] for mark, rows in layers(chart, "text") for row in rows}
    assert sides["384 int8"] == "left"
    assert sides["48 binary PCA"] == "right"


def test_a_cell_has_a_short_name():
    assert cell_label(48, "int8", "pca", 0) == "48 int8 PCA"
    assert cell_label(384, "binary", "none", 4) == "384 binary x4"


def test_a_label_alone_ends_at_its_point_and_stands_just_above():
    (label,) = place([(100.0, 50.0, 60.0, True)])
    assert label.box == Box(40, 44 - LINE, 100, 44)
    assert not label.below


def test_a_label_that_meets_another_is_lifted_above_it():
    first, second = place([(100.0, 50.0, 60.0, True), (120.0, 50.0, 60.0, True)])
    assert second.box.bottom <= first.box.top


def test_what_may_not_rise_goes_below_where_it_is_crowded_above():
    crowded = [Box(0.0, 0.0, 200.0, 49.0)]
    (label,) = place([(100.0, 50.0, 60.0, False)], crowded)
    assert label.below
    assert label.box == Box(105.0, 55.0, 165.0, 55.0 + LINE)
    (label,) = place([(100.0, 50.0, 60.0, True)], crowded)
    assert label.box.bottom <= 0


def test_where_all_is_taken_a_label_stands_where_it_covers_least():
    everywhere = [Box(-1e4, -1e4, 1e4, 1e4), Box(0.0, 50.0, 200.0, 1e4)]
    (label,) = place([(100.0, 50.0, 60.0, False)], everywhere)
    assert not label.below


rising = st.lists(st.tuples(st.floats(1, 200), st.floats(0, 60)), min_size=1, max_size=15).map(
    lambda steps: [(sum(x for x, _ in steps[: n + 1]), -sum(y for _, y in steps[: n + 1])) for n in range(len(steps))]
)


@given(rising, st.floats(20, 110))
def test_labels_of_a_rising_front_cover_neither_each_other_nor_its_points(
    points: list[tuple[float, float]], width: float
):
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    labels = place([(x, y, width, True) for x, y in points], marks)
    boxes = [label.box for label in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    for box, (x, _) in zip(boxes, points, strict=True):
        assert not any(box.overlaps(mark) for mark in marks if mark.right < x)


@given(rising)
def test_no_line_from_a_label_to_its_point_goes_through_another_label(points: list[tuple[float, float]]):
    labels = place([(x, y, 60.0, True) for x, y in points])
    for (x, y), own in zip(points, labels, strict=True):
        line = Box(x - 0.5, own.box.bottom, x + 0.5, y)
        assert not any(line.overlaps(other.box) for other in labels if other is not own)
