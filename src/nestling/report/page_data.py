"""Data of the pages: a finished run's tables, read and checked; never a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nestling.config.manifests import read_json
from nestling.config.names import FUSED, PRETRAINED
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.results import Results
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.report.page_tuning import Finding, findings
from nestling.report.tables import plain, reference_of
from nestling.training.result import RECALL as DEV_RECALL
from nestling.training.result import ended_below

NEEDED = ("experiment", "inspection", "split", "test", "training", "data", "seconds", "versions", "hardware")


@dataclass(frozen=True)
class Figures:
    """Figures of several variants on the same queries; `results` and `per_query` as in `evaluation.results.Results`."""

    results: pl.DataFrame
    per_query: pl.DataFrame

    @cached_property
    def dims(self) -> dict[str, list[int]]:
        """The sizes of each variant's plain cells, falling; [0] for BM25."""
        sizes = plain(self.results).group_by("variant", maintain_order=True).agg(pl.col("dim").unique())
        return {name: sorted(dims, reverse=True) for name, dims in sizes.iter_rows()}

    def values(self, variant: str, dim: int, measures: Sequence[str]) -> NDArray[np.float64]:
        """Return a plain cell's figures by query, (n_measures, n_queries) float64, queries in order of their id."""
        rows = plain(self.per_query).filter(pl.col("variant") == variant, pl.col("dim") == dim).sort("query_id")
        return np.stack([rows[measure].cast(pl.Float64).to_numpy() for measure in measures])

    def at_full_size(self, variants: Iterable[str], measures: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Return the `values` of each variant at its own full size."""
        return {name: self.values(name, self.dims[name][0], measures) for name in dict.fromkeys(variants)}


@dataclass(frozen=True)
class PageData(Figures):
    """A finished run as tables, of which some may be missing in its folder; `study` is what `results.json` holds."""

    study: dict[str, Any]
    comparisons: pl.DataFrame
    slices: pl.DataFrame | None
    rankings: pl.DataFrame | None
    test: Judgments | None
    leaks: list[str] | None
    histogram: str | None
    findings: Sequence[Finding] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.study["experiment"]["name"])

    @property
    def measures(self) -> tuple[str, ...]:
        """The first measures of the run, two at most."""
        return tuple(self.study["experiment"]["evaluation"]["measures"])[:2]

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The variants of the experiment, as it has them, each with its base spelled out."""
        experiment = self.study["experiment"]
        return [{**variant, "base": variant["base"] or experiment["model"]} for variant in experiment["variants"]]

    @property
    def reference(self) -> str | None:
        """The variant that gains are counted from, the pretrained one; None where there is none."""
        return reference_of([(variant["name"], variant["recipe"], variant["base"]) for variant in self.variants])

    @property
    def trained(self) -> list[str]:
        """The variants that were trained."""
        return [variant["name"] for variant in self.variants if variant["recipe"] != PRETRAINED]

    @property
    def pick(self) -> str:
        """The variant to judge training by: the trained one that is best on dev, so that test chooses nothing."""
        training = self.study["training"]
        measured = [name for name in self.trained if name in training]
        if measured:
            return max(measured, key=lambda name: float(training[name]["after"][DEV_RECALL]))
        return next(iter(self.trained), self.reference or self.variants[0]["name"])

    @property
    def regressions(self) -> dict[str, str]:
        """The variants that ended on dev below their base or their own start, and which of the two."""
        words = {"base": "its base", "start": "where its training began"}
        below = {
            name: ended_below(training["base"], training["before"], training["after"])
            for name, training in self.study["training"].items()
        }
        return {name: words[where] for name, where in below.items() if where}

    @property
    def lexical(self) -> str | None:
        """The strongest plain BM25 that was measured: stemmed, else unstemmed, else None."""
        return next((name for name in ("bm25-stemmed", "bm25") if name in self.dims), None)

    def fused(self, variant: str) -> str | None:
        """Return the name of a variant's fusion with BM25 where it was measured."""
        return variant + FUSED if variant + FUSED in self.dims else None

    def cells(self, variant: str) -> pl.DataFrame:
        """Return all cells of a variant by query, as `System.per_query` has them."""
        return self.per_query.filter(pl.col("variant") == variant).drop("variant")


def load_page_data(folder: RunFolder) -> PageData:
    """Read the tables of a finished run.

    Raises:
        InputError: the folder holds no finished run, or a table is damaged or of an earlier version.
    """
    path = folder.results_json
    missing = f"{folder.path} holds no finished run: it has no {path.name}; finish it with nestling run"
    study: dict[str, Any] = read_json(path, dict[str, Any], advice="make it again with nestling run", missing=missing)
    for key in NEEDED:
        if key not in study:
            raise InputError(f"{path} lacks {key!r}, so an earlier version wrote it; run nestling run again")
    tables = Results.read(folder)
    split = read_split(folder.split) if folder.split.is_dir() else None
    histogram = folder.path / "scores.svg"
    return PageData(
        study=study,
        results=tables.results,
        per_query=tables.per_query,
        comparisons=tables.comparisons,
        slices=None if tables.slices.is_empty() else tables.slices,
        rankings=None if tables.rankings.is_empty() else tables.rankings,
        test=split.test if split else None,
        leaks=split.leaks() if split else None,
        histogram=histogram.read_text(encoding="utf-8") if histogram.is_file() else None,
        findings=findings(folder),
    )
