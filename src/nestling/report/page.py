"""The study's page, one HTML file, and the same in Markdown, report.md, both from a run's tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from nestling import atomic
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.recommend import kept_by
from nestling.report import charts, grid_charts
from nestling.report.contents import contents, measure_pictures
from nestling.report.format import label
from nestling.report.model_card import write_cards
from nestling.report.page_data import PageData, load_page_data
from nestling.report.page_explorer import explorer
from nestling.report.render import markdown
from nestling.report.render.html import inline, picture, render, shortened

REPORT = "report.md"
EXTREMES = 5


def write_pages(folder: RunFolder) -> Path:
    """Write a finished run's report.html, report.md and a card in each trained model's folder; return the first."""
    data = load_page_data(folder)
    shared = contents(data)
    atomic.write_text(folder.report, page(data, shared))
    atomic.write_text(folder.path / REPORT, study_markdown(shared, folder))
    write_cards(folder, data)
    return folder.report


def page(data: PageData, shared: Mapping[str, Any]) -> str:
    """Return the page as HTML: one file that needs no network, 5 MB at most; `shared` is the study's `contents`."""
    # Where the pick is the reference itself, it is compared with BM25.
    first = data.reference if data.reference != data.pick else data.lexical
    trainings = charts.training_curves(data.study["training"])
    return render(
        "page.html",
        **shared,
        histogram=inline(data.histogram, name="Histogram of scores") if data.histogram else None,
        curves=measure_pictures(data.results, data.measures, data.study),
        training_curves=[picture(chart, name=title) for title, chart in trainings.items()],
        fronts=_fronts(data),
        explorer=explorer(data, first=first, second=data.pick),
        extremes=_extremes(data, first) if first else None,
    )


def study_markdown(shared: Mapping[str, Any], folder: RunFolder | None = None) -> str:
    """Return the study's `contents` as GitHub Markdown, with the pictures in `folder`, which is the text's own."""
    images = defaultdict(list)
    if folder is not None:
        stems = [(measure, folder.picture(measure)) for measure in shared["measures"]]
        files = [("Results", f"{measure} over sizes", Path(f"{stem}.png")) for measure, stem in stems]
        files += [(one.title, f"{one.title}: {path.stem}", path) for one in shared["findings"] for path in one.files]
        for part, alt, path in files:
            if path.is_file():
                images[part].append((alt, Markup(quote(path.relative_to(folder.path).as_posix()))))
    return markdown.render("report.md", **shared, images=images)


def _fronts(data: PageData) -> list[tuple[str, Markup]]:
    """Return the picture of each model's grid, where more than plain cells were measured."""
    fronts, measure = [], data.measures[0]
    for name in (variant["name"] for variant in data.variants):
        cells = data.cells(name)
        if cells.select("precision", "rotation", "oversampling").n_unique() < 2:
            continue
        # One resample, since the picture shows no intervals; a model that finds nothing has nothing to keep.
        try:
            kept = kept_by(cells, measure, resamples=1)
        except InputError:
            continue
        chart = grid_charts.pareto(kept, measure, subtitle=f"{name}, on test")
        fronts.append((name, picture(chart, name=f"{name}: {label(measure)} by bytes a vector")))
    return fronts


def _extremes(data: PageData, first: str) -> dict[str, Any]:
    """Return the queries that the pick gains and loses most on against `first`."""
    measure = data.measures[0]
    queries = data.per_query.select("query_id", "query").unique("query_id").sort("query_id")["query"].to_list()
    a, b = (values[0].tolist() for values in data.at_full_size((first, data.pick), (measure,)).values())
    rows = [(shortened(query, 160), before, after) for query, before, after in zip(queries, a, b, strict=True)]
    rows.sort(key=lambda row: row[1] - row[2])
    return {
        "first": first,
        "second": data.pick,
        "measure": label(measure),
        "wins": [row for row in rows[:EXTREMES] if row[2] > row[1]],
        "losses": [row for row in rows[::-1][:EXTREMES] if row[2] < row[1]],
    }
