"""What the comparison of runs is made from: finished runs that measured the same queries, checked and put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nestling.config.names import FUSED
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError, clean
from nestling.evaluation.grid import CELL
from nestling.evaluation.significance import SCHEMA as COMPARED
from nestling.evaluation.significance import compare_all
from nestling.report.page_data import PageData, load_page_data
from nestling.report.runs_settings import Values, environment_apart, settings_apart, told, told_apart
from nestling.report.tables import plain
from nestling.training.result import RECALL as DEV_RECALL

FEWEST, MOST = 2, 8
"""Runs that one comparison takes."""
ROUNDING = 1e-12
"""Figures that differ by less are the same."""


@dataclass(frozen=True)
class Line:
    """One variant as the comparison shows it.

    Attributes:
        name: `RUN: VARIANT`, or the variant's name alone where it has the same figures in every run.
        variant: its name in its run.
        runs: the runs that it is of, by their place; several where an untrained variant has the same figures in them.
        fused: it is a fusion with BM25.
    """

    name: str
    variant: str
    runs: tuple[int, ...]
    fused: bool


@dataclass(frozen=True)
class RunsData:
    """Several runs of one contest.

    Attributes:
        labels: what each run is called: its name, with folders before it where two have the same.
        folders: where each lies.
        pages: each run's tables.
        lines: every variant of every run; models first, then BM25, then fusions.
        results: columns as `grid.SCHEMA`, `variant` being the line's name.
        reference: the line that gains are counted from: the first run's pretrained variant, or its pick.
        gains: every other line against the reference at full size; columns as `significance.SCHEMA`.
        picks: the line of each run's pick, the trained variant that is best on dev.
        pairs: the picks against each other at full size, the one better on dev as `b`.
        settings: where the experiments differ.
        environment: where versions and machines differ.
    """

    labels: tuple[str, ...]
    folders: tuple[Path, ...]
    pages: tuple[PageData, ...]
    lines: tuple[Line, ...]
    results: pl.DataFrame
    reference: str
    gains: pl.DataFrame
    picks: tuple[str, ...]
    pairs: pl.DataFrame
    settings: Values
    environment: Values

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that the page tells of first: two at most."""
        return self.pages[0].measures

    @property
    def dev(self) -> dict[int, float]:
        """recall@10 on dev of the pick of each run that trained one, by the run's place."""
        return _dev(self.pages)

    @property
    def same_dev(self) -> bool:
        """Whether the figures on dev are of the same queries."""
        return len({_side(self.pages[run], "dev") for run in self.dev}) < 2

    @property
    def ranked(self) -> list[int]:
        """The runs that trained a model, best on dev first; empty where their dev sides differ."""
        return sorted(self.dev, key=lambda run: -self.dev[run]) if self.same_dev else []

    def line(self, name: str) -> Line:
        """Return the line of this name."""
        return next(line for line in self.lines if line.name == name)

    def regression(self, line: Line) -> str | None:
        """Return what a trained line ended below on dev, if it did."""
        return self.pages[line.runs[0]].regressions.get(line.variant)


def load_runs(folders: Sequence[RunFolder]) -> RunsData:
    """Read finished runs and put them side by side.

    Untrained variants that have the same figures in several runs become one line. p is corrected for the number of
    comparisons on the same measure (Holm), for the gains and for the pairs apart.

    Raises:
        InputError: there are fewer than 2 or more than 8, one is given twice, one is not finished or damaged, or
            they did not measure the same queries in the same way.
    """
    if not FEWEST <= len(folders) <= MOST:
        raise InputError(f"a comparison takes {FEWEST} to {MOST} runs, not {len(folders)}")
    paths = [folder.path.resolve() for folder in folders]
    twice = [path for n, path in enumerate(paths) if path in paths[:n]]
    if twice:
        raise InputError(f"{twice[0]} is given twice; give each run once")
    pages = [load_page_data(folder) for folder in folders]
    labels = [clean(label) for label in told_apart([page.name for page in pages], paths)]
    _check_comparable(pages, labels)
    _check_queries(pages, folders)
    lines = _lines(pages, labels)
    picks = tuple(_named(lines, run, page.pick) for run, page in enumerate(pages))
    first = pages[0].reference
    reference = _named(lines, 0, first) if first is not None else picks[0]
    dev = _dev(pages)
    # The better on dev comes later, so that differences are its gains.
    rising = sorted(range(len(pages)), key=lambda run: -dev.get(run, -1.0))[::-1]
    return RunsData(
        labels=tuple(labels),
        folders=tuple(paths),
        pages=tuple(pages),
        lines=tuple(lines),
        results=pl.concat([_results_of(line, pages) for line in lines]),
        reference=reference,
        gains=_compared(pages, lines, [line.name for line in lines], reference),
        picks=picks,
        pairs=_compared(pages, lines, list(dict.fromkeys(picks[run] for run in rising)), None),
        settings=settings_apart(pages, labels),
        environment=environment_apart(pages, labels),
    )


def _check_comparable(pages: Sequence[PageData], labels: Sequence[str]) -> None:
    first = pages[0]
    for page, label in zip(pages[1:], labels[1:], strict=True):
        checks = (
            ("were given other judgments", "data", [_at(one, "data", "fingerprint") for one in (first, page)]),
            ("count other documents as relevant", "threshold", [_at(one, "threshold") for one in (first, page)]),
            ("measured other test queries", "split", [_side(one, "test") for one in (first, page)]),
            ("count queries in other ways", "protocol", [_at(one, "test", "protocol") for one in (first, page)]),
            ("took other measures", "measures", [set(_measures(one)) for one in (first, page)]),
        )
        for what, setting, values in checks:
            if values[0] != values[1]:
                why = _why(setting, first, page, labels[0], label)
                raise InputError(
                    f"runs {labels[0]} and {label} {what}, so nothing can be said of which is better: {why}; "
                    f"run one of them again with the settings of the other"
                )


def _why(setting: str, a: PageData, b: PageData, first: str, second: str) -> str:
    """Return the settings of two runs that explain a difference."""
    if setting == "threshold":
        found = {"the threshold": (_at(a, "threshold"), _at(b, "threshold"))}
    elif setting == "protocol":
        found = {"evaluation.protocol": (_at(a, "test", "protocol"), _at(b, "test", "protocol"))}
    elif setting == "measures":
        found = {"evaluation.measures": (_measures(a), _measures(b))}
    else:
        one, other = (page.study["experiment"][setting] for page in (a, b))
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        found = {f"{setting}.{key}": (one.get(key), other.get(key)) for key in keys}
    seeds = [page.study["experiment"]["split"]["seed"] for page in (a, b)]
    if not found and setting == "data" and a.study["experiment"]["data"]["records"] and seeds[0] != seeds[1]:
        # The seed of the split also draws the records.
        found = {"split.seed": (seeds[0], seeds[1])}
    if not found:
        return f"their settings of {setting} are the same, so the source or the version of Nestling has changed"
    return ", ".join(f"{key} is {told(x)} in {first} and {told(y)} in {second}" for key, (x, y) in found.items())


def _check_queries(pages: Sequence[PageData], folders: Sequence[RunFolder]) -> None:
    expected: list[str] | None = None
    for page, folder in zip(pages, folders, strict=True):
        wrong = f"{folder.per_query} does not fit results.json and results.parquet; make it again with nestling run"
        dims, measures = page.dims, _measures(page)
        if page.pick not in dims or (page.reference or page.pick) not in dims or not measures:
            raise InputError(f"{folder.results} lacks a variant of the experiment; make it again with nestling run")
        if any(measure not in page.per_query.columns for measure in measures):
            raise InputError(wrong)
        for variant, sizes in dims.items():
            rows = plain(page.per_query).filter(pl.col("variant") == variant, pl.col("dim") == sizes[0])
            ids = rows["query_id"].sort().to_list()
            expected = ids if expected is None else expected
            finite = all(np.isfinite(page.values(variant, sizes[0], measures)).ravel().tolist())
            if ids != expected or not ids or len(set(ids)) < len(ids) or not finite:
                raise InputError(wrong)


def _lines(pages: Sequence[PageData], labels: Sequence[str]) -> list[Line]:
    found: list[tuple[str, list[int], bool]] = []
    for run, page in enumerate(pages):
        for variant in page.dims:
            untrained = variant.removesuffix(FUSED) not in page.trained
            for name, runs, mergeable in found:
                if untrained and mergeable and name == variant and _same(pages[runs[0]], page, variant):
                    runs.append(run)
                    break
            else:
                found.append((variant, [run], untrained))
    lines = []
    for variant, runs, _ in found:
        of = "" if len(runs) == len(pages) else f"{', '.join(labels[run] for run in runs)}: "
        fused = variant.endswith(FUSED) and variant.removesuffix(FUSED) in pages[runs[0]].dims
        lines.append(Line(of + clean(variant), variant, tuple(runs), fused))
    return sorted(
        lines, key=lambda line: (line.fused, _full(line, pages) == 0, len(line.runs) < len(pages), line.runs[0])
    )


def _same(a: PageData, b: PageData, variant: str) -> bool:
    """Return whether an untrained variant has the same full size and, in all cells that both measured, figures."""
    if a.dims[variant][0] != b.dims[variant][0]:
        return False
    measures = _measures(a)
    both = a.cells(variant).join(b.cells(variant), on=[*CELL, "query_id"], suffix="_b")
    return all(bool(((both[name] - both[f"{name}_b"]).abs() < ROUNDING).all()) for name in measures)


def _results_of(line: Line, pages: Sequence[PageData]) -> pl.DataFrame:
    # Runs may measure the same model at other sizes.
    rows = pl.concat([pages[run].results.filter(pl.col("variant") == line.variant) for run in line.runs])
    once = rows.unique([*CELL, "measure"], keep="first", maintain_order=True)
    return once.with_columns(pl.lit(line.name).alias("variant"))


def _compared(
    pages: Sequence[PageData], lines: Sequence[Line], names: Sequence[str], reference: str | None
) -> pl.DataFrame:
    if len(names) < 2:
        return pl.DataFrame(schema=COMPARED)
    by_name = {line.name: line for line in lines}
    chosen = {name: by_name[name] for name in names}
    tables = []
    for measure in pages[0].measures:
        series = {
            name: pages[line.runs[0]].values(line.variant, _full(line, pages), (measure,))
            for name, line in chosen.items()
        }
        tables.append(compare_all(series, measures=(measure,), reference=reference))
    return pl.concat(tables)


def _dev(pages: Sequence[PageData]) -> dict[int, float]:
    trained = {run: page.study["training"].get(page.pick) for run, page in enumerate(pages)}
    return {run: float(found["after"][DEV_RECALL]) for run, found in trained.items() if found}


def _named(lines: Sequence[Line], run: int, variant: str) -> str:
    return next(line.name for line in lines if run in line.runs and line.variant == variant)


def _full(line: Line, pages: Sequence[PageData]) -> int:
    return pages[line.runs[0]].dims[line.variant][0]


def _measures(page: PageData) -> list[str]:
    return list(page.study["experiment"]["evaluation"]["measures"])


def _side(page: PageData, side: str) -> str:
    return str(_at(page, "split", "sides", side, "fingerprint"))


def _at(page: PageData, *keys: str) -> Any:
    value: Any = page.study
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"run {page.name}: results.json lacks {'.'.join(keys)}; run nestling run again")
        value = value[key]
    return value
