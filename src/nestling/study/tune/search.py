"""Search the training settings of one variant for the best recall@10 on dev."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling import atomic
from nestling.config.experiment import Experiment
from nestling.config.fingerprint import fingerprint
from nestling.config.training import value_of
from nestling.environment import PICTURES, needed
from nestling.errors import InputError
from nestling.progress import Observer
from nestling.study.log import logged_to
from nestling.study.tune.context import Context, prepare
from nestling.study.tune.outcome import Search, record_of, trials_frame, tuned
from nestling.study.tune.space import DEFAULT_SPACE, Space, make_space
from nestling.training.result import worded

if TYPE_CHECKING:
    import optuna


logger = logging.getLogger(__name__)


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
    needed("nestling tune", "optuna", *PICTURES)
    from nestling.study.tune import workers

    if trials < 1:
        raise InputError(f"a search needs 1 trial or more, not {trials}")
    observer = observer or Observer()
    context = prepare(experiment, variant, runs=runs, observer=observer)
    space = space or make_space(DEFAULT_SPACE)
    folder = context.folder.tuning
    made_from = fingerprint(
        [
            context.split_print,
            context.variant.name,
            context.spec(context.settings).fingerprint(),
            [(dimension.name, dimension.as_dict()) for dimension in space],
            seed,
        ]
    )

    with logged_to(context.folder.log):
        storage = storage or folder / "study.db"
        study = workers.open_study(storage, made_from=made_from, first=_first(context, space))
        worked = workers.work(
            study,
            lambda trial: workers.train_trial(trial, space, context, folder, observer),
            trials=trials,
            seed=seed,
            lock=workers.lock_of(storage),
            observer=observer,
        )
        if not worked:
            observer.note("all trials asked for had finished before")
        frozen = workers.trials_of(study, *workers.FINISHED)
        logger.info("tuning of %s: %d trials are finished", context.variant.name, len(frozen))
        importance, why_not = workers.importance_of(study)
        found = _written(frozen, importance, space, context, folder)
        if not importance:
            observer.note(why_not)
        return found


def _first(context: Context, space: Space) -> dict[str, Any] | None:
    """Return the experiment's own settings as a first trial, or None where the space leaves one of them out."""
    own = {dimension.name: dimension.match(value_of(context.settings, dimension.name)) for dimension in space}
    outside = [name for name, value in own.items() if not value]
    if outside:
        logger.info("the search does not begin with the experiment's settings: %s is outside the space", outside[0])
        return None
    return {name: value[0] for name, value in own.items() if value}


def _written(
    frozen: Sequence[optuna.trial.FrozenTrial],
    importance: dict[str, float],
    space: Space,
    context: Context,
    folder: Path,
) -> Search:
    from nestling.report.charts import save, short_source
    from nestling.study.tune import charts

    records = tuple(record_of(trial) for trial in frozen)
    complete = [record for record in records if record.state == "complete"]
    if not complete:
        raise InputError(f"none of {len(records)} trials could be trained: {records[-1].reason}")
    best = max(complete, key=lambda record: (record.value or 0.0, -record.number))
    experiment = tuned(context.experiment, context.variant, best.params)
    files = [folder / "best.yaml", folder / "trials.parquet"]
    atomic.write_text(files[0], experiment.to_yaml())
    frame = trials_frame(records, space, metric=context.metric)
    with atomic.new_file(files[1]) as temporary:
        frame.write_parquet(temporary)
    subtitle = f"{short_source(context.source)}: {context.variant.name}, {len(records)} trials"
    measure = worded(context.metric)
    picture = charts.parallel_coordinates(records, space, best=best.number, measure=measure, subtitle=subtitle)
    files.append(save(picture, folder / "trials")[0])
    if importance:
        picture = charts.importances(importance, measure=measure, subtitle=subtitle)
        files.append(save(picture, folder / "importance")[0])
    before = next(float(trial.user_attrs["before"]) for trial in frozen if "before" in trial.user_attrs)
    return Search(
        experiment, context.variant.name, context.metric, records, best, before, importance, folder, tuple(files)
    )
