"""Run a study stage by stage into its folder; what is done is skipped, what was interrupted goes on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from nestling import atomic
from nestling.config.experiment import DEMO, Experiment
from nestling.config.fingerprint import fingerprint
from nestling.config.run_folder import RunFolder
from nestling.environment import PICTURES, hardware, needed, versions
from nestling.errors import InputError
from nestling.evaluation.benchmark import Benchmark
from nestling.evaluation.grid import System
from nestling.evaluation.results import write_table
from nestling.judgments.inspection import Inspection
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split, summarise
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.models.load import ModelSource, find_model
from nestling.progress import Observer
from nestling.report import charts, page, tables
from nestling.study import data
from nestling.study.estimate import plan
from nestling.study.evaluate import Evaluation, compare, parts
from nestling.study.log import logged_to
from nestling.study.train import check_models, fit_watched, source_of, spec_of
from nestling.training.inputs.scored import check_scores
from nestling.training.result import SUMMARY, TrainingResult, read_result
from nestling.training.spec import TrainingSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run: tables as `Results` has them, and the highest recall@10 that any ranking could reach.

    Gains are counted from `reference`, None without a pretrained variant; variants in `regressions` ended on dev below
    their base model or their own start.
    """

    experiment: Experiment
    folder: Path
    results: pl.DataFrame
    comparisons: pl.DataFrame
    reference: str | None
    regressions: tuple[str, ...]
    ceiling: float
    queries: int
    pictures: tuple[Path, ...]
    report: Path


def run(
    experiment: Experiment | None = None,
    *,
    runs: Path = Path("runs"),
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Run a whole study: inspect, split, train every variant, measure all, and write results and pictures.

    A second call with the same experiment redoes nothing that is done; after an interruption it goes on where the
    first stopped, in the middle of a training too. New variants may be added to a run.

    Args:
        experiment: the demo by default.
        overwrite: make again what an earlier call made with other data or settings, instead of refusing.
        observer: of the progress; with one, a few batches are timed first for an estimate of the time.
    """
    needed("nestling run", *PICTURES)
    experiment = experiment or Experiment.model_validate(DEMO)
    folder = RunFolder(runs / experiment.name)
    check_models(experiment)
    judgments = data.load(experiment.data, seed=experiment.split.seed)
    threshold = settle_threshold(judgments, experiment.data.threshold)
    for variant in experiment.trained:
        check_scores(judgments, experiment.training_of(variant))
    with folder.locked(), logged_to(folder.log):
        logger.info("run %s of %s begins", experiment.name, judgments.source)
        bases = {variant.name: source_of(experiment, variant) for variant in experiment.variants}
        specs = {
            variant.name: spec_of(experiment, variant, threshold, cache=folder.tokens) for variant in experiment.trained
        }
        prints = _fingerprints(experiment, data.split_print(judgments, experiment.split), threshold, bases, specs)
        state = folder.state
        changed = [name for name in state if state[name] != prints.get(name, state[name])]
        stale = [name for name in changed if not name.startswith("evaluation ")]
        if stale and not overwrite:
            raise InputError(
                f"{folder.path}: its {stale[0]} was made from other data or settings; choose another --name, or give "
                "--overwrite to make it again"
            )
        atomic.write_text(folder.experiment, experiment.to_yaml())
        if observer is not None:
            done = [name for name in state if state[name] == prints.get(name)]
            observer.plan(plan(experiment, judgments, bases, specs, done))
        reference = tables.reference_of([(v.name, v.recipe, experiment.base_of(v)) for v in experiment.variants])
        study = _Study(experiment, folder, judgments, threshold, reference, prints, observer or Observer())
        inspection = study.inspect()
        sides = study.split()
        trainings = {name: study.train(name, spec, sides) for name, spec in specs.items()}
        return study.report(inspection, sides, trainings, study.evaluate(sides, bases))


def _fingerprints(
    experiment: Experiment,
    sides: str,
    threshold: float,
    bases: Mapping[str, ModelSource],
    specs: Mapping[str, TrainingSpec],
) -> dict[str, str]:
    """Return what every output is made from, so that a change is noticed."""
    measured = experiment.evaluation.model_dump(mode="json", exclude={"batch_size"})
    lexical = fingerprint([sides, threshold, measured])
    prints = {"split": sides} | {f"evaluation {name}": lexical for name in experiment.evaluation.baselines}
    for name, base in bases.items():
        made_from = [sides, specs[name].fingerprint() if name in specs else base.fingerprint]
        prints[f"model {name}"] = fingerprint(made_from)
        prints[f"evaluation {name}"] = fingerprint([*made_from, threshold, measured])
    return prints


@dataclass
class _Study:
    """The stages of one call of `run`, the fingerprint of each output, and the seconds of those that are made."""

    experiment: Experiment
    folder: RunFolder
    judgments: Judgments
    threshold: float
    reference: str | None
    prints: dict[str, str]
    observer: Observer
    seconds: dict[str, float] = field(default_factory=dict)

    def inspect(self) -> Inspection:
        judgments, folder = self.judgments, self.folder
        encoding = f", read as {judgments.encoding}" if judgments.encoding else ""
        self.observer.stage("inspect", judgments.source + encoding)
        start = time.perf_counter()
        inspection = data.inspect(judgments, model=source_of(self.experiment), threshold=self.threshold)
        self.seconds["inspect"] = time.perf_counter() - start
        if not folder.is_done("inspection", self.prints["split"], folder.inspection):
            atomic.write_json(folder.inspection, inspection.as_dict())
            charts.save(charts.score_histogram(inspection), folder.path / "scores")
            folder.mark("inspection", self.prints["split"])
        for note in judgments.notes:
            logger.warning("%s: %s", judgments.source, note)
            self.observer.note(note)
        for what, count, rule in judgments.cleaning.rules():
            if count:
                self.observer.note(f"{count:,} x {what}: {rule}")
        self.observer.note(
            f"{len(judgments):,} records, {inspection.queries:,} queries, {inspection.documents:,} documents; "
            f"threshold {self.threshold:g} keeps {inspection.kept:,} pairs ({inspection.share:.1%})"
        )
        return inspection

    def split(self) -> Split:
        with self._stage("split", "split", self.folder.split) as new:
            if new:
                data.split(self.judgments, out=self.folder.split, settings=self.experiment.split)
        sides = read_split(self.folder.split)
        for line in sides.overview():
            self.observer.note(line)
        return sides

    def train(self, name: str, spec: TrainingSpec, sides: Split) -> TrainingResult:
        model, work = self.folder.model(name), self.folder.training(name)
        with self._stage(f"train {name}", f"model {name}", model, work / SUMMARY) as new:
            if new:
                result = fit_watched(
                    name, sides.train, sides.dev, spec, output=model, work=work, observer=self.observer
                )
                self.observer.note(f"{result.pairs_per_second:.1f} pairs/s; {result.summary()}")
        return read_result(work)

    def evaluate(self, sides: Split, bases: Mapping[str, ModelSource]) -> Evaluation:
        settings, cache = self.experiment.evaluation, self.folder.embeddings
        models = {**bases, **{v.name: find_model(str(self.folder.model(v.name))) for v in self.experiment.trained}}
        benchmark = Benchmark.of(sides, settings, self.threshold, observer=self.observer)
        systems: dict[str, System] = {}
        for names, measure in parts(models, benchmark, settings, cache=cache, observer=self.observer):
            paths = {name: (self.folder.evaluation(name), self.folder.ranking(name)) for name in names}
            files = [path for pair in paths.values() for path in pair]
            with self._stage(f"evaluate {names[0]}", f"evaluation {names[0]}", *files) as new:
                if new:
                    measured, about = measure()
                    for name, system in measured.items():
                        write_table(self.folder.evaluation(name), system.per_query)
                        write_table(self.folder.ranking(name), system.ranked)
                    if about:
                        atomic.write_json(self.folder.measured(names[0]), about)
            systems |= {name: System(*map(pl.read_parquet, pair)) for name, pair in paths.items()}
        return compare(systems, benchmark, reference=self.reference or next(iter(models)))

    def report(
        self, inspection: Inspection, sides: Split, trainings: Mapping[str, TrainingResult], evaluation: Evaluation
    ) -> Run:
        experiment, folder, test = self.experiment, self.folder, evaluation.test
        self.observer.stage("report")
        evaluation.write(folder)
        # Only its own file knows how long the parts of an earlier call took.
        earlier = json.loads(folder.results_json.read_text("utf-8")) if folder.results_json.is_file() else {}
        test_side = {"protocol": test.protocol, "queries": test.n_queries, "documents": test.n_documents}
        value: dict[str, Any] = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "experiment": experiment.model_dump(mode="json"),
            "threshold": self.threshold,
            "data": {"source": self.judgments.source, "fingerprint": self.judgments.fingerprint},
            "inspection": inspection.as_dict(),
            "split": summarise(sides),
            "test": {**test_side, "ceiling@10": evaluation.ceiling},
            "training": {name: result.as_dict() for name, result in trainings.items()},
            "evaluation": {v.name: json.loads(folder.measured(v.name).read_text("utf-8")) for v in experiment.variants},
            "results": evaluation.results.to_dicts(),
            "comparisons": evaluation.comparisons.to_dicts(),
            "seconds": {**earlier.get("seconds", {}), **self.seconds},
            "versions": versions(),
            "hardware": hardware(),
        }
        atomic.write_json(folder.results_json, value)
        source = charts.short_source(self.judgments.source)
        subtitle = f"{source}: {test.n_queries:,} test queries, {test.n_documents:,} documents, {test.protocol}"
        pictures = tuple(
            charts.save(charts.measure_by_dim(evaluation.results, name, subtitle=subtitle), folder.picture(name))[0]
            for name in experiment.evaluation.measures[:2]
        )
        report = page.write_pages(folder)
        logger.info("run %s is finished", experiment.name)
        return Run(
            experiment=experiment,
            folder=folder.path,
            results=evaluation.results,
            comparisons=evaluation.comparisons,
            reference=self.reference,
            regressions=tuple(name for name, result in trainings.items() if result.regression),
            ceiling=evaluation.ceiling,
            queries=test.n_queries,
            pictures=pictures,
            report=report,
        )

    @contextmanager
    def _stage(self, stage: str, name: str, *paths: Path) -> Iterator[bool]:
        """Give whether an output is to be made, and not there from the same; mark it as done at the end."""
        new = not self.folder.is_done(name, self.prints[name], *paths)
        self.observer.stage(stage, "" if new else "done before")
        start = time.perf_counter()
        yield new
        if new:
            self.seconds[stage] = time.perf_counter() - start
            self.folder.mark(name, self.prints[name])
