"""Data of the comparison of runs: finished runs that measured the same queries, checked and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from nestling.config.names import FUSED
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError, clean
from nestling.evaluation.grid import CELL
from nestling.evaluation.significance import SCHEMA as COMPARED
from nestling.evaluation.significance import compare_all
from nestling.report import runs_settings
from nestling.report.changes import ALPHA
from nestling.report.page_data import Figures, PageData, load_page_data
from nestling.report.tables import is_fused, plain
from nestling.training.result import RECALL as DEV_RECALL

FEWEST, MOST = 2, 8
"""Runs that one comparison takes."""
COMPARABLE = (
    ("were given other judgments", "data", ("data", "fingerprint")),
    ("count other documents as relevant", "the threshold", ("threshold",)),
    ("measured other test queries", "split", ("split", "sides", "test", "fingerprint")),
    ("count queries in other ways", "evaluation.protocol", ("test", "protocol")),
    ("took other measures", "evaluation.measures", ("experiment", "evaluation", "measures")),
)
"""Differences by which runs cannot be compared: message, setting, and its place in results.json."""


class Line(NamedTuple):
    """One variant, of several runs (by their place) where it was not trained and has the same figures in them.

    It is called `RUN: VARIANT`, or by the variant's name alone where it is of every run.
    """

    name: str
    variant: str
    runs: tuple[int, ...]
    fused: bool


@dataclass(frozen=True)
class RunsData(Figures):
    """Several runs on the same queries; in its tables a variant is called by its line's name.

    Attributes:
        labels: what each run is called: its name, with folders before it where two have the same.
        lines: models first, then BM25, then fusions.
        reference: the line that gains are counted from: the first run's pretrained variant, or its pick.
        picks: the line of each run's pick, the trained variant that is best on dev.
        dev: recall@10 on dev of the pick of each run that trained one, by the run's place.
        gains: every other line against the reference at full size; columns as `significance.SCHEMA`.
        pairs: the picks against each other at full size, the one better on dev as `b`.
    """

    labels: tuple[str, ...]
    folders: tuple[Path, ...]
    pages: tuple[PageData, ...]
    lines: tuple[Line, ...]
    reference: str
    picks: tuple[str, ...]
    dev: dict[int, float]
    gains: pl.DataFrame
    pairs: pl.DataFrame
    settings: runs_settings.Values
    environment: runs_settings.Values

    @property
    def measures(self) -> tuple[str, ...]:
        """The first measures of the runs, two at most."""
        return self.pages[0].measures

    @property
    def ranked(self) -> list[int]:
        """The runs that trained a model, best on dev first; empty where their dev sides differ."""
        sides = {_at(self.pages[run], "split", "sides", "dev", "fingerprint") for run in self.dev}
        return sorted(self.dev, key=lambda run: -self.dev[run]) if len(sides) < 2 else []

    @property
    def regressions(self) -> dict[str, str]:
        """The lines that ended on dev below their base or their own start, and which of the two."""
        below = {line.name: self.pages[line.runs[0]].regressions.get(line.variant) for line in self.lines}
        return {name: worse for name, worse in below.items() if worse}

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as what JSON can hold."""
        return {
            "runs": [
                {
                    "name": self.labels[n],
                    "folder": str(self.folders[n]),
                    "finished": page.study.get("finished"),
                    "pick": self.picks[n],
                    "dev_recall@10": self.dev.get(n),
                }
                for n, page in enumerate(self.pages)
            ],
            "settings": self.settings,
            "environment": self.environment,
            "best_on_dev": next((self.picks[run] for run in self.ranked), None),
            "reference": self.reference,
            "variants": [
                {"name": line.name, "variant": line.variant, "runs": [self.labels[n] for n in line.runs]}
                for line in self.lines
            ],
            **{name: getattr(self, name).to_dicts() for name in ("results", "gains", "pairs")},
        }


def load_runs(folders: Sequence[RunFolder]) -> RunsData:
    """Read finished runs and put them side by side.

    Untrained variants that have the same figures in several runs become one line. p is corrected for the number of
    comparisons on the same measure (Holm), for the gains and for the pairs apart.

    Raises:
        InputError: their number is not 2 to 8, one is given twice, not finished or damaged, or their queries differ.
    """
    if not FEWEST <= len(folders) <= MOST:
        raise InputError(f"a comparison takes {FEWEST} to {MOST} runs, not {len(folders)}")
    paths = [folder.path.resolve() for folder in folders]
    twice = [path for n, path in enumerate(paths) if path in paths[:n]]
    if twice:
        raise InputError(f"{twice[0]} is given twice; give each run once")
    pages = [load_page_data(folder) for folder in folders]
    labels = [clean(label) for label in runs_settings.distinct_names([page.name for page in pages], paths)]
    for page, label in zip(pages[1:], labels[1:], strict=True):
        _check_comparable(pages[0], page, labels[0], label)
    _check_queries(pages, folders)
    lines = _lines(pages, labels)
    names = {(run, line.variant): line.name for line in lines for run in line.runs}
    picks = [names[run, page.pick] for run, page in enumerate(pages)]
    reference = names[0, pages[0].reference or pages[0].pick]
    trained = [page.study["training"].get(page.pick) for page in pages]
    dev = {run: float(training["after"][DEV_RECALL]) for run, training in enumerate(trained) if training}
    # The better on dev comes later, so that differences are its gains.
    rising = sorted(range(len(pages)), key=lambda run: -dev.get(run, -1.0))[::-1]
    results = _combined(lines, [page.results for page in pages], [*CELL, "measure"])
    per_query = _combined(lines, [plain(page.per_query) for page in pages], [*CELL, "query_id"])
    figures = Figures(results, per_query)
    return RunsData(
        results=results,
        per_query=per_query,
        labels=tuple(labels),
        folders=tuple(paths),
        pages=tuple(pages),
        lines=tuple(lines),
        reference=reference,
        picks=tuple(picks),
        dev=dev,
        gains=_compared(figures, [line.name for line in lines], pages[0].measures, reference),
        pairs=_compared(figures, list(dict.fromkeys(picks[run] for run in rising)), pages[0].measures, None),
        settings=runs_settings.differing_settings(pages, labels),
        environment=runs_settings.differing_environment(pages, labels),
    )


def _check_comparable(a: PageData, b: PageData, first: str, second: str) -> None:
    for claim, setting, keys in COMPARABLE:
        values = [_at(page, *keys) for page in (a, b)]
        if values[0] == values[1] or (isinstance(values[0], list) and sorted(values[0]) == sorted(values[1])):
            continue
        causes = {setting: values}
        if setting in ("data", "split"):
            causes = _causes(a.study["experiment"], b.study["experiment"], setting)
        texts = {name: [runs_settings.setting_text(value) for value in pair] for name, pair in causes.items()}
        why = ", ".join(f"{name} is {one} in {first} and {other} in {second}" for name, (one, other) in texts.items())
        unknown = f"their settings of {setting} are the same, so the source or the version of Nestling has changed"
        raise InputError(
            f"runs {first} and {second} {claim}, so nothing can be said of which is better: {why or unknown}; "
            f"run one of them again with the settings of the other"
        )


def _causes(a: Mapping[str, Any], b: Mapping[str, Any], section: str) -> dict[str, list[Any]]:
    pairs = {key: [a[section].get(key), b[section].get(key)] for key in (*a[section], *b[section])}
    causes = {f"{section}.{key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}
    seeds = [a["split"]["seed"], b["split"]["seed"]]
    if not causes and section == "data" and a["data"]["records"] and seeds[0] != seeds[1]:
        # The seed of the split also draws the records.
        return {"split.seed": seeds}
    return causes


def _check_queries(pages: Sequence[PageData], folders: Sequence[RunFolder]) -> None:
    expected: list[str] = []
    for page, folder in zip(pages, folders, strict=True):
        measures = page.study["experiment"]["evaluation"]["measures"]
        if not {page.pick, page.reference or page.pick} <= set(page.dims) or not measures:
            raise InputError(f"{folder.results} lacks a variant of the experiment; make it again with nestling run")
        for variant, dims in page.dims.items():
            rows = plain(page.per_query).filter(pl.col("variant") == variant, pl.col("dim") == dims[0])
            ids = rows["query_id"].sort().to_list()
            expected = expected or ids
            complete = set(measures) <= set(rows.columns) and len(set(ids)) == len(ids) > 0 and ids == expected
            if not complete or not np.isfinite(page.values(variant, dims[0], measures)).all():
                advice = "make it again with nestling run"
                raise InputError(f"{folder.per_query} does not fit results.json and results.parquet; {advice}")


def _lines(pages: Sequence[PageData], labels: Sequence[str]) -> list[Line]:
    groups: list[tuple[str, list[int]]] = []
    for run, page in enumerate(pages):
        for variant in page.dims:
            same = (runs for name, runs in groups if name == variant and _same(pages[runs[0]], page, variant))
            runs = next(same, [])
            if not runs:
                groups.append((variant, runs))
            runs.append(run)
    ordered = []
    for variant, runs in groups:
        dims = pages[runs[0]].dims
        of = "" if len(runs) == len(pages) else f"{', '.join(labels[run] for run in runs)}: "
        line = Line(of + clean(variant), variant, tuple(runs), is_fused(variant, dims))
        ordered.append(((line.fused, dims[variant] == [0], len(runs) < len(pages), runs[0]), line))
    return [line for _, line in sorted(ordered, key=lambda pair: pair[0])]


def _same(a: PageData, b: PageData, variant: str) -> bool:
    """Return whether a variant was trained in neither run, and has the same full size and figures in both."""
    trained = variant.removesuffix(FUSED) in {*a.trained, *b.trained}
    if trained or a.dims[variant][0] != b.dims[variant][0]:
        return False
    both = a.cells(variant).join(b.cells(variant), on=[*CELL, "query_id"], suffix="_b")
    measures = a.study["experiment"]["evaluation"]["measures"]
    return all(bool(((both[name] - both[f"{name}_b"]).abs() < ALPHA).all()) for name in measures)


def _combined(lines: Sequence[Line], tables: Sequence[pl.DataFrame], key: Sequence[str]) -> pl.DataFrame:
    """Concatenate the rows of all lines, those of several runs only the first time."""
    parts = []
    for line in lines:
        # Runs may measure the same model at other sizes.
        rows = pl.concat([tables[run].filter(variant=line.variant) for run in line.runs], how="diagonal")
        parts.append(rows.unique(key, keep="first", maintain_order=True).with_columns(variant=pl.lit(line.name)))
    return pl.concat(parts, how="diagonal")


def _compared(figures: Figures, names: Sequence[str], measures: Sequence[str], reference: str | None) -> pl.DataFrame:
    if len(names) < 2:
        return pl.DataFrame(schema=COMPARED)
    series = [(measure, figures.at_full_size(names, (measure,))) for measure in measures]
    return pl.concat([compare_all(values, measures=(measure,), reference=reference) for measure, values in series])


def _at(page: PageData, *keys: str) -> Any:
    value: Any = page.study
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"run {page.name}: results.json lacks {'.'.join(keys)}; run nestling run again")
        value = value[key]
    return value
