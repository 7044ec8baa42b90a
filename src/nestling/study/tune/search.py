"""Search the training settings of one variant for the best recall@10 on dev."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from nestling import atomic
from nestling.config.experiment import Experiment
from nestling.config.fingerprint import fingerprint
from nestling.config.training import layered, value_of
from nestling.environment import PICTURES, needed
from nestling.errors import InputError
from nestling.evaluation.results import write_table
from nestling.progress import Observer
from nestling.study.log import logged_to
from nestling.study.tune.context import Context, prepare
from nestling.study.tune.space import DEFAULT_SPACE, Space, Value, make_space
from nestling.training.result import selection, worded

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial, `complete` or `pruned`, with its value of `Search.metric`: of a pruned one the best, if any.

    The seconds are those of the process that finished it, the reason is why it was pruned.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Value]
    by_epoch: dict[int, float]
    seconds: float
    reason: str


@dataclass(frozen=True)
class Search:
    """A finished search: its trials, and the experiment, `NAME-tuned`, with the settings of the best one in place.

    Trials are compared by the dev figure `metric`, which was `before` without training; `importance` is each setting's
    share in how it varies, empty where there were too few trials.
    """

    experiment: Experiment
    variant: str
    metric: str
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    before: float
    importance: dict[str, float]
    folder: Path
    files: tuple[Path, ...]


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

    Each trial trains the variant on the run's train split and is measured by its recall@10 on dev (for Matryoshka the
    mean over its sizes); poor ones end after an epoch. The test split is not looked at. The first trial has the
    experiment's own settings. The same call goes on until `trials` have finished in all, after Ctrl-C too; several
    processes may make it at once. Models are not kept.

    Args:
        variant: its name; by default the first that is trained.
        storage: an SQLite file that workers of this machine share, by default in the run's folder; or the URL of a
            database, for workers on several machines, each with a run folder of its own.
        seed: of the sampler. One worker's search is repeatable.
    """
    needed("nestling tune", "optuna", *PICTURES)
    from nestling.study.tune import workers

    if trials < 1:
        raise InputError(f"a search needs 1 trial or more, not {trials}")
    observer = observer or Observer()
    context = prepare(experiment, variant, runs=runs, observer=observer)
    space = space or make_space(DEFAULT_SPACE)
    folder = context.folder.tuning
    spec = context.spec(context.settings)
    dimensions = [(dimension.name, dimension.as_dict()) for dimension in space]
    made_from = fingerprint([context.split_print, context.variant.name, spec.fingerprint(), dimensions, seed])
    with logged_to(context.folder.log):
        storage = storage or folder / "study.db"
        study = workers.open_study(storage, made_from=made_from, first=_own_settings(context, space))
        objective = partial(workers.train_trial, space=space, context=context, folder=folder, observer=observer)
        lock = workers.lock_of(storage)
        if not workers.work(study, objective, trials=trials, seed=seed, lock=lock, observer=observer):
            observer.note("all trials had finished before")
        finished = workers.trials_of(study, *workers.FINISHED)
        logger.info("tuning of %s: %d trials are finished", context.variant.name, len(finished))
        importance, why_not = workers.importance_of(study)
        search = _write(finished, importance, space, context, selection(spec.matryoshka))
        if not importance:
            observer.note(why_not)
        return search


def _own_settings(context: Context, space: Space) -> dict[str, Any]:
    """Return the experiment's own settings as a first trial, or none where one is outside the space."""
    own = {dimension.name: value_of(context.settings, dimension.name) for dimension in space}
    outside = [dimension.name for dimension in space if own[dimension.name] not in dimension]
    if outside:
        logger.info("the search does not begin with the experiment's settings: %s is outside the space", outside[0])
    return {} if outside else own


def _write(
    finished: Sequence[optuna.trial.FrozenTrial],
    importance: dict[str, float],
    space: Space,
    context: Context,
    metric: str,
) -> Search:
    from nestling.report.charts import save, short_source
    from nestling.study.tune import charts

    folder, variant = context.folder.tuning, context.variant
    records = tuple(map(_record, finished))
    complete = [record for record in records if record.state == "complete"]
    if not complete:
        raise InputError(f"none of {len(records)} trials could be trained: {records[-1].reason}")
    best = max(complete, key=lambda record: (record.value or 0.0, -record.number))
    tuned = variant.model_copy(update={"training": layered(variant.training, best.params)})
    variants = tuple(tuned if each.name == variant.name else each for each in context.experiment.variants)
    name = f"{context.experiment.name[:74]}-tuned"
    experiment = context.experiment.model_copy(update={"name": name, "variants": variants})
    files = [folder / "best.yaml", folder / "trials.parquet"]
    atomic.write_text(files[0], experiment.to_yaml())
    write_table(files[1], _table(records, space, metric=metric))
    subtitle = f"{short_source(context.source)}: {variant.name}, {len(records)} trials"
    measure = worded(metric)
    chart = charts.parallel_coordinates(records, space, best=best.number, measure=measure, subtitle=subtitle)
    files.append(save(chart, folder / "trials")[0])
    if importance:
        chart = charts.importances(importance, measure=measure, subtitle=subtitle)
        files.append(save(chart, folder / "importance")[0])
    before = next(float(trial.user_attrs["before"]) for trial in finished if "before" in trial.user_attrs)
    return Search(experiment, variant.name, metric, records, best, before, importance, folder, tuple(files))


def _record(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    complete = trial.state.name == "COMPLETE"
    return TrialRecord(
        number=trial.number,
        state=trial.state.name.lower(),
        value=trial.value if complete else max(trial.intermediate_values.values(), default=None),
        params=dict(trial.params),
        by_epoch=dict(sorted(trial.intermediate_values.items())),
        seconds=float(trial.user_attrs.get("seconds", 0.0)),
        reason="" if complete else str(trial.user_attrs.get("reason", "")),
    )


def _table(records: Sequence[TrialRecord], space: Space, *, metric: str) -> pl.DataFrame:
    """Return a row a trial: trial, state, the `metric`, seconds, reason, by_epoch, and a column a setting."""
    rows = [
        {
            "trial": record.number,
            "state": record.state,
            metric: record.value,
            "seconds": record.seconds,
            "reason": record.reason,
            "by_epoch": list(record.by_epoch.values()),
            **{dimension.name: record.params.get(dimension.name) for dimension in space},
        }
        for record in records
    ]
    kinds: dict[str, pl.DataType] = {metric: pl.Float64(), "by_epoch": pl.List(pl.Float64)}
    return pl.DataFrame(rows, schema_overrides=kinds, strict=False, infer_schema_length=None)
