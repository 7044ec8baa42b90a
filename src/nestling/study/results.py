"""What a finished study leaves behind for people and machines: result tables, one JSON file, and pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from nestling import atomic
from nestling.config.experiment import Experiment
from nestling.config.run_folder import RunFolder
from nestling.environment import hardware, versions
from nestling.judgments.inspection import Inspection
from nestling.judgments.split import Split
from nestling.judgments.split_files import summarise
from nestling.judgments.table import Judgments
from nestling.report import charts

if TYPE_CHECKING:
    from nestling.evaluation.qrels import Qrels
    from nestling.training.result import TrainingResult


@dataclass(frozen=True)
class StudyResults:
    """All that a study found out.

    Attributes:
        trainings: what each training did, by variant.
        qrels: the test side's.
        per_query: each variant's figures by cell and query: those of the experiment, their fusions, and BM25.
        reference: the variant that others are compared with.
        seconds: how long the parts of this call took; those that were done before are missing.
    """

    experiment: Experiment
    judgments: Judgments
    threshold: float
    inspection: Inspection
    split: Split
    trainings: dict[str, TrainingResult]
    qrels: Qrels
    per_query: dict[str, pl.DataFrame]
    reference: str
    seconds: dict[str, float]

    def write(self, folder: RunFolder) -> tuple[pl.DataFrame, pl.DataFrame, tuple[Path, ...]]:
        """Write the result tables as Parquet, `results.json`, and pictures of the first two measures.

        Returns:
            the long table of results, the comparisons with the reference, and the paths of the PNG files.
        """
        from nestling.evaluation.grid import summarise as summarise_variant
        from nestling.evaluation.slices import slice_table, slices_of
        from nestling.study.measure import compare_variants, full_rows

        def named(tables: dict[str, pl.DataFrame]) -> pl.DataFrame:
            return pl.concat([table.select(pl.lit(name).alias("variant"), pl.all()) for name, table in tables.items()])

        results = pl.concat([summarise_variant(name, table) for name, table in self.per_query.items()])
        comparisons = compare_variants(self.per_query, self.reference)
        plain = {name: full_rows(table) for name, table in self.per_query.items()}
        slices = slice_table(named(plain), slices_of(self.qrels, train=self.split.train))
        for path, table in (
            (folder.results, results),
            (folder.per_query, named(self.per_query)),
            (folder.comparisons, comparisons),
            (folder.slices, slices),
            (folder.rankings, named({name: pl.read_parquet(folder.ranking(name)) for name in self.per_query})),
        ):
            with atomic.new_file(path) as temporary:
                table.write_parquet(temporary)
        atomic.write_json(folder.results_json, self._as_json(results, comparisons, folder))
        source, qrels = charts.short_source(self.judgments.source), self.qrels
        subtitle = f"{source}: {qrels.n_queries:,} test queries, {qrels.n_documents:,} documents, {qrels.protocol}"
        pictures = tuple(
            charts.save(charts.measure_by_dim(results, measure, subtitle=subtitle), folder.picture(measure))[0]
            for measure in self.experiment.evaluation.measures[:2]
        )
        return results, comparisons, pictures

    def _as_json(self, results: pl.DataFrame, comparisons: pl.DataFrame, folder: RunFolder) -> dict[str, Any]:
        # Of parts that an earlier call did, only its own file knows how long they took.
        earlier: dict[str, float] = {}
        if folder.results_json.is_file():
            earlier = json.loads(folder.results_json.read_text(encoding="utf-8")).get("seconds", {})
        models = [variant.name for variant in self.experiment.variants]
        return {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "experiment": self.experiment.model_dump(mode="json"),
            "threshold": self.threshold,
            "data": {"source": self.judgments.source, "fingerprint": self.judgments.fingerprint},
            "inspection": self.inspection.as_dict(),
            "split": summarise(self.split),
            "test": {
                "protocol": self.qrels.protocol,
                "queries": self.qrels.n_queries,
                "documents": self.qrels.n_documents,
                "ceiling@10": self.qrels.ceiling(10),
            },
            "training": {name: result.as_dict() for name, result in self.trainings.items()},
            "evaluation": {name: json.loads(folder.measured(name).read_text(encoding="utf-8")) for name in models},
            "results": results.to_dicts(),
            "comparisons": comparisons.to_dicts(),
            "seconds": {**earlier, **self.seconds},
            "versions": versions(),
            "hardware": hardware(),
        }
