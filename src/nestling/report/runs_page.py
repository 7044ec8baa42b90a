"""The comparison's page: one HTML file that puts several runs side by side."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from nestling import atomic
from nestling.errors import InputError
from nestling.report import tables
from nestling.report.changes import ALPHA, Change, changes_of, outcome_of, sentence, unchanged
from nestling.report.charts import short_source
from nestling.report.contents import measure_pictures
from nestling.report.format import label, p_equation, size
from nestling.report.render.html import render, shortened
from nestling.report.runs_data import RunsData
from nestling.report.runs_settings import Values, setting_text
from nestling.report.table import Cell, Table, row
from nestling.report.verdict import TONES, Answer

GENERATOR = "Nestling comparison of runs"
"""A mark in the head of the page, by which a later page knows that it may replace it."""


def check_out(path: Path) -> None:
    """Raise an `InputError` where `path` is there and is no comparison of runs, so that it may not be replaced."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file with --out")
    if path.exists():
        with path.open("rb") as file:
            if f'content="{GENERATOR}"'.encode() not in file.read(2_000):
                raise InputError(f"{path} exists and is no comparison of runs; give another file with --out")


def write_runs_page(data: RunsData, path: Path) -> Path:
    """Write the page to `path`, after `check_out`; return `path`."""
    check_out(path)
    atomic.write_text(path, page(data))
    return path


def page(data: RunsData) -> str:
    """Return the page as HTML: one file that needs no network, with style, script and pictures in it."""
    study = data.pages[0].study
    unfused = [line.name for line in data.lines if not line.fused]
    trained = {
        line.name: training
        for line in data.lines
        for run in line.runs
        if (training := data.pages[run].study["training"].get(line.variant)) and not line.fused
    }
    sizes = tables.by_dim(data.results)
    return render(
        "runs.html",
        generator=GENERATOR,
        names=data.labels,
        facts={
            "data": short_source(study["data"]["source"]),
            "test queries": f"{study['test']['queries']:,}",
            "counted": study["test"]["protocol"],
            "test documents": f"{study['test']['documents']:,}",
            "relevant": f"score above {study['threshold']:g}",
        },
        answers=verdict(data),
        runs=runs_table(data),
        full=full_table(data),
        by_dim=[tables.by_dim_table(sizes, measure) for measure in data.measures],
        curves=measure_pictures(data.results.filter(pl.col("variant").is_in(unfused)), data.measures, study),
        ceiling=study["test"]["ceiling@10"],
        pairs=None if data.pairs.is_empty() else tables.comparison_table(data.pairs),
        training=tables.training_table(trained, data.regressions) if trained else None,
        machines=machines_table(data) if data.environment else None,
    )


def verdict(data: RunsData) -> list[Answer]:
    """Return which run is best by dev and what test says of it, and whether it beats the untouched model."""
    question = "Which run is best?"
    if not data.ranked:
        why = "No run trained a model, so dev has nothing to choose from."
        if data.dev:
            why = (
                "The runs' dev sides are not the same, so figures on dev do not rank them, and test chooses nothing. "
                "Run against run is below."
            )
        return [Answer(question, "Cannot be said", why, "open")]
    best, *others = data.ranked
    name = data.picks[best]
    warning = f" On dev it ended below {data.regressions[name]}." if name in data.regressions else ""
    if not others:
        text = f"It is the only run that trained a model: {name}.{warning}"
        return [Answer(question, data.labels[best], text, "open"), *_over_untrained(data, name)]
    other = data.picks[others[0]]
    dev = f"On dev {name} has recall@10 {data.dev[best]:.4f} and {other}, the next, {data.dev[others[0]]:.4f}"
    if data.dev[best] - data.dev[others[0]] < ALPHA:
        dev = f"On dev {name} and {other} both have recall@10 {data.dev[best]:.4f}; the first one given goes first"
    changes = _changes(data, data.pairs, other, name)
    outcome = outcome_of(changes)
    word, proof = {
        "gain": (name, f"On test it is better than {other}"),
        "loss": (f"{name} on dev, {other} on test", f"On test it is worse than {other}"),
        "mixed": (f"{name} on dev, mixed on test", f"On test it gains one measure on {other} and loses another"),
        "open": (f"{name} on dev, not shown on test", f"On test its difference from {other} may be chance"),
    }[outcome]
    figures = sentence(changes)
    if unchanged(changes):
        word, proof = f"{name} on dev, the same on test", "On test both have the same figures"
        figures = " and ".join(f"{label(change.measure)} {change.value:.4f}" for change in changes)
    text = f"{dev}. {proof}: {figures}.{warning}"
    return [Answer(question, word, text, TONES[outcome]), *_over_untrained(data, name)]


def _over_untrained(data: RunsData, name: str) -> list[Answer]:
    if data.pages[0].reference is None:
        return []
    changes = _changes(data, data.gains, data.reference, name)
    word, relation = {
        "gain": ("Yes", "is better than"),
        "loss": ("No, it is a regression", "is worse than"),
        "mixed": ("Mixed", "gains one measure on, and loses another to,"),
        "open": ("Not shown", "is not shown to differ from"),
    }[outcome_of(changes)]
    text = f"On test {name} {relation} {data.reference}: {sentence(changes)}."
    return [Answer("Is it better than no training?", word, text, TONES[outcome_of(changes)])]


def _changes(data: RunsData, compared: pl.DataFrame, base: str, name: str) -> list[Change]:
    return changes_of(compared, data.at_full_size((base, name), data.measures), base, name, data.measures)


def runs_table(data: RunsData) -> Table:
    """Return the runs, a column each: when, what dev chose, and every setting in which they differ."""
    finished = [Cell(str(page.study.get("finished", ""))[:10]) for page in data.pages]
    picked = [
        Cell(page.pick, f"recall@10 {data.dev[n]:.4f}" if n in data.dev else "nothing was trained")
        for n, page in enumerate(data.pages)
    ]
    differ = "the settings in which they differ; all others are the same" if data.settings else "no setting differs"
    caption = f"The runs, what dev chose, and {differ}. The settings are those of the experiments."
    body = [[Cell("finished"), *finished], [Cell("best on dev"), *picked]]
    return _settings_table(caption, data, body, data.settings)


def full_table(data: RunsData) -> Table:
    """Return every variant of every run at its own full size, with intervals, gains and what they prove."""
    notes = {data.picks[run]: "its run's best on dev" for run in data.dev}
    for name, worse in data.regressions.items():
        notes[name] = f"{notes[name]}; on dev below {worse}" if name in notes else f"on dev below {worse}"
    caption = (
        "Every variant at its own full size, on test; below each value its interval of 95 % over queries. Gains are "
        f"over {data.reference}; p of a paired randomisation test, corrected for the {len(data.lines) - 1} comparisons "
        "of a measure (Holm). What has the same figures in every run stands once, without a run's name."
    )
    full = tables.full_size(data.results, reference=data.reference)
    return tables.full_size_table(full, caption=caption, gains=data.measures, notes=notes, proofs=_proofs(data))


def narrow_full_table(data: RunsData) -> Table:
    """Return the first measures of every variant with their gains, for a terminal."""
    full = tables.full_size(data.results, reference=data.reference).filter(pl.col("measure").is_in(data.measures))
    caption = (
        f"gain over {data.reference}; p of a paired randomisation test, corrected for {len(data.lines) - 1} "
        "comparisons (Holm); what has the same figures in every run stands once, without a run's name"
    )
    return tables.narrow_full_size_table(
        full, caption=caption, title="Runs at full size, on test", regressions=data.regressions, proofs=_proofs(data)
    )


def _proofs(data: RunsData) -> dict[tuple[str, str], str]:
    return {(each["b"], each["measure"]): p_equation(each["p_holm"]) for each in data.gains.iter_rows(named=True)}


def machines_table(data: RunsData) -> Table:
    """Return the versions and the parts of the machines that differ between runs."""
    values = dict(data.environment)
    if "memory" in values:
        values["memory"] = {run: size(value) if value else value for run, value in values["memory"].items()}
    caption = "Versions and machines where they differ; figures may depend on them, and seconds do."
    return _settings_table(caption, data, [], values)


def _settings_table(caption: str, data: RunsData, body: list[list[Cell]], values: Values) -> Table:
    """Return a table with a column a run: `body`, then a line for each setting."""
    for key, of_runs in values.items():
        texts = {run: shortened(setting_text(value), 80) for run, value in of_runs.items()}
        body.append(row(key, *(texts.get(run, "–") for run in data.labels)))
    columns = ["", *data.labels]
    return Table(caption, columns, [("", body)], words=range(len(columns)), sortable=False)
