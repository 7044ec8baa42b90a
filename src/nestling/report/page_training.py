"""Pictures of the trainings for the page: loss, dev recall@10 and learning rate over epochs, a line a variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from nestling.report.charts import COLOURS, DASHES, SHAPES, _styled

WIDTH, HEIGHT = 330, 220
CURVES = (
    ("loss", "loss", ".3~g"),
    ("eval_dev_recall@10", "recall@10 on dev", ".3f"),
    ("learning_rate", "learning rate", "~e"),
)
"""The name in the trainer's log, what the page calls it, and how the axis writes it."""


def training_curves(trainings: Mapping[str, Mapping[str, Any]]) -> dict[str, alt.LayerChart]:
    """Return a chart for each curve that any training logged, by its title.

    Args:
        trainings: variant -> a training's summary with its `history`; dev recall@10 before the first step is in
            `before`.
    """
    charts = {}
    for key, title, number in CURVES:
        rows = [
            {"variant": name, "epoch": entry["epoch"], "value": entry[key]}
            for name, training in trainings.items()
            for entry in [*_start(training), *training["history"]]
            if entry.get(key) is not None and "epoch" in entry
        ]
        if rows:
            charts[title] = _curve(rows, list(trainings), title, number, points=key.startswith("eval"))
    return charts


def _start(training: Mapping[str, Any]) -> list[dict[str, float]]:
    return [{"epoch": 0.0, "eval_dev_recall@10": training["before"]["dev_recall@10"]}]


def _curve(rows: list[dict[str, Any]], names: list[str], title: str, number: str, *, points: bool) -> alt.LayerChart:
    # The first of the colours is the pretrained model's, as in the charts over sizes.
    looks = [(n % (len(COLOURS) - 1)) + 1 for n in range(len(names))]
    domain: dict[str, Any] = {"domain": names}
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(grid=False, tickCount=5)),
        y=alt.Y(
            "value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(format=number, tickCount=5, minExtent=44)
        ),
        color=alt.Color("variant:N", scale=alt.Scale(**domain, range=[COLOURS[n] for n in looks]), legend=None),
    )
    dashes = alt.Scale(**domain, range=[DASHES[n] for n in looks])
    layers: list[Any] = [
        base.mark_line(strokeWidth=2).encode(strokeDash=alt.StrokeDash("variant:N", scale=dashes, legend=None))
    ]
    if points:
        shapes = alt.Scale(**domain, range=[SHAPES[n] for n in looks])
        layers.append(
            base.mark_point(filled=True, size=50, opacity=1).encode(
                shape=alt.Shape("variant:N", scale=shapes, legend=None)
            )
        )
    return _styled(alt.layer(*layers), title, "", width=WIDTH, height=HEIGHT)
