"""The evaluation of a run: every variant, its fusion and BM25 into tables of the run's folder; skips what is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from nestling import atomic
from nestling.config.experiment import Experiment, Variant
from nestling.config.names import FUSED, PRETRAINED
from nestling.config.run_folder import RunFolder
from nestling.models.load import find_model
from nestling.progress import Observer
from nestling.study import measure as measuring
from nestling.study.stages import source_of

if TYPE_CHECKING:
    from nestling.evaluation.benchmark import Contest


@dataclass(frozen=True)
class RunEvaluation:
    """What is measured, and where it goes.

    Attributes:
        prints: for each `evaluation NAME` the fingerprint of what it is made from.
        timed: notes how long what is done within it takes.
    """

    experiment: Experiment
    folder: RunFolder
    contest: Contest
    prints: dict[str, str]
    observer: Observer
    timed: Callable[[str], AbstractContextManager[None]]

    def all(self) -> dict[str, pl.DataFrame]:
        """Measure what is not measured yet, and return every table by query, as `measure_cells` returns them."""
        settings = self.experiment.evaluation
        fuse = settings.fusion and self.contest.dev is not None
        found: dict[str, pl.DataFrame] = {}
        for variant in self.experiment.variants:
            names = [variant.name, variant.name + FUSED] if fuse else [variant.name]
            self._once(variant.name, names, lambda variant=variant: self._model(variant))  # type: ignore[misc]
            found |= {name: pl.read_parquet(self.folder.evaluation(name)) for name in names}
        for baseline in settings.baselines:
            self._once(baseline, [baseline], lambda name=baseline: self._write(name, *self.contest.lexical(name)))  # type: ignore[misc]
            found[baseline] = pl.read_parquet(self.folder.evaluation(baseline))
        return found

    def _once(self, name: str, written: list[str], measure: Callable[[], None]) -> None:
        what = f"evaluation {name}"
        paths = [path for each in written for path in (self.folder.evaluation(each), self.folder.ranking(each))]
        if self.folder.is_done(what, self.prints[what], *paths):
            self.observer.stage(f"evaluate {name}", "done before")
            return
        self.observer.stage(f"evaluate {name}")
        with self.timed(f"evaluate {name}"):
            measure()
        self.folder.mark(what, self.prints[what])

    def _model(self, variant: Variant) -> None:
        trained = variant.recipe != PRETRAINED
        trained_model = str(self.folder.model(variant.name))
        measured = measuring.measure_model(
            variant.name,
            find_model(trained_model) if trained else source_of(self.experiment, variant),
            self.contest,
            self.experiment.evaluation,
            cache=self.folder.embeddings,
            observer=self.observer,
        )
        self._write(variant.name, measured.alone, measured.ranked)
        if measured.fused is not None:
            self._write(variant.name + FUSED, measured.fused, measured.ranked_fused)
        about = {
            "engine": measured.engine,
            "texts": measured.texts,
            "seconds": measured.seconds,
            "fusions": {str(cell): fusion.as_dict() for cell, fusion in measured.fusions.items()},
        }
        atomic.write_json(self.folder.measured(variant.name), about)

    def _write(self, name: str, per_query: pl.DataFrame, ranked: pl.DataFrame) -> None:
        for path, table in ((self.folder.evaluation(name), per_query), (self.folder.ranking(name), ranked)):
            with atomic.new_file(path) as temporary:
                table.write_parquet(temporary)
