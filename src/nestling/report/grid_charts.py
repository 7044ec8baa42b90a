"""The picture of a grid: what quality each cell keeps over its bytes a vector, with the Pareto front labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt
import polars as pl

from nestling.report.charts import FINE, INK, MUTED, apart, chart_of, coded, log_axis, spread, styled, top_legend
from nestling.report.format import label, stored_as
from nestling.report.grid_view import front_alone
from nestling.report.placing import BESIDE, LINE, Box, Label, Point, place

LOOKS = {
    "float32": ("#6b7280", "circle"),
    "float16": ("#0072B2", "square"),
    "int8": ("#D55E00", "triangle-up"),
    "int4": ("#009E73", "diamond"),
    "binary": ("#CC79A7", "cross"),
}
"""Colour and shape of each precision: Okabe and Ito's colours, as in charts.py."""
WIDTH, HEIGHT = 760, 440
FONT_SIZE = 11
PASSES = 20
MARK = 4
"""Half the width of a mark, pixels."""


@dataclass(frozen=True)
class Plane:
    """Bytes on a log axis and quality, as pixels from the top left corner of the plot."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, n_bytes: float) -> float:
        """Return how far right a number of bytes lies, in pixels."""
        return WIDTH * math.log(n_bytes / self.left) / math.log(self.right / self.left)

    def y(self, value: float) -> float:
        """Return how far down a value lies, in pixels."""
        return HEIGHT * (self.top - value) / (self.top - self.bottom)

    def value(self, y: float) -> float:
        """Return the value that lies `y` pixels down."""
        return self.top - (self.top - self.bottom) * y / HEIGHT

    def wider(self, box: Box) -> Plane:
        """Return the plane that reaches as far as `box`, or a little farther where that lies outside."""
        across, up = math.log(self.right / self.left) / WIDTH, (self.top - self.bottom) / HEIGHT
        return Plane(
            left=self.left * math.exp(1.05 * min(0.0, box.left) * across),
            right=self.right * math.exp(1.05 * max(0.0, box.right - WIDTH) * across),
            bottom=self.bottom - 1.05 * max(0.0, box.bottom - HEIGHT) * up,
            top=self.top - 1.05 * min(0.0, box.top) * up,
        )


def pareto(
    kept: pl.DataFrame, measure: str, *, subtitle: str, keep: float | None = None, absolute: bool = False
) -> alt.LayerChart:
    """Return the chart of a grid: a mark a cell, bytes on a log axis, the front joined and its cells named.

    The front is drawn as steps, since up to a cell's bytes nothing better is to be had. Cells that rescore are hollow;
    where there are any, a dashed line is the front of the others alone.

    Args:
        kept: columns as `evaluation.advice.KEPT`, one row or more.
        measure: which it is of.
        subtitle: one line under the title, say of which model and side.
        keep: the share of full quality that was asked for, drawn as a line.
        absolute: draw the measure itself, not the share of the full embedding's.
    """
    # Of the row that keeps most, since others may keep nothing.
    best = kept.sort("kept").row(-1, named=True)
    full = float(best["value"] / best["kept"])
    unit = full if absolute else 1.0
    cells = _cells(kept, "value" if absolute else "kept")
    front = [cell for cell in cells if cell["front"]]
    alone = [cell for cell in cells if cell["alone"]]
    rules = [(unit, f"full {label(measure)} {full:.4f}")]
    if keep is not None:
        rules.append((keep * unit, f"keep {100 * keep:.4g}%"))

    sizes = [cell["bytes"] for cell in cells]
    values = [cell["at"] for cell in cells] + [value for value, _ in rules]
    # All in the same place, as with a single cell, still need a scale.
    margin = 0.04 * (max(values) - min(values)) or 0.02
    plane = Plane(min(sizes) / 1.3, max(sizes) * 1.3, min(values) - margin, max(values) + margin)
    plane, labels = _labelled(plane, cells, front, [cell for cell in alone if not cell["front"]])

    ticks = apart(sizes, (max(sizes) / min(sizes)) ** (40 / WIDTH))
    x = log_axis("bytes:Q", "bytes a vector (log scale)", (plane.left, plane.right), ticks=ticks, format=",.0f")
    fine = plane.top - plane.bottom < FINE
    y = alt.Y(
        "at:Q",
        title=label(measure) if absolute else f"{label(measure)} kept",
        scale=alt.Scale(domain=[plane.bottom, plane.top], nice=False, zero=False),
        axis=alt.Axis(format=(".3f" if fine else ".2f") if absolute else ".1%" if fine else ".0%"),
    )
    rescored = any(cell["oversampling"] for cell in cells)
    layers = [
        *_rules(rules, plane, x, y),
        *([_front(alone, plane, x, y, dashed=True)] if rescored else []),
        _front(front, plane, x, y),
        *_marks(cells, x, y),
        *_labels(labels, x, y),
    ]
    legend = "; hollow: rescored; dashed: the front without rescoring" if rescored else ""
    title = f"{label(measure)} by bytes a vector"
    return styled(layers, title, f"{subtitle}{legend}", (WIDTH, HEIGHT))


def cell_label(dim: int, precision: str, rotation: str, oversampling: int) -> str:
    """Return a cell's name on the chart, short: `48 int8 PCA`, `96 binary PCA x4`."""
    return f"{dim} {stored_as(precision, rotation, oversampling).replace(',', '').replace('rescored ', '')}"


def _cells(kept: pl.DataFrame, column: str) -> list[dict[str, Any]]:
    rows = kept.with_columns(front_alone(kept)).sort("bytes", column).iter_rows(named=True)
    return [
        {
            **{name: row[name] for name in ("dim", "precision", "rotation", "oversampling", "bytes", "front", "alone")},
            "at": row[column],
            "name": cell_label(row["dim"], row["precision"], row["rotation"], row["oversampling"]),
            "value": row["value"],
            "kept": row["kept"],
        }
        for row in rows
    ]


def _labelled(
    plane: Plane,
    cells: Sequence[dict[str, Any]],
    front: Sequence[dict[str, Any]],
    alone: Sequence[dict[str, Any]],
) -> tuple[Plane, list[dict[str, Any]]]:
    """Return a plane with room for the labels of both fronts, and the labels with the place of each.

    Left of a cell of the front and above it there is none other, so that a label there covers no mark. The front
    without rescoring has marks on all sides.
    """
    labelled = [*front, *alone]
    # Each pass moves marks a little, so that a few are needed until all labels fit.
    for attempt in range(PASSES):
        points = [
            Point(plane.x(cell["bytes"]), plane.y(cell["at"]), _width(cell["name"]), upwards=cell["front"])
            for cell in labelled
        ]
        placed = place(points, [*_marked(plane, cells), *_stepped(plane, front)])
        wider = plane
        for one in placed:
            wider = wider.wider(one.box)
        if wider == plane or attempt == PASSES - 1:
            break
        plane = wider
    return plane, [_label(cell, one, plane) for cell, one in zip(labelled, placed, strict=True)]


def _label(cell: dict[str, Any], placed: Label, plane: Plane) -> dict[str, Any]:
    near = placed.box.top if placed.below else placed.box.bottom
    return {
        "name": cell["name"],
        "bytes": cell["bytes"],
        "at": cell["at"],
        "foot": plane.value(near),
        "below": placed.below,
        "lifted": placed.away > LINE,
    }


def _marked(plane: Plane, cells: Sequence[dict[str, Any]]) -> list[Box]:
    places = [(plane.x(cell["bytes"]), plane.y(cell["at"])) for cell in cells]
    return [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in places]


def _stepped(plane: Plane, front: Sequence[dict[str, Any]]) -> list[Box]:
    """Return the steps of a front as boxes that are thin."""
    places = [(plane.x(cell["bytes"]), plane.y(cell["at"])) for cell in front]
    steps = [Box(x, y - 1, WIDTH, y + 1) for x, y in places[-1:]]
    for (x, y), (next_x, next_y) in pairwise(places):
        steps += [Box(x, y - 1, next_x, y + 1), Box(next_x - 1, next_y, next_x + 1, y)]
    return steps


def _width(text: str) -> float:
    # Digits and small letters of Arial and Helvetica are 0.5 to 0.56 em wide on average, DejaVu Sans 0.6.
    return 0.62 * FONT_SIZE * len(text) + 4


def _rules(rules: Sequence[tuple[float, str]], plane: Plane, x: alt.X, y: alt.Y) -> list[Any]:
    """Return a line across for each value, the first whole and the second dashed, named at its right end."""
    gap = LINE * (plane.top - plane.bottom) / HEIGHT
    order = sorted(rules)
    layers = []
    for (value, text), at in zip(order, spread([value for value, _ in order], gap), strict=True):
        base = chart_of([{"at": value, "text": text, "bytes": plane.right, "label": at}])
        dash = [1, 0] if (value, text) == rules[0] else [5, 4]
        # Outside of the plot, where there is nothing to cover.
        name = base.mark_text(align="left", dx=6, fontSize=FONT_SIZE, color=INK)
        layers += [
            base.mark_rule(color=MUTED, strokeWidth=1.2, strokeDash=dash).encode(y=y),
            name.encode(x=x, y=alt.Y("label:Q", scale=y["scale"]), text="text:N"),
        ]
    return layers


def _front(cells: Sequence[dict[str, Any]], plane: Plane, x: alt.X, y: alt.Y, *, dashed: bool = False) -> Any:
    # On to the right edge: with more bytes there is nothing better.
    rows = [*cells, *({"bytes": plane.right, "at": last["at"]} for last in cells[-1:])]
    look: dict[str, Any] = (
        {"strokeWidth": 1.4, "color": MUTED, "strokeDash": [4, 3]} if dashed else {"strokeWidth": 2, "color": INK}
    )
    return chart_of(rows).mark_line(interpolate="step-after", **look).encode(x=x, y=y)


def _marks(cells: Sequence[dict[str, Any]], x: alt.X, y: alt.Y) -> list[Any]:
    names = [name for name in LOOKS if any(cell["precision"] == name for cell in cells)]
    legend = top_legend(direction="horizontal", symbolSize=80, symbolType="circle", symbolStrokeWidth=alt.Undefined)
    colour = coded(alt.Color, "precision:N", names, [LOOKS[name][0] for name in names], legend)
    shape = coded(alt.Shape, "precision:N", names, [LOOKS[name][1] for name in names], legend)
    tooltip = [
        alt.Tooltip("name:N", title="cell"),
        alt.Tooltip("bytes:Q", format=","),
        alt.Tooltip("value:Q", format=".4f"),
        alt.Tooltip("kept:Q", format=".1%"),
    ]
    layers = []
    for filled in (False, True):
        some = [cell for cell in cells if filled == (not cell["oversampling"])]
        if some:
            marks = chart_of(some).mark_point(filled=filled, size=40, opacity=0.9, strokeWidth=1.2)
            layers.append(marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip))
    return layers


def _labels(labels: Sequence[dict[str, Any]], x: alt.X, y: alt.Y) -> list[Any]:
    foot = alt.Y("foot:Q", scale=y["scale"])
    layers: list[Any] = [
        chart_of([row for row in labels if row["lifted"]])
        .mark_rule(color=MUTED, strokeWidth=0.8)
        .encode(x=x, y=y, y2="foot:Q")
    ]
    for below in (False, True):
        base = chart_of([row for row in labels if row["below"] == below])
        placed: dict[str, Any] = {
            "align": "left" if below else "right",
            "baseline": "top" if below else "bottom",
            "dx": BESIDE if below else 0,
            "fontSize": FONT_SIZE,
        }
        halo = base.mark_text(**placed, stroke="white", strokeWidth=3, color="white")
        text = base.mark_text(**placed, color=INK)
        layers += [one.encode(x=x, y=foot, text="name:N") for one in (halo, text)]
    return layers
