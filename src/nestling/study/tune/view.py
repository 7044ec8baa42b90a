"""A search and a learning curve as tables."""

from __future__ import annotations

from statistics import mean

from nestling.report.table import Cell, Table, row
from nestling.study.curve import Curve
from nestling.study.tune.search import Search
from nestling.study.tune.space import value_text
from nestling.training.result import worded

ROWS = 10


def trials_table(search: Search) -> Table:
    """Return the best trials of a search, and how many are left out."""
    ranked = sorted(search.trials, key=lambda t: (t.state != "complete", -(t.value or 0.0), t.number))
    left_out = f"; {len(ranked) - ROWS} more in trials.parquet" if len(ranked) > ROWS else ""
    gain = f"{worded(search.metric)} {search.before:.4f} before training, {search.best.value:.4f} at best"
    names = list(search.best.params)
    body = []
    for trial in ranked[:ROWS]:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        remark = "best" if trial == search.best else "pruned" if trial.state != "complete" else ""
        # Spaces, so that a long choice breaks between its words.
        choices = (value_text(trial.params.get(name)).replace("_", " ") for name in names)
        body.append(row(str(trial.number), Cell(value, remark), *choices))
    columns = ["trial", "dev", *(name.replace("_", " ") for name in names)]
    return Table(gain + left_out, columns, [("", body)], title=f"Best trials of {search.variant}", words=())


def curve_table(curve: Curve) -> Table:
    """Return a line a share: records, queries, and the mean of each measure, with the spread where there are seeds."""
    seeds = len({point.seed for point in curve.points})
    spread = f" Means of {seeds} seeds, below them the lowest and highest." if seeds > 1 else ""
    body = [row("0", "0", "0", *(f"{value:.4f}" for value in curve.before.values()))]
    for share in dict.fromkeys(point.share for point in curve.points):
        points = [point for point in curve.points if point.share == share]
        figures = (_spread([point.after[measure] for point in points]) for measure in curve.before)
        records, queries = (round(mean(getattr(p, name) for p in points)) for name in ("records", "queries"))
        body.append(row(f"{share:g}", f"{records:,}", f"{queries:,}", *figures))
    columns = ["share", "records", "queries", "recall@10", "MRR@10"]
    title = f"Learning curve of {curve.variant}, on dev"
    return Table(curve.verdict + spread, columns, [("", body)], title=title, words=())


def _spread(values: list[float]) -> Cell:
    spread = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else ""
    return Cell(f"{mean(values):.4f}", spread)
