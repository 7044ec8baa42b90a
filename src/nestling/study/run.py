"""Run a study stage by stage into its folder; what is done is skipped, what was interrupted goes on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from nestling import atomic
from nestling.config.experiment import DEMO, Experiment
from nestling.config.fingerprint import fingerprint
from nestling.config.run_folder import RunFolder
from nestling.environment import PICTURES, hardware, needed, versions
from nestling.errors import InputError
from nestling.evaluation.grid import System, sizes_of
from nestling.evaluation.results import write_table
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split, summarise
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.models.engines.engine import engine_for
from nestling.models.load import ModelSource, find_model, load_model
from nestling.progress import Observer
from nestling.report import charts, page, tables
from nestling.study import data
from nestling.study.estimate import plan
from nestling.study.evaluate import Evaluation, Part, evaluate
from nestling.study.log import logged_to
from nestling.study.split import split, split_print
from nestling.study.train import fit_watched, source_of, spec_of_variant
from nestling.training.inputs.scored import check_scores
from nestling.training.result import SUMMARY, TrainingResult, read_result

if TYPE_CHECKING:
    from nestling.judgments.inspection import Inspection
    from nestling.training.spec import TrainingSpec

logger = logging.getLogger(__name__)

Made = TypeVar("Made")


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
    judgments = data.load(experiment.data, seed=experiment.split.seed)
    threshold = settle_threshold(judgments, experiment.data.threshold)
    for variant in experiment.trained:
        check_scores(judgments, experiment.training_of(variant))
    with folder.locked(), logged_to(folder.log):
        logger.info("run %s of %s begins", experiment.name, judgments.source)
        watched = observer is not None
        return _Study(experiment, folder, judgments, threshold, overwrite, observer or Observer(), watched).run()


def _check_models(experiment: Experiment) -> None:
    """Find every base model and try the sizes and the engine on it, before hours are spent."""
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


@dataclass
class _Study:
    """One call of `run`: what it was given, what each output is made from, and how long its stages took.

    Attributes:
        watched: whether the observer is anyone's, for whom a few batches are timed beforehand.
    """

    experiment: Experiment
    folder: RunFolder
    judgments: Judgments
    threshold: float
    overwrite: bool
    observer: Observer
    watched: bool
    prints: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def bases(self) -> dict[str, ModelSource]:
        """What each variant starts from."""
        return {variant.name: source_of(self.experiment, variant) for variant in self.experiment.variants}

    def run(self) -> Run:
        specs = {
            variant.name: spec_of_variant(self.experiment, variant, self.threshold, cache=self.folder.tokens)
            for variant in self.experiment.trained
        }
        self.prints = self._fingerprints(specs)
        self._refuse_others()
        atomic.write_text(self.folder.experiment, self.experiment.to_yaml())
        if self.watched:
            done = [name for name, made_from in self.folder.state.items() if self.prints.get(name) == made_from]
            self.observer.plan(plan(self.experiment, self.judgments, self.bases, specs, done))
        inspection = self._inspect()
        sides = self._split()
        results = {name: self._train(name, spec, sides) for name, spec in specs.items()}
        return self._finish(inspection, sides, results, self._evaluate(sides))

    def _fingerprints(self, specs: dict[str, TrainingSpec]) -> dict[str, str]:
        """What every output is made from, so that a change is noticed."""
        sides = split_print(self.judgments, self.experiment.split)
        measured = self.experiment.evaluation.model_dump(mode="json", exclude={"batch_size"})
        prints = {"split": sides}
        for name in self.experiment.evaluation.baselines:
            prints[f"evaluation {name}"] = fingerprint([sides, self.threshold, measured])
        for variant in self.experiment.variants:
            spec = specs.get(variant.name)
            made_from = [sides, self.bases[variant.name].fingerprint if spec is None else spec.fingerprint()]
            prints[f"model {variant.name}"] = fingerprint(made_from)
            prints[f"evaluation {variant.name}"] = fingerprint([*made_from, self.threshold, measured])
        return prints

    def _refuse_others(self) -> None:
        """Refuse to replace a split or a model that was made from something else, unless asked to."""
        known = {name: made_from for name, made_from in self.folder.state.items() if not name.startswith("evaluation ")}
        stale = [name for name, made_from in known.items() if self.prints.get(name, made_from) != made_from]
        if stale and not self.overwrite:
            raise InputError(
                f"{self.folder.path}: its {stale[0]} was made from other data or settings; choose another --name, or "
                "give --overwrite to make it again"
            )

    def _timed(self, stage: str, make: Callable[[], Made]) -> Made:
        start = time.perf_counter()
        made = make()
        self.seconds[stage] = time.perf_counter() - start
        return made

    def _inspect(self) -> Inspection:
        encoding = f", read as {self.judgments.encoding}" if self.judgments.encoding else ""
        self.observer.stage("inspect", self.judgments.source + encoding)
        model = source_of(self.experiment)
        inspection = self._timed("inspect", lambda: data.inspect(self.judgments, model=model, threshold=self.threshold))
        if not self.folder.is_done("inspection", self.prints["split"], self.folder.inspection):
            atomic.write_json(self.folder.inspection, inspection.as_dict())
            charts.save(charts.score_histogram(inspection), self.folder.path / "scores")
            self.folder.mark("inspection", self.prints["split"])
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

    def _once(
        self, stage: str, name: str, paths: Sequence[Path], read: Callable[[], Made], make: Callable[[], Made]
    ) -> Made:
        """Read what an earlier call made from the same, else make it and mark it as done."""
        if self.folder.is_done(name, self.prints[name], *paths):
            self.observer.stage(stage, "done before")
            return read()
        self.observer.stage(stage)
        made = self._timed(stage, make)
        self.folder.mark(name, self.prints[name])
        return made

    def _split(self) -> Split:
        def read() -> Split:
            known = read_split(self.folder.split)
            if known.warning:
                self.observer.note(known.warning)
            return known

        def make() -> Split:
            made = split(self.judgments, out=self.folder.split, settings=self.experiment.split)
            for line in made.told():
                self.observer.note(line)
            return made

        return self._once("split", "split", [self.folder.split], read, make)

    def _train(self, name: str, spec: TrainingSpec, sides: Split) -> TrainingResult:
        model, work = self.folder.model(name), self.folder.training(name)

        def make() -> TrainingResult:
            result = fit_watched(name, sides.train, sides.dev, spec, output=model, work=work, observer=self.observer)
            self.observer.note(f"{result.pairs_per_second:.1f} pairs/s; {result.summary()}")
            return result

        return self._once(f"train {name}", f"model {name}", [model, work / SUMMARY], lambda: read_result(work), make)

    def _evaluate(self, sides: Split) -> Evaluation:
        trained = {v.name: find_model(str(self.folder.model(v.name))) for v in self.experiment.trained}
        return evaluate(
            sides,
            {**self.bases, **trained},
            settings=self.experiment.evaluation,
            threshold=self.threshold,
            reference=self._reference,
            cache=self.folder.embeddings,
            sink=self._measured,
            observer=self.observer,
        )

    def _measured(self, names: Sequence[str], measure: Callable[[], Part]) -> Part:
        """Measure a part and keep its tables, or read what an earlier call kept."""
        name, folder = names[0], self.folder
        paths = {each: (folder.evaluation(each), folder.ranking(each)) for each in names}

        def read() -> Part:
            return Part({each: System(*map(pl.read_parquet, two)) for each, two in paths.items()})

        def make() -> Part:
            part = measure()
            for each, system in part.systems.items():
                for path, table in zip(paths[each], system, strict=True):
                    write_table(path, table)
            if part.about:
                atomic.write_json(folder.measured(name), part.about)
            return part

        every = [path for two in paths.values() for path in two]
        return self._once(f"evaluate {name}", f"evaluation {name}", every, read, make)

    @property
    def _reference(self) -> str | None:
        return tables.reference_of([(v.name, v.recipe, self.experiment.base_of(v)) for v in self.experiment.variants])

    def _finish(
        self, inspection: Inspection, sides: Split, results: dict[str, TrainingResult], found: Evaluation
    ) -> Run:
        self.observer.stage("report")
        found.write(self.folder)
        atomic.write_json(self.folder.results_json, self._as_json(inspection, sides, results, found))
        source, test = charts.short_source(self.judgments.source), found.test
        subtitle = f"{source}: {test.n_queries:,} test queries, {test.n_documents:,} documents, {test.protocol}"
        pictures = tuple(
            charts.save(charts.measure_by_dim(found.results, name, subtitle=subtitle), self.folder.picture(name))[0]
            for name in self.experiment.evaluation.measures[:2]
        )
        report = page.write_pages(self.folder)
        logger.info("run %s is finished", self.experiment.name)
        return Run(
            experiment=self.experiment,
            folder=self.folder.path,
            results=found.results,
            comparisons=found.comparisons,
            reference=self._reference,
            regressions=tuple(name for name, result in results.items() if result.regression),
            ceiling=found.ceiling,
            queries=test.n_queries,
            pictures=pictures,
            report=report,
        )

    def _as_json(
        self, inspection: Inspection, sides: Split, results: dict[str, TrainingResult], found: Evaluation
    ) -> dict[str, Any]:
        folder = self.folder
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
            "inspection": inspection.as_dict(),
            "split": summarise(sides),
            "test": {
                "protocol": found.protocol,
                "queries": found.test.n_queries,
                "documents": found.test.n_documents,
                "ceiling@10": found.ceiling,
            },
            "training": {name: result.as_dict() for name, result in results.items()},
            "evaluation": {name: json.loads(folder.measured(name).read_text(encoding="utf-8")) for name in models},
            "results": found.results.to_dicts(),
            "comparisons": found.comparisons.to_dicts(),
            "seconds": {**earlier, **self.seconds},
            "versions": versions(),
            "hardware": hardware(),
        }
