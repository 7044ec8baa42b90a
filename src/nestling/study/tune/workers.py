"""The trials of a search: Optuna's storage with heartbeats, shared by workers, and what one trial does."""

from __future__ import annotations

import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.pruners import BasePruner
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from nestling.errors import InputError
from nestling.progress import Observer, TrainingProgress
from nestling.study.tune.context import Context
from nestling.study.tune.space import Space, settings_with, value_text
from nestling.training.result import selection, worded

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP_TRIALS, RETRIES = 6, 2
HEARTBEAT_SECONDS, GRACE_SECONDS, POLL_SECONDS = 10, 60, 1.0
ALL_UNFIT = 3
"""A search gives up when so many trials have ended and none of them could be trained."""
COMPARABLE = 3
"""A trial is not pruned before so many comparable ones are complete."""
IMPORTANCE_TRIALS = 10
"""Complete trials that importances take."""


def open_study(storage: Path | str, *, made_from: str, first: dict[str, Any]) -> optuna.Study:
    """Open a search, or begin it with the settings `first` as its first trial, if there are any.

    Raises InputError where the storage holds a search that was not made from `made_from`, or can hold none.
    """
    logging.getLogger("optuna").setLevel(logging.ERROR)
    # Of heartbeats and the multivariate sampler.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    url = str(storage)
    if "://" not in url:
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{storage}"
    # Of workers that start together one makes the tables.
    with lock_of(storage):
        try:
            study = optuna.create_study(
                storage=RDBStorage(
                    url,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
                ),
                study_name="nestling",
                direction="maximize",
                load_if_exists=True,
                pruner=FairMedian(),
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, RuntimeError):
            raise InputError(
                f"{storage} is no storage of a search, or damaged; choose another --storage, or remove it"
            ) from None
        known = study.user_attrs.get("made_from")
        if known is None:
            study.set_user_attr("made_from", made_from)
            if first:
                study.enqueue_trial(first)
        elif known != made_from:
            raise InputError(
                f"{storage} holds a search with other data, settings or space; choose another --name or --storage"
            )
    return study


def work(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    *,
    trials: int,
    seed: int,
    lock: AbstractContextManager[object],
    observer: Observer,
) -> bool:
    """Run trials until `trials` have finished, whoever ran them; return whether there was anything to do.

    A trial whose worker died is run again with the same settings, `RETRIES` times at most.
    The sampler is TPE (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization), seeded for each trial by
    the number of those before it, so that one worker's search is repeatable, interrupted or not.
    """
    worked = waits = False
    while True:
        # Workers of one machine begin one after the other, so that each knows of the others' trials.
        with ExitStack() as until_begun:
            until_begun.enter_context(lock)
            fail_stale_trials(study)
            # In one query, since a trial that ends between two would be in neither.
            begun = trials_of(study, TrialState.RUNNING, *FINISHED)
            running = sum(trial.state == TrialState.RUNNING for trial in begun)
            if len(begun) - running >= trials:
                return worked
            if len(begun) < trials:
                failed = trials_of(study, TrialState.FAIL)
                # Settings that were given up must not come again, as they would from the same seed.
                given_up = sum(len(trial.system_attrs.get("retry_history", ())) >= RETRIES for trial in failed)
                study.sampler = optuna.samplers.TPESampler(
                    seed=int(np.random.SeedSequence([seed, len(begun) + given_up]).generate_state(1)[0]),
                    n_startup_trials=STARTUP_TRIALS,
                    multivariate=True,
                    constant_liar=True,
                )

                def begin(trial: optuna.Trial, unlock: Callable[[], None] = until_begun.close) -> float:
                    unlock()
                    return objective(trial)

                study.optimize(begin, n_trials=1)
                worked = True
                if len(trials_of(study, *FINISHED)) >= ALL_UNFIT and not trials_of(study, TrialState.COMPLETE):
                    return worked
                continue
        if not waits:
            observer.stage("wait", f"{running} trials of other workers are running")
            waits = True
        time.sleep(POLL_SECONDS)


def lock_of(storage: Path | str) -> AbstractContextManager[object]:
    """Return what one worker of a machine at a time may hold; nothing for the URL of a database."""
    return nullcontext() if "://" in str(storage) else FileLock(f"{storage}.lock")


def trials_of(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Return the trials in these states, in the order of their numbers."""
    return study.get_trials(deepcopy=False, states=states)


def train_trial(trial: optuna.Trial, space: Space, context: Context, folder: Path, observer: Observer) -> float:
    """Train with the settings of one trial, return its figure on dev, and remove what it wrote.

    A trial that is broken off is queued again and goes on from its checkpoint: after Ctrl-C without end, else `RETRIES`
    times, since its settings may be what kills the worker.
    """
    from nestling.training.trainer import fit

    params = {dimension.name: dimension.suggest(trial) for dimension in space}
    described = ", ".join(f"{name} {value_text(value)}" for name, value in params.items())
    frozen = trial.study.trials[trial.number]
    first = int(frozen.system_attrs.get("failed_trial", trial.number))
    folder = folder / f"trial-{first}"
    observer.stage(f"trial {trial.number}", described)
    start = time.perf_counter()
    try:
        settings = settings_with(context.settings, params)
        trial.set_user_attr("epochs", settings.epochs)
        spec = context.spec(settings)
        metric = selection(spec.matryoshka)
        result = fit(
            context.split.train,
            context.split.dev,
            spec,
            output=folder / "model",
            work=folder / "work",
            report=_watch(trial, metric, observer),
            note=observer.note if trial.number == 0 or first != trial.number else None,
        )
    except (InputError, optuna.TrialPruned) as stop:
        # A loss that diverges, a batch that the data cannot fill: news of these settings, not of the search.
        trial.set_user_attr("reason", str(stop))
        observer.note(f"cannot be trained: {stop}" if isinstance(stop, InputError) else str(stop))
        shutil.rmtree(folder, ignore_errors=True)
        raise optuna.TrialPruned(str(stop)) from None
    except BaseException as error:
        retries = None if isinstance(error, KeyboardInterrupt) else RETRIES
        RetryHeartbeatStaleTrialCallback(retries)(trial.study, frozen)
        raise
    finally:
        trial.set_user_attr("seconds", time.perf_counter() - start)
        observer.done()
    before, value = float(result.before[metric]), float(result.after[metric])
    trial.set_user_attr("before", before)
    # The value is that of the weights kept, which the last epoch's need not be.
    by_epoch = [entry[f"eval_{metric}"] for entry in result.history if f"eval_{metric}" in entry]
    trial.report(by_epoch[-1] if by_epoch else value, step=math.ceil(settings.epochs))
    observer.note(f"{worded(metric)} {before:.4f} -> {value:.4f}")
    logger.info("trial %d: %s %.4f with %s", trial.number, worded(metric), value, described)
    shutil.rmtree(folder, ignore_errors=True)
    return value


def _watch(trial: optuna.Trial, metric: str, observer: Observer) -> Callable[[TrainingProgress], None]:
    """Return what reports a training's dev figure by epoch, and prunes its trial."""
    reported = 0

    def watch(progress: TrainingProgress) -> None:
        nonlocal reported
        observer.training(f"trial {trial.number}", progress)
        # Dev is measured after the last step of an epoch is reported, so its figure comes with the next step.
        epoch = math.ceil(progress.epoch - 1e-6) - 1
        if progress.dev is None or epoch <= reported:
            return
        reported = epoch
        trial.report(progress.dev, step=epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {epoch} at {worded(metric)} {progress.dev:.4f}")

    return watch


class FairMedian(BasePruner):
    """The median stopping rule (Golovin et al. 2017, Google Vizier), among trainings that are at least as long.

    A trial stops after an epoch when its best figure is below the median of what finished trials had then. Optuna's own
    median compares with shorter trainings too, whose learning rate has fallen farther by then. Trials carry their
    length as the user attribute `epochs`.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether `trial` should stop after the epoch that it reported last."""
        epoch, epochs = max(trial.intermediate_values), trial.user_attrs["epochs"]
        others = [
            other.intermediate_values[epoch]
            for other in trials_of(study, TrialState.COMPLETE)
            if epoch in other.intermediate_values and other.user_attrs["epochs"] >= epochs
        ]
        return len(others) >= COMPARABLE and max(trial.intermediate_values.values()) < median(others)


def importance_of(study: optuna.Study) -> tuple[dict[str, float], str]:
    """Return each setting's share in how a trial's figure varies, largest first; or nothing, and why.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255): how far the better trials' settings differ from those of all.
    """
    complete = trials_of(study, TrialState.COMPLETE)
    if len(complete) < IMPORTANCE_TRIALS:
        return {}, f"no picture of importance: {len(complete)} complete trials, and it takes {IMPORTANCE_TRIALS}"
    if len({trial.value for trial in complete}) == 1:
        return {}, "no picture of importance: all trials came to the same figure"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(study)
    return dict(sorted(shares.items(), key=lambda item: -item[1])), ""
