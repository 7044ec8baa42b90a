"""Search the training settings of one variant for the best recall@10 on dev."""

from __future__ import annotations

import logging
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling import atomic
from nestling.config.experiment import Experiment
from nestling.config.run_folder import fingerprint
from nestling.environment import PICTURES, needed
from nestling.errors import InputError
from nestling.progress import Observer
from nestling.study.log import logged_to
from nestling.study.tune.context import Ground, prepare
from nestling.study.tune.outcome import Search, importance_of, record_of, trials_frame, tuned
from nestling.study.tune.space import DEFAULT_SPACE, Space, described, make_space, settings_with
from nestling.training.result import worded

if TYPE_CHECKING:
    import optuna

    from nestling.progress import TrainingProgress
    from nestling.training.result import TrainingResult

logger = logging.getLogger(__name__)

ALL_UNFIT = 3
"""A search gives up when so many trials have ended and none of them could be trained."""


def tune(
    experiment: Experiment,
    *,
    variant: str | None = None,
    trials: int = 20,
    space: Space | None = None,
    storage: Path | str | None = None,
    runs: Path = Path("runs"),
    seed: int = 0,
    observer: Observer | None = None,
) -> Search:
    """Search the training settings of a variant with Optuna (Akiba et al. 2019, arXiv 1907.10902).

    Each trial trains the variant on the run's train split and is worth its recall@10 on dev (for Matryoshka the mean
    over its sizes); poor ones end after an epoch. The test split is not looked at. The first trial has the settings
    that the experiment has, so the best is no worse than those. The same call goes on until `trials` have finished in
    all; several processes may make it at once. Models are not kept.

    Args:
        variant: its name; by default the first that is trained.
        space: what to search; by default DEFAULT_SPACE.
        storage: an SQLite file that workers of this machine share, by default in the run's folder; or the URL of a
            database, for workers on several machines, each with a run folder of its own.
        seed: of the sampler. One worker's search is repeatable.

    Raises:
        InputError: Optuna is missing, something is wrong with the input, the folder's split or the storage's search
            is another one, or no trial could be trained.
        KeyboardInterrupt: on Ctrl-C; the same call goes on with the trial that was broken off.
    """
    workers = _workers()
    if trials < 1:
        raise InputError(f"a search needs 1 trial or more, not {trials}")
    observer = observer or Observer()
    ground = prepare(experiment, variant, runs=runs, observer=observer)
    space = space or make_space(DEFAULT_SPACE)
    folder = ground.folder.tuning
    made_from = fingerprint(
        ground.split_print,
        ground.variant.name,
        ground.job(ground.settings).fingerprint(),
        [(dimension.name, dimension.as_dict()) for dimension in space],
        seed,
    )

    def give_up() -> None:
        ended = [record_of(each) for each in workers.trials_of(study, *workers.FINISHED)]
        if len(ended) >= ALL_UNFIT and all(each.value is None for each in ended):
            raise InputError(f"none of {len(ended)} trials could be trained: {ended[-1].reason}")

    with logged_to(ground.folder.log):
        study = workers.open_study(storage or folder / "study.db", made_from=made_from, first=_first(ground, space))
        done = workers.work(
            study,
            lambda trial: _try(trial, space, ground, folder, observer),
            trials=trials,
            seed=seed,
            after=give_up,
            waiting=lambda others: observer.stage("wait", f"{others} trials of other workers are running"),
        )
        finished = workers.trials_of(study, *workers.FINISHED)
        logger.info("tuning of %s: %d trials are finished", ground.variant.name, len(finished))
        if not done:
            observer.note("all trials asked for had finished before")
        return _finish(study, space, ground, folder, observer)


def _workers() -> Any:
    needed("nestling tune", "optuna", *PICTURES)
    from nestling.study.tune import workers

    return workers


def _first(ground: Ground, space: Space) -> dict[str, Any] | None:
    """Return the experiment's own settings as a first trial, or None where the space leaves one of them out."""
    own = {dimension.name: dimension.match(getattr(ground.settings, dimension.name)) for dimension in space}
    outside = [name for name, value in own.items() if not value]
    if outside:
        logger.info("the search does not begin with the experiment's settings: %s is outside the space", outside[0])
        return None
    return {name: value[0] for name, value in own.items() if value}


def _try(trial: optuna.Trial, space: Space, ground: Ground, folder: Path, observer: Observer) -> float:
    """Train with the settings of one trial, return its recall@10 on dev, and remove what it wrote."""
    import optuna

    workers, metric = _workers(), ground.metric
    params = {dimension.name: dimension.suggest(trial) for dimension in space}
    name, folder = f"trial {trial.number}", folder / f"trial-{workers.first_number(trial)}"
    observer.stage(name, described(params))
    start = time.perf_counter()
    try:
        settings = settings_with(ground.settings, params)
        trial.set_user_attr("epochs", settings.epochs)
        result = _fit(trial, ground, settings, folder, observer)
    except (InputError, optuna.TrialPruned) as stop:
        # A loss that diverges, a batch that the data cannot fill: news of these settings, not of the search.
        trial.set_user_attr("reason", str(stop))
        observer.note(f"cannot be trained: {stop}" if isinstance(stop, InputError) else str(stop))
        shutil.rmtree(folder, ignore_errors=True)
        raise optuna.TrialPruned(str(stop)) from None
    finally:
        # After any other break its files stay: with the same settings the training goes on from its checkpoint.
        trial.set_user_attr("seconds", time.perf_counter() - start)
        observer.done()
    value = float(result.after[metric])
    trial.set_user_attr("before", result.before[metric])
    # The value is that of the weights kept, which the last epoch's need not be.
    by_epoch = [entry[f"eval_{metric}"] for entry in result.history if f"eval_{metric}" in entry]
    trial.report(by_epoch[-1] if by_epoch else value, step=math.ceil(settings.epochs))
    observer.note(f"{worded(metric)} {result.before[metric]:.4f} -> {value:.4f}")
    logger.info("%s: %s %.4f with %s", name, worded(metric), value, described(params))
    shutil.rmtree(folder, ignore_errors=True)
    return value


def _fit(trial: optuna.Trial, ground: Ground, settings: Any, folder: Path, observer: Observer) -> TrainingResult:
    import optuna

    from nestling.training.trainer import fit

    reported = 0

    def watch(progress: TrainingProgress) -> None:
        nonlocal reported
        observer.training(f"trial {trial.number}", progress)
        # Dev is measured after the last step of an epoch has been told of, so its figure comes with the next step.
        epoch = math.ceil(progress.epoch - 1e-6) - 1
        if progress.dev is None or epoch <= reported:
            return
        reported = epoch
        trial.report(progress.dev, step=epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch} at {worded(ground.metric)} {progress.dev:.4f}")

    return fit(
        ground.split.train,
        ground.split.dev,
        ground.job(settings),
        output=folder / "model",
        work=folder / "work",
        report=watch,
        note=observer.note if trial.number == 0 or _workers().first_number(trial) != trial.number else None,
    )


def _finish(study: optuna.Study, space: Space, ground: Ground, folder: Path, observer: Observer) -> Search:
    from nestling.report.charts import save, short_source
    from nestling.study.tune import charts

    frozen = _workers().trials_of(study, *_workers().FINISHED)
    records = tuple(record_of(trial) for trial in frozen)
    complete = [record for record in records if record.state == "complete"]
    if not complete:
        raise InputError(f"none of {len(records)} trials could be trained: {records[-1].reason}")
    best = max(complete, key=lambda record: (record.value or 0.0, -record.number))
    experiment = tuned(ground.experiment, ground.variant, best.params)
    files = [folder / "best.yaml", folder / "trials.parquet"]
    atomic.write_text(files[0], experiment.to_yaml())
    frame = trials_frame(records, space, metric=ground.metric)
    with atomic.new_file(files[1]) as temporary:
        frame.write_parquet(temporary)
    subtitle = f"{short_source(ground.source)}: {ground.variant.name}, {len(records)} trials"
    measure = worded(ground.metric)
    picture = charts.parallel_coordinates(records, space, best=best.number, measure=measure, subtitle=subtitle)
    files.append(save(picture, folder / "trials")[0])
    importance, why_not = importance_of(study)
    if importance:
        picture = charts.importances(importance, measure=measure, subtitle=subtitle)
        files.append(save(picture, folder / "importance")[0])
    else:
        observer.note(why_not)
    before = next(float(trial.user_attrs["before"]) for trial in frozen if "before" in trial.user_attrs)
    return Search(
        experiment, ground.variant.name, ground.metric, records, best, before, importance, folder, tuple(files)
    )
