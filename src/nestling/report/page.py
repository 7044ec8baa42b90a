"""The study's page: one HTML file that tells what came out, made from a run's tables."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nestling import atomic
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.recommend import kept_by
from nestling.report import charts, grid_charts, page_tables
from nestling.report.page_data import PageData, load_page_data
from nestling.report.page_explorer import explorer, shortened
from nestling.report.page_svg import drawn, inline, without_controls
from nestling.report.page_training import training_curves
from nestling.report.page_verdict import verdict
from nestling.report.tables import by_dim, by_dim_table, comparison_table, label, split_table

if TYPE_CHECKING:
    from jinja2 import Environment

LISTED = 5
"""Queries among the biggest wins and losses."""


def write_page(folder: RunFolder, data: PageData | None = None) -> Path:
    """Write `report.html` from the tables of a finished run, read unless they are given; return its path.

    One file that needs no network: style, script, pictures and data are in it, 5 MB at most.

    Raises:
        InputError: the run is not finished, or its tables are damaged or of an earlier version.
    """
    atomic.write_text(folder.report, render(data or load_page_data(folder)))
    return folder.report


def render(data: PageData) -> str:
    """Return the page as HTML. Texts are escaped wherever they stand, and only the page's own script may run."""
    from markupsafe import Markup

    script = template("page.js")
    found = explorer(data, first=_first(data), second=data.pick)
    return (
        environment()
        .get_template("page.html")
        .render(
            name=data.name,
            style=Markup(template("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            facts=facts_of(data),
            answers=verdict(data),
            histogram=Markup(inline(data.histogram, name="Histogram of scores")) if data.histogram else None,
            inspection=data.study["inspection"],
            cleaning=cleaning_of(data),
            notes=data.study["inspection"].get("notes", ()),
            leaks=data.leaks,
            leak_check=data.leak_check,
            warning=data.study["split"].get("warning"),
            split=split_table(data.study["split"]),
            lengths=page_tables.lengths_table(data),
            full=page_tables.full_size_table(data),
            by_dim=[by_dim_table(by_dim(data.results), measure) for measure in data.measures],
            ceiling=data.study["test"]["ceiling@10"],
            curves=[Markup(svg) for svg in _curves(data)],
            training=page_tables.training_table(data) if data.study["training"] else None,
            training_curves=[
                Markup(inline(drawn(chart), name=title))
                for title, chart in training_curves(data.study["training"]).items()
            ],
            fronts=[(name, Markup(svg)) for name, svg in _fronts(data)],
            findings=[
                (one.title, one.text, [(name, Markup(svg)) for name, svg in one.pictures]) for one in data.findings
            ],
            slices=page_tables.slices_table(data),
            significance=comparison_table(data.comparisons) if not data.comparisons.is_empty() else None,
            explorer=found,
            explorer_json=Markup(found.json) if found else None,
            extremes=_extremes(data),
            reproduce=reproduction_of(data),
        )
    )


def environment() -> Environment:
    """Return what renders the templates: texts are escaped, and without control characters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("nestling.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: without_controls(value) if type(value) is str else value,
    )


def template(name: str) -> str:
    """Return the text of a file among the templates."""
    return (resources.files("nestling.report") / "templates" / name).read_text(encoding="utf-8")


def _first(data: PageData) -> str | None:
    """The variant that the pick is compared with: the reference, or BM25 where the pick is that itself."""
    return data.reference if data.reference != data.pick else data.lexical


def facts_of(data: PageData) -> dict[str, str]:
    study = data.study
    return {
        "data": charts.short_source(study["data"]["source"]),
        "records": f"{study['inspection']['records']:,}",
        "test queries": f"{study['test']['queries']:,}, {study['test']['protocol']}",
        "test documents": f"{study['test']['documents']:,}",
        "finished": str(study.get("finished", ""))[:10],
    }


def cleaning_of(data: PageData) -> list[str]:
    counts = data.study["inspection"]["cleaning"]
    return [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if name != "read" and count]


def _subtitle(data: PageData) -> str:
    source, test = charts.short_source(data.study["data"]["source"]), data.study["test"]
    text = f"{source}: {test['queries']:,} test queries, {test['documents']:,} documents, {test['protocol']}"
    return shortened(text, 120)


def _curves(data: PageData) -> list[str]:
    if not any(dims[0] for dims in data.dims.values()):
        return []
    return [
        inline(
            drawn(charts.measure_by_dim(data.results, measure, subtitle=_subtitle(data))),
            name=f"{label(measure)} by embedding size",
        )
        for measure in data.measures
    ]


def _fronts(data: PageData) -> list[tuple[str, str]]:
    """The picture of each model's grid, where more than plain cells were measured."""
    fronts = []
    for variant in data.variants:
        cells = data.cells(variant["name"])
        if cells.select("precision", "rotation", "oversampling").n_unique() < 2:
            continue
        try:
            # One resample, since the picture shows no intervals.
            kept = kept_by(cells, data.measures[0], resamples=1)
        except InputError:
            # A model that finds nothing has nothing to keep.
            continue
        chart = grid_charts.pareto(kept, data.measures[0], subtitle=f"{variant['name']}, on test")
        svg = inline(drawn(chart), name=f"{variant['name']}: {label(data.measures[0])} by bytes a vector")
        fronts.append((variant["name"], svg))
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


def without_folders(model: str | None) -> str | None:
    """Return a model's name without the folders that it lies in."""
    # A hub id has a slash too, but begins with no root and no dot.
    return Path(model).name if model and (Path(model).is_absolute() or model.startswith(".")) else model


def reproduction_of(data: PageData) -> dict[str, Any]:
    study = data.study
    experiment = {**study["experiment"], "data": dict(study["experiment"]["data"])}
    # Pages are passed around, and folders tell of a machine.
    experiment["data"]["source"] = charts.short_source(experiment["data"]["source"])
    experiment["model"] = without_folders(experiment["model"])
    experiment["variants"] = [
        {**variant, "base": without_folders(variant["base"])} for variant in experiment["variants"]
    ]
    machine = study["hardware"]
    memory = f", {machine['memory'] / 1e9:.0f} GB of memory" if machine.get("memory") else ""
    gpus = f", {', '.join(machine['gpus'])}" if machine.get("gpus") else ", no GPU"
    return {
        "yaml": yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True),
        "fingerprints": {"data": study["data"]["fingerprint"]}
        | {name: side["fingerprint"] for name, side in study["split"]["sides"].items()},
        "versions": study["versions"],
        "machine": f"{machine['processor']}, {machine['cores']} cores{memory}{gpus}; {machine['system']}",
        "seconds": {name: f"{seconds:,.1f} s" for name, seconds in study["seconds"].items()},
        "seeds": {"split": study["experiment"]["split"]["seed"], "training": study["experiment"]["training"]["seed"]},
    }
