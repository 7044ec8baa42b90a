"""Runs an Experiment stage by stage into its folder; skips what is done, goes on with what was interrupted."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from nestling import atomic
from nestling.config.experiment import DEMO, Experiment, Variant
from nestling.config.names import PRETRAINED
from nestling.config.run_folder import RunFolder, fingerprint
from nestling.environment import PICTURES, needed
from nestling.errors import InputError
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.models.load import load_model
from nestling.progress import Observer
from nestling.report import charts, page, tables
from nestling.study import measure as measuring
from nestling.study import stages
from nestling.study.estimate import EVALUATION, REPORT, Rates, Texts, Work, measure, trainings
from nestling.study.log import logged_to
from nestling.study.results import StudyResults
from nestling.study.run_evaluation import RunEvaluation
from nestling.training.recipes.registry import RECIPES

if TYPE_CHECKING:
    from nestling.evaluation.qrels import Qrels
    from nestling.judgments.inspection import Inspection
    from nestling.training.result import TrainingResult
    from nestling.training.spec import Job

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where everything lies.
        results: long table, columns as `grid.SCHEMA`.
        comparisons: each variant at full size against the reference (or the first), columns as `significance.SCHEMA`.
        reference: the variant that gains are counted from; None without a pretrained one.
        regressions: variants that ended on dev below their base model, or below where they started.
        ceiling: the highest recall@10 that any ranking could reach.
        pictures: the PNG files.
        report: the study as a page, one HTML file.
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
        experiment: what to do; the demo by default.
        runs: the folder that holds runs.
        overwrite: make again what an earlier call made with other data or settings, instead of refusing.
        observer: told what happens, and before it begins about how long it will take, for which a few batches are
            timed; without one nothing is timed.

    Raises:
        InputError: something is wrong with the input or the settings, or the folder holds another study.
        KeyboardInterrupt: on Ctrl-C, with all that is done kept.
    """
    needed("nestling run", *PICTURES)
    experiment = experiment or Experiment.model_validate(DEMO)
    folder = RunFolder(runs / experiment.name)
    _check_models(experiment)
    judgments = stages.load(experiment.data, seed=experiment.split.seed)
    threshold = settle_threshold(judgments, experiment.data.threshold)
    for variant in experiment.variants:
        if variant.recipe != PRETRAINED:
            RECIPES[variant.recipe].check(judgments)
    with folder.locked(), logged_to(folder.log):
        logger.info("run %s of %s begins", experiment.name, judgments.source)
        return _Study(experiment, folder, judgments, threshold, overwrite, observer).run()


def _check_models(experiment: Experiment) -> None:
    """Find every base model and try the sizes and the engine on it, before hours are spent."""
    from nestling.evaluation.grid import sizes_of
    from nestling.models.engines.engine import engine_for

    for name in dict.fromkeys(experiment.base_of(variant) for variant in experiment.variants):
        model = load_model(name)
        if experiment.evaluation.engine != "auto":
            engine_for(experiment.evaluation.engine, model)
        full = int(model.get_embedding_dimension() or 0)
        for dims in [experiment.evaluation.dims, *(v.matryoshka.dims for v in experiment.variants if v.matryoshka)]:
            try:
                sizes_of(full, dims)
            except InputError as error:
                raise InputError(f"model {name!r}: {error}") from None


class _Study:
    """The state of one call of `run`: what it was given, and how long its parts took."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        judgments: Judgments,
        threshold: float,
        overwrite: bool,
        observer: Observer | None,
    ) -> None:
        self.experiment = experiment
        self.folder = folder
        self.judgments = judgments
        self.threshold = threshold
        self.overwrite = overwrite
        self.observer = observer or Observer()
        self.watched = observer is not None
        self.seconds: dict[str, float] = {}

    def run(self) -> Run:
        jobs = {variant.name: self._job(variant) for variant in self.experiment.variants}
        prints = self._fingerprints(jobs)
        self._refuse_others(prints)
        atomic.write_text(self.folder.experiment, self.experiment.to_yaml())
        if self.watched:
            self.observer.plan(self._plan(jobs, prints))
        inspection = self._inspect(prints["split"])
        split = self._split(prints["split"])
        trainings = {}
        for name, job in jobs.items():
            if job is not None:
                trainings[name] = self._train(name, job, split, prints[f"model {name}"])
        evaluation = self._evaluate(split, prints)
        return self._finish(inspection, split, trainings, evaluation)

    def _job(self, variant: Variant) -> Job | None:
        if variant.recipe == PRETRAINED:
            return None
        return stages.job_of(
            variant.recipe,
            base=stages.source_of(self.experiment, variant),
            matryoshka=variant.matryoshka,
            settings=self.experiment.training_of(variant),
            threshold=self.threshold,
            dims=self.experiment.evaluation.dims,
            cache=self.folder.tokens,
        )

    def _fingerprints(self, jobs: dict[str, Job | None]) -> dict[str, str]:
        """What every output is made from, so that a change is noticed."""
        split = stages.split_print(self.judgments, self.experiment.split)
        measured = self.experiment.evaluation.model_dump(mode="json", exclude={"batch_size"})
        prints = {"split": split}
        for name in self.experiment.evaluation.baselines:
            prints[f"evaluation {name}"] = fingerprint(split, self.threshold, measured)
        for variant in self.experiment.variants:
            job = jobs[variant.name]
            made_from = [
                split,
                stages.source_of(self.experiment, variant).fingerprint if job is None else job.fingerprint(),
            ]
            prints[f"model {variant.name}"] = fingerprint(*made_from)
            prints[f"evaluation {variant.name}"] = fingerprint(*made_from, self.threshold, measured)
        return prints

    def _refuse_others(self, prints: dict[str, str]) -> None:
        """Refuse to replace a split or a model that was made from something else, unless asked to."""
        state = self.folder.state
        stale = [name for name in state if name in prints and state[name] != prints[name]]
        stale = [name for name in stale if not name.startswith("evaluation ")]
        if stale and not self.overwrite:
            raise InputError(
                f"{self.folder.path}: its {stale[0]} was made from other data or settings; choose another --name, or "
                "give --overwrite to make it again"
            )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start

    def _plan(self, jobs: dict[str, Job | None], prints: dict[str, str]) -> dict[str, list[float]]:
        """Return the stages in order, and about how many seconds each takes here; none for what is done."""
        state, sides = self.folder.state, self.experiment.split
        train, dev, test = (
            Texts(self.judgments, share) for share in (1 - sides.dev - sides.test, sides.dev, sides.test)
        )
        rates: dict[str, Rates] = {}

        def seconds(what: str, variant: Variant, work: list[Work]) -> list[float]:
            if state.get(what) == prints[what]:
                return []
            base = self.experiment.base_of(variant)
            if base not in rates:
                rates[base] = measure(
                    stages.source_of(self.experiment, variant), self.judgments, self.experiment.training
                )
            return [each.at(rates[base]) for each in work]

        planned: dict[str, list[float]] = {"inspect": [EVALUATION], "split": []}
        for variant in self.experiment.variants:
            job = jobs[variant.name]
            if job is not None:
                planned[f"train {variant.name}"] = seconds(f"model {variant.name}", variant, trainings(job, train, dev))
        for variant in self.experiment.variants:
            # A table encodes in next to no time.
            encoded = 0.0 if variant.recipe == "static" else test.all + dev.all
            work = [Work(encoded=encoded, seconds=EVALUATION)]
            planned[f"evaluate {variant.name}"] = seconds(f"evaluation {variant.name}", variant, work)
        return (
            planned | {f"evaluate {name}": [] for name in self.experiment.evaluation.baselines} | {"report": [REPORT]}
        )

    def _inspect(self, made_from: str) -> Inspection:
        encoding = f", read as {self.judgments.encoding}" if self.judgments.encoding else ""
        self.observer.stage("inspect", self.judgments.source + encoding)
        with self._timed("inspect"):
            inspection = stages.inspect(
                self.judgments, model=stages.source_of(self.experiment), threshold=self.threshold
            )
            if not self.folder.is_done("inspection", made_from, self.folder.inspection):
                atomic.write_json(self.folder.inspection, inspection.as_dict())
                charts.save(charts.score_histogram(inspection), self.folder.path / "scores")
                self.folder.mark("inspection", made_from)
        for note in self.judgments.notes:
            logger.warning("%s: %s", self.judgments.source, note)
            self.observer.note(note)
        for what, count, rule in self.judgments.cleaning.rules():
            if count:
                self.observer.note(f"{count:,} x {what}: {rule}")
        self.observer.note(
            f"{len(self.judgments):,} records, {inspection.queries:,} queries, {inspection.documents:,} documents; "
            f"threshold {self.threshold:g} keeps {inspection.kept:,} pairs ({inspection.share:.1%})"
        )
        return inspection

    def _split(self, made_from: str) -> Split:
        if self.folder.is_done("split", made_from, self.folder.split):
            self.observer.stage("split", "done before")
            found = read_split(self.folder.split)
            if found.warning:
                self.observer.note(found.warning)
            return found
        self.observer.stage("split")
        with self._timed("split"):
            made = stages.split(self.judgments, out=self.folder.split, settings=self.experiment.split)
        self.folder.mark("split", made_from)
        for line in made.told():
            self.observer.note(line)
        return made

    def _train(self, name: str, job: Job, split: Split, made_from: str) -> TrainingResult:
        from nestling.training.result import read_result
        from nestling.training.trainer import fit

        model, work = self.folder.model(name), self.folder.training(name)
        if self.folder.is_done(f"model {name}", made_from, model, work / "summary.json"):
            self.observer.stage(f"train {name}", "done before")
            return read_result(work)
        self.observer.stage(f"train {name}")
        with self._timed(f"train {name}"):
            try:
                result = fit(
                    split.train,
                    split.dev,
                    job,
                    output=model,
                    work=work,
                    report=lambda progress: self.observer.training(name, progress),
                    note=self.observer.note,
                )
            finally:
                self.observer.done()
        self.folder.mark(f"model {name}", made_from)
        self.observer.note(f"{result.pairs_per_second:.1f} pairs/s; {result.told()}")
        return result

    def _evaluate(self, split: Split, prints: dict[str, str]) -> tuple[Qrels, dict[str, pl.DataFrame]]:
        contest = measuring.contest_of(split, self.experiment.evaluation, self.threshold, observer=self.observer)
        evaluation = RunEvaluation(self.experiment, self.folder, contest, prints, self.observer, self._timed)
        return contest.test, evaluation.all()

    def _finish(
        self,
        inspection: Inspection,
        split: Split,
        trainings: dict[str, TrainingResult],
        evaluation: tuple[Qrels, dict[str, pl.DataFrame]],
    ) -> Run:
        qrels, found = evaluation
        names = [(v.name, v.recipe, self.experiment.base_of(v)) for v in self.experiment.variants]
        reference = tables.reference_of(names)
        study = StudyResults(
            self.experiment,
            self.judgments,
            self.threshold,
            inspection,
            split,
            trainings,
            qrels,
            found,
            reference or names[0][0],
            self.seconds,
        )
        self.observer.stage("report")
        results, comparisons, pictures = study.write(self.folder)
        report = page.write_pages(self.folder)
        logger.info("run %s is finished", self.experiment.name)
        return Run(
            experiment=self.experiment,
            folder=self.folder.path,
            results=results,
            comparisons=comparisons,
            reference=reference,
            regressions=tuple(name for name, result in trainings.items() if result.regression),
            ceiling=qrels.ceiling(10),
            queries=qrels.n_queries,
            pictures=pictures,
            report=report,
        )
