"""The comparison's page: one HTML file that puts several runs side by side."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from nestling import atomic
from nestling.errors import InputError
from nestling.report import charts, page_tables
from nestling.report.grid_view import size
from nestling.report.page import environment, template
from nestling.report.page_explorer import shortened
from nestling.report.page_svg import drawn, inline
from nestling.report.page_verdict import ALPHA, TONES, Answer, Change, outcome_of
from nestling.report.runs_data import RunsData
from nestling.report.runs_settings import Values, told
from nestling.report.table import Cell, Table
from nestling.report.tables import bounds, by_dim, by_dim_table, comparison_table, full_size, label, p_value, percent

GENERATOR = "Nestling comparison of runs"
"""What the head of the page says, so that a later page knows what it may replace."""
HEAD = 2_000
"""Bytes at the start of a page in which that stands."""


def check_out(path: Path) -> None:
    """Check that the page may be written to `path`.

    Raises:
        InputError: it is there and is no such page.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file with --out")
    if path.exists():
        with path.open("rb") as file:
            if f'content="{GENERATOR}"'.encode() not in file.read(HEAD):
                raise InputError(f"{path} exists and is no comparison of runs; give another file with --out")


def write_runs_page(data: RunsData, path: Path) -> Path:
    """Write the page to `path`, which may hold an earlier such page; return `path`.

    One file that needs no network: style, script and pictures are in it.

    Raises:
        InputError: `path` holds something else.
    """
    check_out(path)
    atomic.write_text(path, render(data))
    return path


def render(data: RunsData) -> str:
    """Return the page as HTML. Texts are escaped wherever they stand, and only the page's own script may run."""
    from markupsafe import Markup

    script = template("page.js")
    # What page_tables reads of a run is its results here, and those of all runs.
    whole = replace(data.pages[0], results=data.results, comparisons=data.pairs)
    return (
        environment()
        .get_template("runs.html")
        .render(
            generator=GENERATOR,
            names=data.labels,
            style=Markup(template("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            facts=_facts(data),
            answers=verdict(data),
            runs=runs_table(data),
            full=full_table(data),
            by_dim=[by_dim_table(by_dim(whole.results), measure) for measure in data.measures],
            curves=[Markup(svg) for svg in _curves(data)],
            ceiling=data.pages[0].study["test"]["ceiling@10"],
            pairs=comparison_table(whole.comparisons) if not data.pairs.is_empty() else None,
            training=_training(data),
            machines=machines_table(data),
        )
    )


def verdict(data: RunsData) -> list[Answer]:
    """Return which run is best by dev and what test says of it, and whether it beats the untouched model."""
    question = "Which run is best?"
    if not data.dev:
        return [
            Answer(question, "Cannot be said", "No run trained a model, so dev has nothing to choose from.", "open")
        ]
    if not data.ranked:
        why = "The runs' dev sides are not the same, so figures on dev do not rank them, and test chooses nothing."
        return [Answer(question, "Cannot be said", f"{why} Run against run is below.", "open")]
    best = data.ranked[0]
    name = data.picks[best]
    worse = data.regression(data.line(name))
    warned = f" On dev it ended below {worse}." if worse else ""
    untouched = _untouched(data, name)
    if len(data.ranked) == 1:
        text = f"It is the only run that trained a model: {name}.{warned}"
        return [Answer(question, data.labels[best], text, "open"), *untouched]
    second = data.ranked[1]
    other = data.picks[second]
    dev = f"On dev {name} has recall@10 {data.dev[best]:.4f} and {other}, the next, {data.dev[second]:.4f}"
    if data.dev[best] - data.dev[second] < ALPHA:
        dev = f"On dev {name} and {other} both have recall@10 {data.dev[best]:.4f}; the first one given goes first"
    changes = changes_of(data, data.pairs, other, name)
    outcome = outcome_of(changes)
    if all(abs(change.value - change.base) < ALPHA for change in changes):
        word = f"{name} on dev, the same on test"
        same = " and ".join(f"{label(change.measure)} {change.value:.4f}" for change in changes)
        text = f"{dev}. On test both have the same figures: {same}.{warned}"
    else:
        word, proof = {
            "gain": (name, f"On test it is better than {other}"),
            "loss": (f"{name} on dev, {other} on test", f"On test it is worse than {other}"),
            "mixed": (f"{name} on dev, mixed on test", f"On test it gains one measure on {other} and loses another"),
            "open": (f"{name} on dev, not shown on test", f"On test its difference from {other} may be chance"),
        }[outcome]
        text = f"{dev}. {proof}: {' and '.join(map(str, changes))}.{warned}"
    return [Answer(question, word, text, TONES[outcome]), *untouched]


def _untouched(data: RunsData, name: str) -> list[Answer]:
    """Say whether the best on dev beats the pretrained model, where there is one."""
    if data.pages[0].reference is None:
        return []
    changes = changes_of(data, data.gains, data.reference, name)
    word, told_so = {
        "gain": ("Yes", "is better than"),
        "loss": ("No, it is a regression", "is worse than"),
        "mixed": ("Mixed", "gains one measure on, and loses another to,"),
        "open": ("Not shown", "is not shown to differ from"),
    }[outcome_of(changes)]
    text = f"On test {name} {told_so} {data.reference}: {' and '.join(map(str, changes))}."
    return [Answer("Is it better than no training?", word, text, TONES[outcome_of(changes)])]


def changes_of(data: RunsData, compared: pl.DataFrame, base: str, name: str) -> list[Change]:
    """Return how `name` differs from `base` at full size: a change a measure, p corrected as in `compared`."""
    means = {row.variant: row.figures for row in full_size(data.results, reference=None)}
    return [
        Change(m, means[base][m].value, means[name][m].value, row["low"], row["high"], row["p_holm"])
        for m in data.measures
        for row in compared.filter(a=base, b=name, measure=m).iter_rows(named=True)
    ]


def runs_table(data: RunsData) -> Table:
    """Return the runs, a column each: when, what dev chose, and every setting in which they differ."""
    dev = data.dev
    finished = [Cell(str(page.study.get("finished", ""))[:10]) for page in data.pages]
    picked = [
        Cell(data.line(pick).variant, f"recall@10 {dev[n]:.4f}" if n in dev else "nothing was trained")
        for n, pick in enumerate(data.picks)
    ]
    body = [[Cell("finished"), *finished], [Cell("best on dev"), *picked], *_rows(data.settings, data.labels)]
    differ = "the settings in which they differ; all others are the same" if data.settings else "no setting differs"
    caption = f"The runs, what dev chose, and {differ}. The settings are those of the experiments."
    columns = ["", *data.labels]
    return Table(caption, columns, [False] * len(columns), [("", body)], sortable=False)


def full_table(data: RunsData) -> Table:
    """Return every variant of every run at its own full size, with intervals, gains and what they prove."""
    rows = full_size(data.results, reference=data.reference)
    measures = list(rows[0].figures)
    p = {(row["b"], row["measure"]): row["p_holm"] for row in data.gains.iter_rows(named=True)}
    columns = ["variant", "dims"]
    for measure in measures:
        columns += [label(measure), *(["gain"] if measure in data.measures else [])]
    body = []
    for row in rows:
        line = data.line(row.variant)
        worse = data.regression(line)
        picked = "its run's best on dev" if line.name in data.picks and data.dev.keys() & set(line.runs) else ""
        notes = [picked, f"on dev below {worse}" if worse else ""]
        cells = [
            Cell(row.variant, "; ".join(filter(None, notes))),
            Cell(f"{row.dim:,}" if row.dim else "–", "", float(row.dim)),
        ]
        for measure in measures:
            figure = row.figures[measure]
            cells.append(Cell(f"{figure.value:.4f}", bounds(figure), figure.value))
            if measure in data.measures:
                proof = p.get((row.variant, measure))
                cells.append(Cell(percent(figure.change), "" if proof is None else f"p {p_text(proof)}", figure.change))
        body.append(cells)
    caption = (
        "Every variant at its own full size, on test; below each value its interval of 95 % over queries. Gains are "
        f"over {data.reference}; p of a paired randomisation test, corrected for the {len(rows) - 1} comparisons of a "
        "measure (Holm). What has the same figures in every run stands once, without a run's name."
    )
    return Table(caption, columns, [False] + [True] * (len(columns) - 1), [("", body)])


def machines_table(data: RunsData) -> Table | None:
    """Return the versions and the parts of the machines that differ between runs; None where none does."""
    if not data.environment:
        return None
    values = {
        key: {run: size(value) if key == "memory" and value else value for run, value in of_runs.items()}
        for key, of_runs in data.environment.items()
    }
    caption = "Versions and machines where they differ; figures may depend on them, and seconds do."
    columns = ["", *data.labels]
    body = _rows(values, data.labels)
    return Table(caption, columns, [False] * len(columns), [("", body)], sortable=False)


def p_text(p: float) -> str:
    """Return a p with its sign of relation: `= .012`, `< .0001`."""
    text = p_value(p)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def _rows(values: Values, labels: Sequence[str]) -> list[list[Cell]]:
    return [
        [Cell(key), *(Cell(shortened(told(of_runs[run]), 80) if run in of_runs else "–") for run in labels)]
        for key, of_runs in values.items()
    ]


def _training(data: RunsData) -> Table | None:
    trainings: dict[str, Any] = {
        line.name: found
        for line in data.lines
        for run in line.runs
        if (found := data.pages[run].study["training"].get(line.variant)) and not line.fused
    }
    if not trainings:
        return None
    first = data.pages[0]
    return page_tables.training_table(replace(first, study={**first.study, "training": trainings}))


def _facts(data: RunsData) -> dict[str, str]:
    study = data.pages[0].study
    return {
        "data": charts.short_source(study["data"]["source"]),
        "test queries": f"{study['test']['queries']:,}",
        "counted": study["test"]["protocol"],
        "test documents": f"{study['test']['documents']:,}",
        "relevant": f"score above {study['threshold']:g}",
    }


def _curves(data: RunsData) -> list[str]:
    shown = [line.name for line in data.lines if not line.fused]
    results = data.results.filter(pl.col("variant").is_in(shown))
    if results.filter(pl.col("dim") > 0).is_empty():
        return []
    facts = _facts(data)
    subtitle = f"{facts['data']}: {facts['test queries']} test queries, {facts['test documents']} documents"
    return [
        inline(
            drawn(charts.measure_by_dim(results, measure, subtitle=shortened(subtitle, 120), fused=True)),
            name=f"{label(measure)} by embedding size",
        )
        for measure in data.measures
    ]
