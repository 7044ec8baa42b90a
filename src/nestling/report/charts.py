"""The pictures: a measure over embedding sizes, a line a model, and the score histogram. PNG and SVG from one chart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from nestling import atomic
from nestling.judgments.inspection import Inspection
from nestling.report.format import label
from nestling.report.tables import is_fused, plain
from nestling.training.result import RECALL as DEV_RECALL

# Okabe and Ito's colours, told apart by colour-blind readers too; shapes and dashes serve black-and-white print.
COLOURS = ["#6b7280", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = [[5, 4], [1, 0], [1, 0], [1, 0], [8, 3], [2, 2], [8, 3, 2, 3], [3, 3]]
RULES = [[2, 3], [7, 3], [7, 3, 2, 3]]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "circle", "square"]
INK, MUTED, GRID, BACKGROUND = "#1f2430", "#9aa1ad", "#e6e8ec", "#ffffff"
SIZE, CURVE_SIZE = (620, 380), (330, 220)
FINE = 0.08
"""An axis that spans less needs a third decimal."""
LABEL_LINE = 15
"""Pixels from one line of small text to the next."""
LEGEND_CHARACTERS = 90
CURVES = (
    ("loss", "loss", ".3~g"),
    ("eval_" + DEV_RECALL, "recall@10 on dev", ".3f"),
    ("learning_rate", "learning rate", "~e"),
)
"""The name in the trainer's log, what the page calls it, and how the axis writes it."""
FONT = "Helvetica Neue, Arial, DejaVu Sans, sans-serif"


def short_source(source: str) -> str:
    """Return the name of a source without its folders: pictures are passed around, and paths tell of a machine.

    >>> short_source("home-depot:../data/home-depot"), short_source("/srv/shop/judgments.csv")
    ('home-depot', 'judgments.csv')
    """
    kind, colon, _ = source.partition(":")
    if colon and "/" not in kind and "\\" not in kind and len(kind) > 1:
        return kind
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1] or source


def measure_by_dim(results: pl.DataFrame, measure: str, *, subtitle: str) -> alt.LayerChart:
    """Return the chart of a measure over embedding size: a line a model, bands of its intervals, BM25 as a rule across.

    Args:
        results: columns as `evaluation.grid.SCHEMA`; fusions and cells that are not plain are not drawn.

    Raises:
        ValueError: no variant has a plain cell with this measure.
    """
    rows = plain(results).filter(pl.col("measure") == measure)
    every = rows.filter(pl.col("dim") > 0)["variant"].unique(maintain_order=True).to_list()
    variants = [name for name in every if not is_fused(name, every)]
    if not variants:
        raise ValueError(f"no variant has {measure} of a float32 embedding that is neither rotated nor rescored")
    lexical, sized = rows.filter(pl.col("dim") == 0), rows.filter(pl.col("variant").is_in(variants))
    ends = pl.concat([lexical["value"], *(sized[name].drop_nulls() for name in ("value", "low", "high"))]).to_list()
    span = max(ends) - min(ends)
    dims = sorted(sized["dim"].unique())
    right = dims[-1] * 1.07
    x = log_axis("dim:Q", "embedding size (dims, log scale)", (dims[0] * 0.93, right), ticks=dims, format="d")
    y = value_axis(label(measure), ".3f" if span < FINE else ".2f")
    one_row = sum(len(name) + 4 for name in variants) < LEGEND_CHARACTERS
    legend = top_legend(direction="horizontal", columns=len(variants) if one_row else 3)
    colours, shapes, dashes = _looks(variants, legend)
    tooltip = [
        *(alt.Tooltip("variant:N"), alt.Tooltip("dim:Q"), alt.Tooltip("value:Q", format=".4f", title=label(measure))),
        *(alt.Tooltip(f"{end}:Q", format=".4f") for end in ("low", "high")),
    ]
    base = chart_of(sized.to_dicts()).encode(x=x, y=y, color=colours, shape=shapes, tooltip=tooltip)
    names = lexical.sort("value").select("value", "variant").iter_rows()
    across = [(value, name, RULES[n % len(RULES)]) for n, (value, name) in enumerate(names)]
    layers = [
        *_intervals(sized, variants, x, y),
        *lines_across(across, LABEL_LINE * span / SIZE[1], right, x, y, color=INK, strokeWidth=1.4),
        base.mark_line(strokeWidth=2.2).encode(strokeDash=dashes),
        base.mark_point(filled=True, size=70, opacity=1),
    ]
    return styled(layers, f"{label(measure)} by embedding size", subtitle, SIZE)


def _intervals(rows: pl.DataFrame, variants: list[str], x: alt.X, y: alt.Y) -> list[Any]:
    layers = []
    # Colours of the marks, as an encoding would put bands into the legend, or take lines out of it.
    for variant, colour in zip(variants, _cycled(COLOURS, variants), strict=True):
        own = rows.filter(pl.col("variant") == variant).drop_nulls(["low", "high"]).select("dim", "low", "high")
        base = chart_of(own.to_dicts()).encode(x=x, y=alt.Y("low:Q", scale=y["scale"]), y2="high:Q")
        # A band needs two sizes, so a thin bar stands at each.
        layers += [
            base.mark_area(opacity=0.1, color=colour),
            base.mark_rule(opacity=0.45, strokeWidth=1.2, color=colour),
        ]
    return layers


def lines_across(
    lines: Sequence[tuple[float, str, list[int]]], gap: float, right: float, x: alt.X, y: alt.Y, **look: Any
) -> list[Any]:
    """Return a line across for each (value, name, dash), named at the `right` end of x, names `gap` apart on y."""
    order = sorted(lines)
    layers = []
    for (value, name, dash), at in zip(order, spread([value for value, *_ in order], gap), strict=True):
        base = chart_of([{"value": value, "name": name, "label": at, "right": right}])
        text = base.mark_text(align="left", dx=7, fontSize=11, color=INK, limit=160)
        layers += [
            base.mark_rule(strokeDash=dash, **look).encode(y=alt.Y("value:Q", scale=y["scale"])),
            text.encode(x=alt.X("right:Q", scale=x["scale"]), y=alt.Y("label:Q", scale=y["scale"]), text="name:N"),
        ]
    return layers


def score_histogram(inspection: Inspection) -> alt.LayerChart:
    """Return the histogram of scores, bars above the threshold coloured, with the threshold and the dip as rules."""
    low, high = inspection.judgments.scale
    width = (high - low) / 40 or 0.05
    bars = []
    for bar in inspection.bars:
        wider = width if bar.low == bar.high else 0
        kept = "relevant" if (bar.low + bar.high) / 2 > inspection.threshold else "not relevant"
        bars.append({"low": bar.low - wider, "high": bar.high + wider, "count": bar.count, "kept": kept})
    rules = {f"threshold {inspection.threshold:g}": inspection.threshold}
    if inspection.dip is not None:
        rules[f"dip {inspection.dip:.2f}"] = inspection.dip
    legend = alt.Legend(title=None, orient="top")
    x_scale = alt.Scale(domain=[low - 2 * width, high + 2 * width], nice=False)
    columns = chart_of(bars).encode(
        x=alt.X("low:Q", title="score", scale=x_scale, axis=alt.Axis(grid=False)),
        x2="high:Q",
        y=alt.Y("count:Q", title="records", scale=alt.Scale(zero=True), axis=alt.Axis(format="~s")),
        # Without an end of its own a bar from low to high floats at its count.
        y2=alt.Y2Datum(0),
        color=coded(alt.Color, "kept:N", ["not relevant", "relevant"], ["#c3c8d1", COLOURS[1]], legend),
    )
    dashes = coded(alt.StrokeDash, "what:N", list(rules), [[1, 0], [4, 4]][: len(rules)], legend)
    lines = chart_of([{"at": at, "what": name} for name, at in rules.items()]).mark_rule(strokeWidth=1.6, color=INK)
    subtitle = f"{len(inspection.judgments):,} records, {inspection.share:.1%} above {inspection.threshold:g}"
    return styled([columns.mark_bar(), lines.encode(x="at:Q", strokeDash=dashes)], "Scores", subtitle, (620, 260))


def training_curves(trainings: Mapping[str, Mapping[str, Any]]) -> dict[str, alt.LayerChart]:
    """Return a chart for each curve that any training logged, by its title; `trainings` are summaries by variant."""
    charts = {}
    colours, shapes, dashes = _looks(list(trainings))
    for key, title, number in CURVES:
        rows = [
            {"variant": name, "epoch": entry["epoch"], "value": entry[key]}
            for name, training in trainings.items()
            for entry in [{"epoch": 0.0, "eval_" + DEV_RECALL: training["before"][DEV_RECALL]}, *training["history"]]
            if entry.get(key) is not None and "epoch" in entry
        ]
        axis = alt.Axis(format=number, tickCount=5, minExtent=44)
        base = chart_of(rows).encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(grid=False, tickCount=5)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=axis),
            color=colours,
        )
        layers = [base.mark_line(strokeWidth=2).encode(strokeDash=dashes)]
        if key.startswith("eval"):
            layers.append(base.mark_point(filled=True, size=50, opacity=1).encode(shape=shapes))
        if rows:
            charts[title] = styled(layers, title, "", CURVE_SIZE)
    return charts


def save(chart: alt.LayerChart, stem: Path) -> tuple[Path, Path]:
    """Write `STEM.png` (twice the size, for sharp screens) and `STEM.svg`; return both paths."""
    paths = Path(f"{stem}.png"), Path(f"{stem}.svg")
    for path in paths:
        with atomic.new_file(path) as temporary:
            chart.save(str(temporary), scale_factor=2)
    return paths


def chart_of(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    """Return a chart that holds its rows itself."""
    return alt.Chart(alt.InlineData(values=list(rows)))


def log_axis(field: str, title: str, ends: tuple[float, float], *, ticks: Sequence[float], format: str) -> alt.X:
    """Return a log axis to the right, with a tick at each of `ticks`."""
    scale = alt.Scale(type="log", base=2, domain=list(ends), nice=False)
    return alt.X(field, title=title, scale=scale, axis=alt.Axis(values=list(ticks), format=format, grid=False))


def value_axis(title: str, format: str) -> alt.Y:
    """Return an upright axis of `value` that need not begin at zero."""
    scale = alt.Scale(zero=False, nice=True, padding=12)
    return alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(format=format))


def apart(values: Sequence[float], ratio: float) -> list[float]:
    """Return values for the ticks of a log axis, without those less than `ratio` below the next that is kept."""
    kept: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not kept or kept[-1] / value > ratio:
            kept.append(value)
    return kept[::-1]


def top_legend(**options: Any) -> alt.Legend:
    """Return a legend above the plot."""
    return alt.Legend(title=None, orient="top", **{"symbolSize": 90, "symbolStrokeWidth": 0} | options)


def coded(channel: Any, field: str, names: list[str], values: list[Any], legend: alt.Legend | None = None) -> Any:
    """Return an encoding (colour, shape or dash) of each name by the value in its place."""
    return channel(field, scale=alt.Scale(domain=names, range=values), legend=legend)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return rising values moved as little as keeps neighbours `gap` apart, with the same mean."""
    moved = list(accumulate(values, lambda last, value: max(value, last + gap)))
    shift = (sum(moved) - sum(values)) / max(1, len(moved))
    return [value - shift for value in moved]


def _looks(variants: list[str], legend: alt.Legend | None = None) -> tuple[Any, Any, Any]:
    """Return encodings of variants by colour, by shape and by dash."""
    return (
        coded(alt.Color, "variant:N", variants, _cycled(COLOURS, variants), legend),
        coded(alt.Shape, "variant:N", variants, _cycled(SHAPES, variants, turn=1), legend),
        coded(alt.StrokeDash, "variant:N", variants, _cycled(DASHES, variants, turn=1), legend),
    )


def _cycled(values: list[Any], variants: list[str], *, turn: int = 0) -> list[Any]:
    """Return a value a variant; each time they begin anew, they begin `turn` farther."""
    # The first value is the untouched model's; without one they start at the second.
    start = 0 if variants and variants[0].startswith("pretrained") else 1
    return [values[(start + n + turn * (n // len(values))) % len(values)] for n in range(len(variants))]


def styled(layers: Sequence[Any], title: str, subtitle: str, size: tuple[int, int]) -> alt.LayerChart:
    """Return layers as one picture of `size` pixels within its padding, in the fonts and greys of all."""
    head = alt.TitleParams(title, subtitle=subtitle, anchor="start", fontSize=18, subtitleFontSize=12, offset=14)
    axis = {"gridColor": GRID, "domainColor": MUTED, "tickColor": MUTED, "labelColor": INK, "titleColor": INK}
    picture: alt.LayerChart = (
        alt.layer(*layers)
        .properties(width=size[0], height=size[1], background=BACKGROUND, padding=20, title=head)
        .configure(font=FONT)
        .configure_view(stroke=None)
        .configure_title(color=INK, subtitleColor="#5b6270")
        .configure_axis(**axis, labelFontSize=12, titleFontSize=12, titlePadding=10)
        .configure_legend(labelFontSize=12, labelColor=INK, labelLimit=300)
    )
    return picture
