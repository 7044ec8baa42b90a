"""The pictures of a search and of a learning curve: parallel coordinates, importances, measures over records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from nestling.report.charts import (
    COLOURS,
    INK,
    MUTED,
    apart,
    chart_of,
    coded,
    log_axis,
    styled,
    top_legend,
    value_axis,
)
from nestling.report.format import label
from nestling.study.tune.space import value_text

if TYPE_CHECKING:
    from nestling.study.tune.search import TrialRecord
    from nestling.study.tune.space import Dimension, Space

RECALL = "dev recall@10"
BEST = "#D55E00"
SHADES = ["#d5e3ef", "#56a0d3", "#08306b"]
"""From the poorest trial to the best: lightness alone carries it, so that print without colour does too."""


def parallel_coordinates(
    records: Sequence[TrialRecord], space: Space, *, best: int, subtitle: str, measure: str = RECALL
) -> alt.LayerChart:
    """Return the chart of a search: a line a trial across an upright axis a setting, ending at its `measure`.

    The trial of the number `best` is drawn thick, pruned ones dashed; those below every complete trial end at the foot
    of the last axis, and trials without any figure before it.
    """
    # From the complete trials alone: figures from half-way through a training would squeeze the others together.
    values = [record.value for record in records if record.value is not None and record.state == "complete"]
    low, high = min(values), max(values)
    below = any(record.value is not None and record.value < low for record in records)
    names = [*(dimension.name for dimension in space), measure]
    points: list[dict[str, Any]] = []
    for record in records:
        state = "best" if record.number == best else record.state
        ends = {d.name: d.position(record.params[d.name]) for d in space if d.name in record.params}
        if record.value is not None:
            ends[measure] = min(1.0, max(0.0, (record.value - low) / (high - low))) if high > low else 0.5
        trial = {"trial": record.number, "state": state, "value": record.value}
        points += [{**trial, "axis": names.index(name), "setting": name, "at": at} for name, at in ends.items()]
    ticks = [(dimension.name, at, text) for dimension in space for at, text in _ticks(dimension)]
    if high > low:
        ticks += [(measure, 0.0, f"{'≤ ' if below else ''}{low:.3f}"), (measure, 1.0, f"{high:.3f}")]
    else:
        ticks.append((measure, 0.5, f"{low:.3f}"))

    # Line breaks at underscores, since names of settings are long and axes stand close.
    words: dict[str, Any] = {"labelExpr": "split(datum.label, '_')", "labelAngle": 0, "labelPadding": 10}
    axis = alt.Axis(title=None, domain=False, ticks=False, grid=False, **words)
    x = alt.X("setting:N", sort=names, axis=axis, scale=alt.Scale(type="point", padding=0.5))
    y = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[-0.03, 1.03], nice=False))
    rules = chart_of([{"setting": name, "low": 0, "high": 1} for name in names]).mark_rule(color=MUTED, strokeWidth=1)
    trials = chart_of(points).encode(x=x, y=y, detail="trial:N", order="axis:Q")
    dashes = coded(alt.StrokeDash, "state:N", ["best", "complete", "pruned"], [[1, 0], [1, 0], [3, 3]])
    domain = [low, high] if high > low else [low - 0.01, high + 0.01]
    shade = alt.Color("value:Q", scale=alt.Scale(range=SHADES, domain=domain, clamp=True), legend=None)
    others = trials.transform_filter("datum.state != 'best'").mark_line(strokeWidth=1.6, opacity=0.9)
    thick = trials.transform_filter("datum.state == 'best'").mark_line(
        strokeWidth=3.2, color=BEST, point=alt.OverlayMarkDef(filled=True, size=50, color=BEST)
    )
    placed: dict[str, Any] = {"align": "right", "dx": -7, "fontSize": 11, "color": INK, "lineBreak": "_"}
    labels = chart_of([{"setting": name, "at": at, "text": text} for name, at, text in ticks])
    labels = labels.encode(x=x, y=y, text="text:N")
    layers = [
        rules.encode(x=x, y=alt.Y("low:Q", axis=None), y2="high:Q"),
        others.encode(color=shade, strokeDash=dashes),
        thick,
        labels.mark_text(**placed, stroke="white", strokeWidth=3, strokeOpacity=0.7),
        labels.mark_text(**placed),
    ]
    legend = f"{subtitle}; orange: the best, dark: good, dashed: pruned"
    return styled(layers, "Settings that were tried", legend, (max(660, 115 * len(names)), 340))


def importances(importance: Mapping[str, float], *, subtitle: str, measure: str = RECALL) -> alt.LayerChart:
    """Return bars of each setting's share in how `measure` varies, largest first."""
    rows = [{"setting": name, "share": share, "text": f"{share:.0%}"} for name, share in importance.items()]
    base = chart_of(rows).encode(
        x=alt.X(
            "share:Q",
            title=f"share in how {measure} varies (PED-ANOVA)",
            axis=alt.Axis(format="%", tickCount=5),
            scale=alt.Scale(domain=[0, max(importance.values()) * 1.12 or 1], nice=False),
        ),
        y=alt.Y("setting:N", sort=list(importance), title=None, axis=alt.Axis(labelLimit=220)),
    )
    bars = base.mark_bar(color=COLOURS[1], height=alt.RelativeBandSize(0.66))
    texts = base.mark_text(align="left", dx=5, fontSize=12, color=INK).encode(text="text:N")
    return styled([bars, texts], "Which settings mattered", subtitle, (520, 36 * len(rows) + 20))


def learning_curve(results: pl.DataFrame, *, before: Mapping[str, float], subtitle: str) -> alt.LayerChart:
    """Return the chart of dev measures over training records, log axis; dashed rules are the untrained base.

    The results have columns records, seed, measure and value; several seeds are points around the line of their mean.
    """
    results = results.with_columns(pl.col("measure").map_elements(label, return_dtype=pl.String).alias("label"))
    labels = [label(measure) for measure in before]
    least, most = min(results["records"]), max(results["records"])
    means = results.group_by("label", "share", maintain_order=True).agg(pl.col("records", "value").mean())
    colour = coded(alt.Color, "label:N", labels, COLOURS[1 : 1 + len(labels)], top_legend())
    shapes = ["square", "triangle-up", "diamond", "circle"][: len(labels)]
    ticks = apart(means["records"].to_list(), 1.15)
    x = log_axis("records:Q", "training records (log scale)", (least * 0.9, most * 1.1), ticks=ticks, format=",.0f")
    y = value_axis("on dev", ".2f")
    lines = chart_of(means.to_dicts()).mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour)
    points = chart_of(results.to_dicts()).mark_point(filled=True, size=70, opacity=1)
    shape = coded(alt.Shape, "label:N", labels, shapes, top_legend())
    untrained = [{"label": label(name), "value": value, "records": most} for name, value in before.items()]
    base = chart_of([{**mark, "text": f"{mark['label']} before training"} for mark in untrained])
    rules = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.6).encode(y=y, color=colour)
    texts = base.mark_text(align="right", baseline="bottom", dy=-3, fontSize=11, color=INK)
    layers = [
        rules,
        lines,
        points.encode(x=x, y=y, color=colour, shape=shape),
        texts.encode(x=x, y=y, text="text:N"),
    ]
    return styled(layers, "Would more judgments help?", subtitle, (620, 360))


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    """Return (position, text) of an axis: every choice, or the ends and the middle of a range."""
    values: Sequence[Any] = dimension.choices
    if dimension.whole and dimension.high - dimension.low <= 8:
        values = range(int(dimension.low), int(dimension.high) + 1)
    elif not dimension.choices:
        low, high = dimension.low, dimension.high
        values = [float(low), (low * high) ** 0.5 if dimension.log else (low + high) / 2, float(high)]
    return [(dimension.position(value), value_text(value)) for value in values]
