"""The picture of a grid: what quality each cell keeps over its bytes a vector, with the Pareto front labelled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from nestling.report.charts import FINE, INK, MUTED, apart, chart_of, coded, lines_across, log_axis, styled, top_legend
from nestling.report.format import label, stored_as
from nestling.report.grid_view import front_alone

LOOKS = {
    "float32": ("#6b7280", "circle"),
    "float16": ("#0072B2", "square"),
    "int8": ("#D55E00", "triangle-up"),
    "int4": ("#009E73", "diamond"),
    "binary": ("#CC79A7", "cross"),
}
"""Colour and shape of each precision: Okabe and Ito's colours, as in charts.py."""
Cells = Sequence[dict[str, Any]]
WIDTH, HEIGHT = 760, 440
FONT_SIZE, LINE, MARK = 11, 14, 4
"""Pixels: of a label's letters, of its height, and half the width of a mark."""
ABOVE, BESIDE = 6, 5
"""Pixels between a mark and its label: up to one above, and down and right to one below."""
NEAR, FARTHEST = 2, 40
"""Steps of half a line that a label may move away: above a mark that has its label below by right, and at all."""


class Box(NamedTuple):
    """A rectangle, in pixels from the top left corner of the plot."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Return whether the two share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


class Label(NamedTuple):
    """The place of a label: above and left of its mark, or below and right of it."""

    box: Box
    below: bool


class Plane(NamedTuple):
    """Bytes on a log axis and quality, as pixels from the top left corner of the plot."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, n_bytes: float) -> float:
        """Return the pixels from the left of a number of bytes."""
        return WIDTH * math.log(n_bytes / self.left) / math.log(self.right / self.left)

    def y(self, value: float) -> float:
        """Return the pixels from the top of a value."""
        return HEIGHT * (self.top - value) / (self.top - self.bottom)

    def value(self, y: float) -> float:
        """Return the value that lies `y` pixels down."""
        return self.top - (self.top - self.bottom) * y / HEIGHT


def pareto(kept: pl.DataFrame, measure: str, *, subtitle: str, keep: float | None = None) -> alt.LayerChart:
    """Return the chart of a grid: a mark a cell, bytes on a log axis, the front joined as steps and its cells named.

    Cells that rescore are hollow; where there are any, a dashed line is the front of the others alone. `keep` is a
    share of full quality, drawn as a line; `kept` has the columns of `evaluation.recommend.KEPT`.
    """
    # Of the row that keeps most, since others may keep nothing.
    best = kept.sort("kept").row(-1, named=True)
    full = float(best["value"] / best["kept"])
    cells = kept.with_columns(front_alone(kept)).sort("bytes", "kept").to_dicts()
    for cell in cells:
        cell["name"] = cell_label(cell["dim"], cell["precision"], cell["rotation"], cell["oversampling"])
    front = [cell for cell in cells if cell["front"]]
    alone = [cell for cell in cells if cell["alone"]]
    lines = [(1.0, f"full {label(measure)} {full:.4f}", [1, 0])]
    if keep is not None:
        lines.append((keep, f"keep {100 * keep:.4g}%", [5, 4]))
    named = [*front, *(cell for cell in alone if not cell["front"])]
    plane = _plane(cells, [value for value, *_ in lines], named)
    sizes = [cell["bytes"] for cell in cells]
    ticks = apart(sizes, (max(sizes) / min(sizes)) ** (40 / WIDTH))
    x = log_axis("bytes:Q", "bytes a vector (log scale)", (plane.left, plane.right), ticks=ticks, format=",.0f")
    axis = alt.Axis(format=".1%" if plane.top - plane.bottom < FINE else ".0%")
    scale = alt.Scale(domain=[plane.bottom, plane.top], nice=False, zero=False)
    y = alt.Y("kept:Q", title=f"{label(measure)} kept", scale=scale, axis=axis)
    rescored = any(cell["oversampling"] for cell in cells)
    gap = LINE * (plane.top - plane.bottom) / HEIGHT
    layers = [
        *lines_across(lines, gap, plane.right, x, y, color=MUTED, strokeWidth=1.2),
        *([_steps(alone, plane, x, y, strokeWidth=1.4, color=MUTED, strokeDash=[4, 3])] if rescored else []),
        _steps(front, plane, x, y, strokeWidth=2, color=INK),
        *_marks(cells, x, y),
        *_labels(named, cells, front, plane, x, y),
    ]
    legend = "; hollow: rescored; dashed: the front without rescoring" if rescored else ""
    return styled(layers, f"{label(measure)} by bytes a vector", f"{subtitle}{legend}", (WIDTH, HEIGHT))


def cell_label(dim: int, precision: str, rotation: str, oversampling: int) -> str:
    """Return a cell's name on the chart, short: `48 int8 PCA`, `96 binary PCA x4`."""
    return f"{dim} {stored_as(precision, rotation, oversampling).replace(',', '').replace('rescored ', '')}"


def _plane(cells: Cells, lines: Sequence[float], named: Cells) -> Plane:
    """Return a plane with room at the left, at the top and at the bottom for labels."""
    sizes, values = [cell["bytes"] for cell in cells], [*(cell["kept"] for cell in cells), *lines]
    left, right = 12 + max(map(_width, named)), 70
    top, bottom = LINE * min(2 + sum(cell["front"] for cell in named) / 2, 8), 2 * LINE
    # All in the same place, as with a single cell, still need a scale.
    across = (math.log(max(sizes) / min(sizes)) or 1.0) / (WIDTH - left - right)
    up = ((max(values) - min(values)) or 0.02) / (HEIGHT - top - bottom)
    return Plane(
        left=min(sizes) * math.exp(-left * across),
        right=max(sizes) * math.exp(right * across),
        bottom=min(values) - bottom * up,
        top=max(values) + top * up,
    )


def _width(cell: dict[str, Any]) -> float:
    # Digits and small letters of Arial and Helvetica are 0.5 to 0.56 em wide on average, DejaVu Sans 0.6.
    return 0.62 * FONT_SIZE * len(cell["name"]) + 4


def _steps(cells: Cells, plane: Plane, x: alt.X, y: alt.Y, **look: Any) -> Any:
    # On to the right edge: with more bytes there is nothing better.
    rows = [*cells, *({"bytes": plane.right, "kept": last["kept"]} for last in cells[-1:])]
    return chart_of(rows).mark_line(interpolate="step-after", **look).encode(x=x, y=y)


def _marks(cells: Cells, x: alt.X, y: alt.Y) -> list[Any]:
    names = [name for name in LOOKS if any(cell["precision"] == name for cell in cells)]
    legend = top_legend(direction="horizontal", symbolSize=80, symbolType="circle", symbolStrokeWidth=alt.Undefined)
    colour = coded(alt.Color, "precision:N", names, [LOOKS[name][0] for name in names], legend)
    shape = coded(alt.Shape, "precision:N", names, [LOOKS[name][1] for name in names], legend)
    tooltip = [
        alt.Tooltip("name:N", title="cell"),
        *(alt.Tooltip(f"{name}:Q", format=form) for name, form in (("bytes", ","), ("value", ".4f"), ("kept", ".1%"))),
    ]
    layers = []
    for filled in (False, True):
        rows = [cell for cell in cells if filled == (not cell["oversampling"])]
        if rows:
            marks = chart_of(rows).mark_point(filled=filled, size=40, opacity=0.9, strokeWidth=1.2)
            layers.append(marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip))
    return layers


def _labels(named: Cells, cells: Cells, front: Cells, plane: Plane, x: alt.X, y: alt.Y) -> list[Any]:
    """Return the names of cells, those that are far from their mark with a line to it."""
    marks, corners = ([(plane.x(cell["bytes"]), plane.y(cell["kept"])) for cell in each] for each in (cells, front))
    drawn = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in marks]
    drawn += [Box(x, y - 1, next_x, y + 1) for (x, y), (next_x, _) in pairwise([*corners, (WIDTH, 0)])]
    drawn += [Box(next_x - 1, next_y, next_x + 1, y) for (_, y), (next_x, next_y) in pairwise(corners)]
    # Nor should a label leave the plot.
    drawn += [Box(-1e4, -1e4, 0, 1e4), Box(-1e4, -1e4, 1e4, 0), Box(WIDTH, -1e4, 1e4, 1e4), Box(-1e4, HEIGHT, 1e4, 1e4)]
    points = [(plane.x(cell["bytes"]), plane.y(cell["kept"]), _width(cell), cell["front"]) for cell in named]
    rows = []
    for cell, (_, mark_y, *_), (box, below) in zip(named, points, place(points, drawn), strict=True):
        near = box.top if below else box.bottom
        rows.append({**cell, "foot": plane.value(near), "below": below, "lifted": abs(near - mark_y) > LINE})
    rule = chart_of([row for row in rows if row["lifted"]]).mark_rule(color=MUTED, strokeWidth=0.8)
    layers: list[Any] = [rule.encode(x=x, y=y, y2="foot:Q")]
    foot = alt.Y("foot:Q", scale=y["scale"])
    for below, align, baseline, dx in ((False, "right", "bottom", 0), (True, "left", "top", BESIDE)):
        base = chart_of([row for row in rows if row["below"] == below]).encode(x=x, y=foot, text="name:N")
        text: dict[str, Any] = {"align": align, "baseline": baseline, "dx": dx, "fontSize": FONT_SIZE}
        layers.append(base.mark_text(**text, stroke="white", strokeWidth=3, color="white"))
        layers.append(base.mark_text(**text, color=INK))
    return layers


def place(points: Sequence[tuple[float, float, float, bool]], drawn: Sequence[Box] = ()) -> list[Label]:
    """Place labels one after the other, each as near to its mark as those before it and `drawn` allow.

    Args:
        points: x and y of each mark, the width of its label, and whether that may only go up, as above a cell of the
            front nothing is covered; from left to right, so that no line from a label to its mark meets a label.
    """
    taken, labels = list(drawn), []
    for x, y, width, upwards in points:
        # The first of the best: candidates come nearest first.
        label = min(_candidates(x, y, width, upwards), key=lambda one: sum(map(one.box.overlaps, taken)))
        labels.append(label)
        top, bottom = sorted((label.box.top if label.below else label.box.bottom, y))
        taken += [label.box, Box(x - 2, top, x + 2, bottom)]
    return labels


def _candidates(x: float, y: float, width: float, upwards: bool) -> Iterator[Label]:
    for step in range(FARTHEST):
        if upwards or step < NEAR:
            bottom = y - ABOVE - step * LINE / 2
            yield Label(Box(x - width, bottom - LINE, x, bottom), below=False)
        if not upwards:
            left, top = x + BESIDE, y + BESIDE + step * LINE / 2
            yield Label(Box(left, top, left + width, top + LINE), below=True)
