"""The pictures: a measure over embedding sizes, a line a model, and the score histogram. PNG and SVG from one chart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl

from nestling import atomic
from nestling.judgments.inspection import Inspection
from nestling.report.tables import is_fused, label, plain

# Okabe and Ito's colours, told apart by colour-blind readers too; shapes and dashes serve black-and-white print.
COLOURS = ["#6b7280", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = [[5, 4], [1, 0], [1, 0], [1, 0], [8, 3], [2, 2], [8, 3, 2, 3], [3, 3]]
RULES = [[2, 3], [7, 3], [7, 3, 2, 3]]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "circle", "square"]
INK, MUTED, GRID, BACKGROUND = "#1f2430", "#9aa1ad", "#e6e8ec", "#ffffff"
SIZE = (620, 380)
FINE = 0.08
"""An axis that spans less needs a third decimal."""
LABEL_LINE = 15
"""Pixels from one line of small text to the next."""
LEGEND_CHARACTERS = 90
FONT = "Helvetica Neue, Arial, DejaVu Sans, sans-serif"


def short_source(source: str) -> str:
    """Return the name of a source without its folders: pictures are passed around, and paths tell of a machine.

    `home-depot:../data/home-depot` is `home-depot`, `/srv/shop/judgments.csv` is `judgments.csv`.
    """
    kind, colon, _ = source.partition(":")
    if colon and "/" not in kind and "\\" not in kind and len(kind) > 1:
        return kind
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1] or source


def measure_by_dim(results: pl.DataFrame, measure: str, *, subtitle: str, fused: bool = False) -> alt.LayerChart:
    """Return the chart of a measure over embedding size: size on a log axis, rising to the right, a line a variant.

    Plain cells only. Bands are intervals of 95 %, where the table has them. What has no size, as BM25, is a dashed
    rule across, named at its end.

    Args:
        results: long table, columns as `evaluation.grid.SCHEMA`; variants in the order of the legend.
        subtitle: one line under the title, say protocol and number of queries.
        fused: draw the fusions with BM25 too, which are twice as many lines.

    Raises:
        ValueError: no variant has a plain cell with this measure.
    """
    chosen = plain(results).filter(pl.col("measure") == measure)
    lexical, chosen = chosen.filter(pl.col("dim") == 0), chosen.filter(pl.col("dim") > 0)
    variants = chosen["variant"].unique(maintain_order=True).to_list()
    if not fused:
        variants = [name for name in variants if not is_fused(name, variants)]
        chosen = chosen.filter(pl.col("variant").is_in(variants))
    if not variants:
        raise ValueError(f"no variant has {measure} of a float32 embedding that is neither rotated nor rescored")
    dims = sorted(chosen["dim"].unique())
    # The first variant's grey is for the untouched model; a study without one starts at the first colour.
    scale = {
        "color": alt.Scale(domain=variants, range=_cycled(COLOURS, variants)),
        "strokeDash": alt.Scale(domain=variants, range=_cycled(DASHES, variants, turn=1)),
        "shape": alt.Scale(domain=variants, range=_cycled(SHAPES, variants, turn=1)),
    }
    one_row = sum(len(name) + 4 for name in variants) < LEGEND_CHARACTERS
    legend = alt.Legend(
        title=None,
        orient="top",
        direction="horizontal",
        columns=len(variants) if one_row else 3,
        symbolSize=90,
        symbolStrokeWidth=0,
    )
    right = dims[-1] * 1.07
    ends = pl.concat([lexical["value"], *(chosen[name].drop_nulls() for name in ("value", "low", "high"))]).to_list()
    span = max(ends) - min(ends)
    x_scale = alt.Scale(type="log", base=2, domain=[dims[0] * 0.93, right], nice=False)
    y_scale = alt.Scale(zero=False, nice=True, padding=12)
    x = alt.X(
        "dim:Q",
        title="embedding size (dims, log scale)",
        scale=x_scale,
        axis=alt.Axis(values=dims, format="d", grid=False),
    )
    base = alt.Chart(alt.InlineData(values=chosen.to_dicts())).encode(
        x=x,
        y=alt.Y(
            "value:Q",
            title=label(measure),
            scale=y_scale,
            axis=alt.Axis(format=".3f" if span < FINE else ".2f"),
        ),
        color=alt.Color("variant:N", scale=scale["color"], legend=legend),
        shape=alt.Shape("variant:N", scale=scale["shape"], legend=legend),
        strokeDash=alt.StrokeDash("variant:N", scale=scale["strokeDash"], legend=legend),
        tooltip=[
            alt.Tooltip("variant:N"),
            alt.Tooltip("dim:Q"),
            alt.Tooltip("value:Q", format=".4f", title=label(measure)),
            alt.Tooltip("low:Q", format=".4f"),
            alt.Tooltip("high:Q", format=".4f"),
        ],
    )
    lines = base.mark_line(strokeWidth=2.2)
    points = base.mark_point(filled=True, size=70, opacity=1).encode(strokeDash=alt.StrokeDash())
    layers = [
        *_intervals(chosen, variants, x, y_scale),
        *_across(lexical, LABEL_LINE * span / SIZE[1], right, x_scale, y_scale),
        lines,
        points,
    ]
    width, height = SIZE
    return _styled(alt.layer(*layers), f"{label(measure)} by embedding size", subtitle, width=width, height=height)


def score_histogram(inspection: Inspection) -> alt.LayerChart:
    """Return the histogram of scores, bars above the threshold coloured, with the threshold and the dip as rules."""
    low, high = inspection.judgments.scale
    width = (high - low) / 40 or 0.05
    bars = [
        {
            "low": bar.low - (width if bar.low == bar.high else 0),
            "high": bar.high + (width if bar.low == bar.high else 0),
            "count": bar.count,
            "kept": "relevant" if (bar.low + bar.high) / 2 > inspection.threshold else "not relevant",
        }
        for bar in inspection.bars
    ]
    rules: list[dict[str, Any]] = [{"at": inspection.threshold, "what": f"threshold {inspection.threshold:g}"}]
    if inspection.dip is not None:
        rules.append({"at": inspection.dip, "what": f"dip {inspection.dip:.2f}"})
    x = alt.X(
        "low:Q",
        title="score",
        scale=alt.Scale(domain=[low - 2 * width, high + 2 * width], nice=False),
        axis=alt.Axis(grid=False),
    )
    columns = (
        alt.Chart(alt.InlineData(values=bars))
        .mark_bar()
        .encode(
            x=x,
            x2="high:Q",
            y=alt.Y("count:Q", title="records", scale=alt.Scale(zero=True), axis=alt.Axis(format="~s")),
            # Without an end of its own a bar from low to high floats at its count.
            y2=alt.Y2Datum(0),
            color=alt.Color(
                "kept:N",
                scale=alt.Scale(domain=["not relevant", "relevant"], range=["#c3c8d1", "#0072B2"]),
                legend=alt.Legend(title=None, orient="top"),
            ),
        )
    )
    lines = (
        alt.Chart(alt.InlineData(values=rules))
        .mark_rule(strokeWidth=1.6, color=INK)
        .encode(
            x="at:Q",
            strokeDash=alt.StrokeDash(
                "what:N",
                scale=alt.Scale(domain=[r["what"] for r in rules], range=[[1, 0], [4, 4]][: len(rules)]),
                legend=alt.Legend(title=None, orient="top"),
            ),
        )
    )
    subtitle = f"{len(inspection.judgments):,} records, {inspection.share:.1%} above {inspection.threshold:g}"
    return _styled(alt.layer(columns, lines), "Scores", subtitle, width=620, height=260)


def save(chart: alt.LayerChart, stem: Path) -> tuple[Path, Path]:
    """Write `STEM.png` (twice the size, for sharp screens) and `STEM.svg`; return both paths."""
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with atomic.new_file(png) as temporary:
        chart.save(str(temporary), format="png", scale_factor=2)
    with atomic.new_file(svg) as temporary:
        chart.save(str(temporary), format="svg")
    return png, svg


def _intervals(chosen: pl.DataFrame, variants: list[str], x: alt.X, y_scale: alt.Scale) -> list[Any]:
    layers = []
    # Colours of the marks themselves, as an encoding would put bands into the legend, or take lines out of it.
    for variant, colour in zip(variants, _cycled(COLOURS, variants), strict=True):
        rows = chosen.filter(pl.col("variant") == variant).drop_nulls(["low", "high"]).select("dim", "low", "high")
        base = alt.Chart(alt.InlineData(values=rows.to_dicts())).encode(
            x=x, y=alt.Y("low:Q", scale=y_scale), y2="high:Q"
        )
        # A band needs two sizes, so a thin bar stands at each.
        layers += [
            base.mark_area(opacity=0.1, color=colour),
            base.mark_rule(opacity=0.45, strokeWidth=1.2, color=colour),
        ]
    return layers


def _across(lexical: pl.DataFrame, gap: float, right: float, x_scale: alt.Scale, y_scale: alt.Scale) -> list[Any]:
    rows = lexical.select("variant", "value").sort("value").to_dicts()
    layers = []
    for n, (row, at) in enumerate(zip(rows, spread([row["value"] for row in rows], gap), strict=True)):
        base = alt.Chart(alt.InlineData(values=[{**row, "label": at, "right": right}]))
        y = alt.Y("value:Q", scale=y_scale)
        layers.append(base.mark_rule(strokeWidth=1.4, strokeDash=RULES[n % len(RULES)], color=INK).encode(y=y))
        # Outside of the plot, where there is no line to cover.
        name = base.mark_text(align="left", dx=7, fontSize=11, color=INK, limit=160)
        x, y = alt.X("right:Q", scale=x_scale), alt.Y("label:Q", scale=y_scale)
        layers.append(name.encode(x=x, y=y, text="variant:N"))
    return layers


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return rising values moved as little as keeps neighbours `gap` apart, with the same mean."""
    moved: list[float] = []
    for value in values:
        moved.append(max(value, moved[-1] + gap) if moved else value)
    shift = (sum(moved) - sum(values)) / max(1, len(moved))
    return [value - shift for value in moved]


def _cycled(values: list[Any], variants: list[str], *, turn: int = 0) -> list[Any]:
    """Return a value a variant; each time they begin anew, they begin `turn` farther."""
    start = 0 if variants and variants[0].startswith("pretrained") else 1
    return [values[(start + n + turn * (n // len(values))) % len(values)] for n in range(len(variants))]


def _styled(chart: Any, title: str, subtitle: str, *, width: int, height: int) -> alt.LayerChart:
    styled: alt.LayerChart = (
        chart.properties(
            width=width,
            height=height,
            background=BACKGROUND,
            padding=20,
            title=alt.TitleParams(
                title, subtitle=subtitle, anchor="start", fontSize=18, subtitleFontSize=12, offset=14
            ),
        )
        .configure(font=FONT)
        .configure_view(stroke=None)
        .configure_title(color=INK, subtitleColor="#5b6270")
        .configure_axis(
            gridColor=GRID,
            domainColor=MUTED,
            tickColor=MUTED,
            labelColor=INK,
            titleColor=INK,
            labelFontSize=12,
            titleFontSize=12,
            titlePadding=10,
        )
        .configure_legend(labelFontSize=12, labelColor=INK, labelLimit=300)
    )
    return styled
