"""The pictures of a search and of a learning curve: parallel coordinates, importances, measures over records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from nestling.report.charts import COLOURS, INK, _styled
from nestling.report.tables import label
from nestling.study.tune.space import shown

if TYPE_CHECKING:
    from nestling.study.tune.outcome import TrialRecord
    from nestling.study.tune.space import Dimension, Space

RECALL = "dev recall@10"
AXIS = "#9aa1ad"
BEST = "#D55E00"
SHADES = ["#d5e3ef", "#56a0d3", "#08306b"]
"""From the poorest trial to the best: lightness alone carries it, so that print without colour does too."""


def parallel_coordinates(
    records: Sequence[TrialRecord], space: Space, *, best: int, subtitle: str, measure: str = RECALL
) -> alt.LayerChart:
    """Return the chart of a search: a line a trial across an upright axis a setting, ending at its `measure`.

    The best trial is drawn thick, pruned ones dashed; those that were below every complete trial end at the foot of
    the last axis, and trials without any figure before it.

    Args:
        best: the number of the best trial.
    """
    # From the complete trials alone: figures from half-way through a training would squeeze the others together.
    values = [record.value for record in records if record.value is not None and record.state == "complete"]
    low, high = min(values), max(values)
    below = any(record.value is not None and record.value < low for record in records)
    last = measure
    names = [*(dimension.name for dimension in space), last]
    points: list[dict[str, Any]] = []
    for record in records:
        state = "best" if record.number == best else record.state
        shared = {"trial": record.number, "state": state, "value": record.value}
        for axis, dimension in enumerate(space):
            if dimension.name not in record.params:
                continue
            value = record.params[dimension.name]
            at = dimension.position(value)
            points.append({**shared, "axis": axis, "setting": dimension.name, "at": at, "shown": shown(value)})
        if record.value is not None:
            at = min(1.0, max(0.0, (record.value - low) / (high - low))) if high > low else 0.5
            points.append({**shared, "axis": len(space), "setting": last, "at": at, "shown": f"{record.value:.4f}"})
    ticks = [
        {"setting": dimension.name, "at": at, "text": text} for dimension in space for at, text in _ticks(dimension)
    ]
    ends = {0.0: f"{'≤ ' if below else ''}{low:.3f}", 1.0: f"{high:.3f}"} if high > low else {0.5: f"{low:.3f}"}
    ticks += [{"setting": last, "at": at, "text": text} for at, text in ends.items()]

    # Line breaks at underscores, since names of settings are long and axes stand close.
    header = alt.Axis(
        title=None,
        labelExpr="split(datum.label, '_')",
        labelAngle=0,
        labelPadding=10,
        domain=False,
        ticks=False,
        grid=False,
    )
    x = alt.X("setting:N", sort=names, axis=header, scale=alt.Scale(type="point", padding=0.5))
    y = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[-0.03, 1.03], nice=False))
    tooltip = [
        alt.Tooltip("trial:Q"),
        alt.Tooltip("state:N"),
        alt.Tooltip("setting:N"),
        alt.Tooltip("shown:N", title="value"),
        alt.Tooltip("value:Q", title=last, format=".4f"),
    ]
    rules = (
        alt.Chart(alt.InlineData(values=[{"setting": name, "low": 0, "high": 1} for name in names]))
        .mark_rule(color=AXIS, strokeWidth=1)
        .encode(x=x, y=alt.Y("low:Q", axis=None), y2="high:Q")
    )
    all_lines = alt.Chart(alt.InlineData(values=points)).encode(
        x=x, y=y, detail="trial:N", order="axis:Q", tooltip=tooltip
    )
    dashes = alt.Scale(domain=["best", "complete", "pruned"], range=[[1, 0], [1, 0], [3, 3]])
    shade = alt.Color(
        "value:Q",
        scale=alt.Scale(range=SHADES, domain=[low, high] if high > low else [low - 0.01, high + 0.01], clamp=True),
        legend=None,
    )
    lines = (
        all_lines.transform_filter("datum.state != 'best'")
        .mark_line(strokeWidth=1.6, opacity=0.9)
        .encode(color=shade, strokeDash=alt.StrokeDash("state:N", scale=dashes, legend=None))
    )
    thick = all_lines.transform_filter("datum.state == 'best'").mark_line(
        strokeWidth=3.2, color=BEST, point=alt.OverlayMarkDef(filled=True, size=50, color=BEST)
    )
    placed: dict[str, Any] = {"align": "right", "dx": -7, "fontSize": 11, "color": INK, "lineBreak": "_"}
    labels = (
        alt.Chart(alt.InlineData(values=ticks))
        .mark_text(**placed, stroke="white", strokeWidth=3, strokeOpacity=0.7)
        .encode(x=x, y=y, text="text:N")
    )
    texts = labels.mark_text(**placed)
    layers = alt.layer(rules, lines, thick, labels, texts)
    legend = f"{subtitle}; orange: the best, dark: good, dashed: pruned"
    return _styled(layers, "Settings that were tried", legend, width=max(660, 115 * len(names)), height=340)


def importances(importance: Mapping[str, float], *, subtitle: str, measure: str = RECALL) -> alt.LayerChart:
    """Return bars of each setting's share in how `measure` varies, largest first."""
    rows = [{"setting": name, "share": share, "text": f"{share:.0%}"} for name, share in importance.items()]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
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
    return _styled(alt.layer(bars, texts), "Which settings mattered", subtitle, width=520, height=36 * len(rows) + 20)


def learning_curve(results: pl.DataFrame, *, before: Mapping[str, float], subtitle: str) -> alt.LayerChart:
    """Return the chart of dev measures over training records, log axis; dashed rules are the untrained base.

    Args:
        results: columns records, seed, measure, value; several seeds are points around the line of their mean.
        before: the base's value of each measure.
    """
    measures = list(before)
    results = results.with_columns(pl.col("measure").map_elements(label, return_dtype=pl.String).alias("shown"))
    labels = [label(measure) for measure in measures]
    records = sorted(results["records"].unique())
    means = results.group_by("shown", "share", maintain_order=True).agg(pl.col("records", "value").mean())
    colour = alt.Color(
        "shown:N",
        scale=alt.Scale(domain=labels, range=COLOURS[1 : 1 + len(labels)]),
        legend=alt.Legend(title=None, orient="top", symbolSize=90, symbolStrokeWidth=0),
    )
    shape = alt.Shape(
        "shown:N",
        scale=alt.Scale(domain=labels, range=["square", "triangle-up", "diamond", "circle"][: len(labels)]),
        legend=alt.Legend(title=None, orient="top", symbolSize=90, symbolStrokeWidth=0),
    )
    x = alt.X(
        "records:Q",
        title="training records (log scale)",
        scale=alt.Scale(type="log", base=2, domain=[records[0] * 0.9, records[-1] * 1.1], nice=False),
        axis=alt.Axis(values=_apart(means["records"].unique().sort().to_list()), format=",.0f", grid=False),
    )
    y = alt.Y(
        "value:Q",
        title="on dev",
        scale=alt.Scale(zero=False, nice=True, padding=12),
        axis=alt.Axis(format=".2f"),
    )
    lines = alt.Chart(alt.InlineData(values=means.to_dicts())).mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour)
    points = (
        alt.Chart(alt.InlineData(values=results.to_dicts()))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            x=x,
            y=y,
            color=colour,
            shape=shape,
            tooltip=["records:Q", "seed:Q", "shown:N", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    floor = [
        {"shown": label(name), "value": value, "records": records[-1], "text": f"{label(name)} before training"}
        for name, value in before.items()
    ]
    base = alt.Chart(alt.InlineData(values=floor))
    rules = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.6).encode(y=y, color=colour)
    texts = base.mark_text(align="right", baseline="bottom", dy=-3, fontSize=11, color=INK).encode(
        x=x, y=y, text="text:N"
    )
    layers = alt.layer(rules, lines, points, texts)
    return _styled(layers, "Would more judgments help?", subtitle, width=620, height=360)


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    """Return (position, text) of an axis: every choice, or the ends and the middle of a range."""
    if dimension.low is None or dimension.high is None:
        return [(dimension.position(value), shown(value)) for value in dimension.choices]
    whole = isinstance(dimension.low, int) and isinstance(dimension.high, int)
    if whole and dimension.high - dimension.low <= 8:
        low, high = int(dimension.low), int(dimension.high)
        return [(dimension.position(value), str(value)) for value in range(low, high + 1)]
    middle = (dimension.low * dimension.high) ** 0.5 if dimension.log else (dimension.low + dimension.high) / 2
    return [(dimension.position(value), f"{value:.2g}") for value in (dimension.low, middle, dimension.high)]


def _apart(values: Sequence[float]) -> list[float]:
    """Return values for the ticks of a log axis, without those whose labels would touch the one before."""
    kept: list[float] = []
    for value in reversed(values):
        if not kept or kept[-1] / value > 1.15:
            kept.append(value)
    return kept[::-1]
