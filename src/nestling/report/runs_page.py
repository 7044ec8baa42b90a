"""The comparison's page: one HTML file that puts several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from markupsafe import Markup

from nestling import atomic
from nestling.errors import InputError
from nestling.report import charts
from nestling.report.changes import ALPHA, Change, changes_of, outcome_of
from nestling.report.format import label, p_value, percent, size
from nestling.report.render.html import picture, render, shortened
from nestling.report.runs_data import RunsData
from nestling.report.runs_settings import Values, told
from nestling.report.table import Cell, Table, row
from nestling.report.tables import (
    bounds,
    by_dim,
    by_dim_table,
    comparison_table,
    full_size,
    full_size_table,
    training_table,
)
from nestling.report.verdict import TONES, Answer

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
    atomic.write_text(path, page(data))
    return path


def page(data: RunsData) -> str:
    """Return the page as HTML."""
    return render(
        "runs.html",
        generator=GENERATOR,
        names=data.labels,
        facts=_facts(data),
        answers=verdict(data),
        runs=[runs_table(data)],
        full=[full_table(data)],
        by_dim=[by_dim_table(by_dim(data.results), measure) for measure in data.measures],
        curves=_curves(data),
        ceiling=data.pages[0].study["test"]["ceiling@10"],
        pairs=[comparison_table(data.pairs)] if not data.pairs.is_empty() else [],
        training=_training(data),
        machines=[machines_table(data)] if data.environment else [],
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
    changes = _changes(data, data.pairs, other, name)
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
    changes = _changes(data, data.gains, data.reference, name)
    word, relation = {
        "gain": ("Yes", "is better than"),
        "loss": ("No, it is a regression", "is worse than"),
        "mixed": ("Mixed", "gains one measure on, and loses another to,"),
        "open": ("Not shown", "is not shown to differ from"),
    }[outcome_of(changes)]
    text = f"On test {name} {relation} {data.reference}: {' and '.join(map(str, changes))}."
    return [Answer("Is it better than no training?", word, text, TONES[outcome_of(changes)])]


def _changes(data: RunsData, compared: pl.DataFrame, base: str, name: str) -> list[Change]:
    rows = full_size(data.results, reference=None)
    means = {each.variant: [each.figures[measure].value for measure in data.measures] for each in rows}
    return changes_of(compared, means, base, name, data.measures)


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
    return _settings_table(caption, data, body)


def full_table(data: RunsData) -> Table:
    """Return every variant of every run at its own full size, with intervals, gains and what they prove."""
    rows = full_size(data.results, reference=data.reference)
    notes = {}
    for line in data.lines:
        picked = "its run's best on dev" if line.name in data.picks and data.dev.keys() & set(line.runs) else ""
        worse = data.regression(line)
        notes[line.name] = "; ".join(filter(None, (picked, f"on dev below {worse}" if worse else "")))
    caption = (
        "Every variant at its own full size, on test; below each value its interval of 95 % over queries. Gains are "
        f"over {data.reference}; p of a paired randomisation test, corrected for the {len(rows) - 1} comparisons of a "
        "measure (Holm). What has the same figures in every run stands once, without a run's name."
    )
    proofs = {(each["b"], each["measure"]): each["p_holm"] for each in data.gains.iter_rows(named=True)}
    return full_size_table(rows, caption=caption, gains=data.measures, notes=notes, proofs=proofs)


def narrow_full_table(data: RunsData) -> Table:
    """Return the first measures and the first one's gain of every variant, for a terminal."""
    first = data.measures[0]
    p = {each["b"]: p_value(each["p_holm"]) for each in data.gains.filter(measure=first).iter_rows(named=True)}
    rows = full_size(data.results, reference=data.reference)
    body = []
    for each in rows:
        line = data.line(each.variant)
        figures = [each.figures[measure] for measure in data.measures]
        body.append(
            row(
                "all" if len(line.runs) == len(data.labels) else ", ".join(data.labels[n] for n in line.runs),
                Cell(line.variant, "REGRESSION on dev" if data.regression(line) else ""),
                *(Cell(f"{figure.value:.4f}", bounds(figure)) for figure in figures),
                percent(figures[0].change),
                p.get(each.variant, ""),
            )
        )
    caption = (
        f"below each value its 95% interval over queries; gain in {label(first)} over {data.reference}; p of a paired "
        f"randomisation test, corrected for {len(rows) - 1} comparisons (Holm)"
    )
    columns = ["run", "variant", *map(label, data.measures), "gain", "p"]
    words = range(2 + len(data.measures))
    return Table(caption, columns, [("", body)], title="Runs at full size, on test", words=words)


def machines_table(data: RunsData) -> Table:
    """Return the versions and the parts of the machines that differ between runs."""
    values = {
        key: {run: size(value) if key == "memory" and value else value for run, value in of_runs.items()}
        for key, of_runs in data.environment.items()
    }
    caption = "Versions and machines where they differ; figures may depend on them, and seconds do."
    return _settings_table(caption, data, _rows(values, data.labels))


def _settings_table(caption: str, data: RunsData, body: list[list[Cell]]) -> Table:
    columns = ["", *data.labels]
    return Table(caption, columns, [("", body)], words=range(len(columns)), sortable=False)


def _rows(values: Values, labels: Sequence[str]) -> list[list[Cell]]:
    return [
        [Cell(key), *(Cell(shortened(told(of_runs[run]), 80) if run in of_runs else "–") for run in labels)]
        for key, of_runs in values.items()
    ]


def _training(data: RunsData) -> list[Table]:
    trained = {
        line: found
        for line in data.lines
        for run in line.runs
        if (found := data.pages[run].study["training"].get(line.variant)) and not line.fused
    }
    regressions = {line.name: worse for line in trained if (worse := data.regression(line))}
    return [training_table({line.name: found for line, found in trained.items()}, regressions)] if trained else []


def _facts(data: RunsData) -> dict[str, str]:
    study = data.pages[0].study
    return {
        "data": charts.short_source(study["data"]["source"]),
        "test queries": f"{study['test']['queries']:,}",
        "counted": study["test"]["protocol"],
        "test documents": f"{study['test']['documents']:,}",
        "relevant": f"score above {study['threshold']:g}",
    }


def _curves(data: RunsData) -> list[Markup]:
    shown = [line.name for line in data.lines if not line.fused]
    results = data.results.filter(pl.col("variant").is_in(shown))
    if results.filter(pl.col("dim") > 0).is_empty():
        return []
    facts = _facts(data)
    subtitle = f"{facts['data']}: {facts['test queries']} test queries, {facts['test documents']} documents"
    return [
        picture(
            charts.measure_by_dim(results, measure, subtitle=shortened(subtitle, 120), fused=True),
            name=f"{label(measure)} by embedding size",
        )
        for measure in data.measures
    ]
