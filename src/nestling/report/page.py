"""The study's page: one HTML file that tells what came out, made from a run's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from nestling import atomic
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.recommend import kept_by
from nestling.report import charts, grid_charts
from nestling.report.contents import cleaning_of, facts_of, reproduction_of, tables_of
from nestling.report.format import label
from nestling.report.model_card import write_cards
from nestling.report.page_data import PageData, load_page_data
from nestling.report.page_explorer import explorer
from nestling.report.render.html import inline, picture, render, shortened
from nestling.report.study_markdown import REPORT, study_markdown
from nestling.report.verdict import verdict

LISTED = 5
"""Queries among the biggest wins and losses."""


def write_pages(folder: RunFolder) -> Path:
    """Write what a finished run says of itself: report.html, report.md and a card in each trained model's folder.

    All from the run's tables alone; return the path of report.html.

    Raises:
        InputError: the run is not finished, or its tables are damaged or of an earlier version.
    """
    data = load_page_data(folder)
    atomic.write_text(folder.report, page(data))
    atomic.write_text(folder.path / REPORT, study_markdown(data, folder))
    write_cards(folder, data)
    return folder.report


def page(data: PageData) -> str:
    """Return the page as HTML: one file that needs no network, 5 MB at most, style, script and pictures in it."""
    found = explorer(data, first=_first(data), second=data.pick)
    return render(
        "page.html",
        name=data.name,
        facts=facts_of(data),
        answers=verdict(data),
        histogram=inline(data.histogram, name="Histogram of scores") if data.histogram else None,
        inspection=data.study["inspection"],
        cleaning=cleaning_of(data),
        notes=data.study["inspection"].get("notes", ()),
        leaks=data.leaks,
        leak_check=data.leak_check,
        warning=data.study["split"].get("warning"),
        ceiling=data.study["test"]["ceiling@10"],
        curves=_curves(data),
        training_curves=[
            picture(chart, name=title) for title, chart in charts.training_curves(data.study["training"]).items()
        ],
        fronts=_fronts(data),
        findings=data.findings,
        explorer=found,
        explorer_json=Markup(found.json) if found else None,
        extremes=_extremes(data),
        reproduce=reproduction_of(data),
        **tables_of(data),
    )


def _first(data: PageData) -> str | None:
    """The variant that the pick is compared with: the reference, or BM25 where the pick is that itself."""
    return data.reference if data.reference != data.pick else data.lexical


def _subtitle(data: PageData) -> str:
    source, test = charts.short_source(data.study["data"]["source"]), data.study["test"]
    text = f"{source}: {test['queries']:,} test queries, {test['documents']:,} documents, {test['protocol']}"
    return shortened(text, 120)


def _curves(data: PageData) -> list[Markup]:
    if not any(dims[0] for dims in data.dims.values()):
        return []
    return [
        picture(
            charts.measure_by_dim(data.results, measure, subtitle=_subtitle(data)),
            name=f"{label(measure)} by embedding size",
        )
        for measure in data.measures
    ]


def _fronts(data: PageData) -> list[tuple[str, Markup]]:
    """Return the picture of each model's grid, where more than plain cells were measured."""
    fronts = []
    measure = data.measures[0]
    for name in (variant["name"] for variant in data.variants):
        cells = data.cells(name)
        if cells.select("precision", "rotation", "oversampling").n_unique() < 2:
            continue
        try:
            # One resample, since the picture shows no intervals.
            kept = kept_by(cells, measure, resamples=1)
        except InputError:
            # A model that finds nothing has nothing to keep.
            continue
        chart = grid_charts.pareto(kept, measure, subtitle=f"{name}, on test")
        fronts.append((name, picture(chart, name=f"{name}: {label(measure)} by bytes a vector")))
    return fronts


def _extremes(data: PageData) -> dict[str, Any] | None:
    """The queries that the pick gains and loses most on, against the variant it is compared with."""
    first, measure = _first(data), data.measures[0]
    if first is None:
        return None
    queries = data.per_query.select("query_id", "query").unique("query_id").sort("query_id")["query"].to_list()
    a, b = (data.values(name, data.dims[name][0], (measure,))[0].tolist() for name in (first, data.pick))
    rows = [(shortened(query, 160), before, after) for query, before, after in zip(queries, a, b, strict=True)]
    rows.sort(key=lambda row: row[1] - row[2])
    return {
        "first": first,
        "second": data.pick,
        "measure": label(measure),
        "wins": [row for row in rows[:LISTED] if row[2] > row[1]],
        "losses": [row for row in rows[::-1][:LISTED] if row[2] < row[1]],
    }
