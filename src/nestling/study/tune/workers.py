"""The trials of a search: Optuna's storage with heartbeats, shared by workers, and what one trial does."""

from __future__ import annotations

import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.pruners import BasePruner
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from nestling.errors import InputError
from nestling.progress import Observer
from nestling.study.tune.context import Context
from nestling.study.tune.space import Space, described, settings_with
from nestling.training.result import worded

if TYPE_CHECKING:
    from nestling.config.training import TrainingSettings
    from nestling.progress import TrainingProgress
    from nestling.training.result import TrainingResult

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP_TRIALS = 6
RETRIES = 2
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
POLL_SECONDS = 1.0
ALL_UNFIT = 3
"""A search gives up when so many trials have ended and none of them could be trained."""
LIKE = 3
"""Complete trials of its like that a trial is held against, or it is not pruned."""
IMPORTANCE_TRIALS = 10
"""Complete trials below which no share of a setting is worth drawing."""


def open_study(storage: Path | str, *, made_from: str, first: dict[str, Any] | None) -> optuna.Study:
    """Open a search, or begin it with the settings `first` as its first trial.

    Args:
        storage: an SQLite file, or the URL of a database that workers on several machines share.
        made_from: fingerprint of what the search depends on.

    Raises:
        InputError: the storage holds another search, or none can be held there.
    """
    trouble = InputError(f"{storage} is no storage of a search, or damaged; choose another --storage, or remove it")
    logging.getLogger("optuna").setLevel(logging.ERROR)
    file = None if "://" in str(storage) else Path(storage)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    # Of workers that start together one makes the tables.
    with lock_of(storage), _experimental():
        try:
            study = optuna.create_study(
                storage=RDBStorage(
                    f"sqlite:///{file}" if file else str(storage),
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
            raise trouble from None
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

    A trial whose worker died is run again with the same settings, `RETRIES` times at most. While other workers run the
    last ones it waits, to take over from one that dies.
    The sampler is TPE (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization), seeded for each trial by
    the number of those before it: a search by one worker gives the same trials again, also one that was interrupted.
    """
    worked = waits = False
    while True:
        with ExitStack() as until_begun, _experimental():
            # Workers of one machine begin one after the other, so that each knows of the others' trials.
            until_begun.enter_context(lock)
            fail_stale_trials(study)
            # In one look, since a trial that ends between two would be in neither.
            begun = trials_of(study, TrialState.RUNNING, *FINISHED)
            running = sum(each.state == TrialState.RUNNING for each in begun)
            if len(begun) - running >= trials:
                return worked
            if len(begun) < trials:
                failed = trials_of(study, TrialState.FAIL)
                # Settings that were given up must not come again, as they would from the same seed.
                given_up = sum(len(each.system_attrs.get("retry_history", ())) >= RETRIES for each in failed)
                study.sampler = optuna.samplers.TPESampler(
                    seed=int(np.random.SeedSequence([seed, len(begun) + given_up]).generate_state(1)[0]),
                    n_startup_trials=STARTUP_TRIALS,
                    multivariate=True,
                    constant_liar=True,
                )
                study.optimize(_after(until_begun.close, objective), n_trials=1)
                worked = True
                if len(trials_of(study, *FINISHED)) >= ALL_UNFIT and not trials_of(study, TrialState.COMPLETE):
                    return worked
                continue
        if not waits:
            observer.stage("wait", f"{running} trials of other workers are running")
            waits = True
        time.sleep(POLL_SECONDS)


def _after(first: Callable[[], None], objective: Callable[[optuna.Trial], float]) -> Callable[[optuna.Trial], float]:
    def run(trial: optuna.Trial) -> float:
        first()
        return objective(trial)

    return run


def lock_of(storage: Path | str) -> AbstractContextManager[object]:
    """Return what one worker of a machine at a time may hold; nothing for the URL of a database."""
    return nullcontext() if "://" in str(storage) else FileLock(f"{storage}.lock")


def trials_of(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Return the trials in these states, in the order of their numbers."""
    return study.get_trials(deepcopy=False, states=states)


def train_trial(trial: optuna.Trial, space: Space, context: Context, folder: Path, observer: Observer) -> float:
    """Train with the settings of one trial, return what that is worth on dev, and remove what it wrote.

    A trial that is broken off is queued again, and goes on from its checkpoint: without end after a person's Ctrl-C,
    which says nothing of the settings, else `RETRIES` times, since they may be what kills the worker.
    """
    params, metric = {dimension.name: dimension.suggest(trial) for dimension in space}, context.metric
    first = int(_frozen(trial).system_attrs.get("failed_trial", trial.number))
    folder = folder / f"trial-{first}"
    observer.stage(f"trial {trial.number}", described(params))
    start = time.perf_counter()
    try:
        settings = settings_with(context.settings, params)
        trial.set_user_attr("epochs", settings.epochs)
        result = _fit(trial, context, settings, folder, observer, again=first != trial.number)
    except (InputError, optuna.TrialPruned) as stop:
        # A loss that diverges, a batch that the data cannot fill: news of these settings, not of the search.
        trial.set_user_attr("reason", str(stop))
        observer.note(f"cannot be trained: {stop}" if isinstance(stop, InputError) else str(stop))
        shutil.rmtree(folder, ignore_errors=True)
        raise optuna.TrialPruned(str(stop)) from None
    except BaseException as error:
        retries = None if isinstance(error, KeyboardInterrupt) else RETRIES
        RetryHeartbeatStaleTrialCallback(retries)(trial.study, _frozen(trial))
        raise
    finally:
        trial.set_user_attr("seconds", time.perf_counter() - start)
        observer.done()
    value = float(result.after[metric])
    trial.set_user_attr("before", result.before[metric])
    # The value is that of the weights kept, which the last epoch's need not be.
    by_epoch = [entry[f"eval_{metric}"] for entry in result.history if f"eval_{metric}" in entry]
    trial.report(by_epoch[-1] if by_epoch else value, step=math.ceil(settings.epochs))
    observer.note(f"{worded(metric)} {result.before[metric]:.4f} -> {value:.4f}")
    logger.info("trial %d: %s %.4f with %s", trial.number, worded(metric), value, described(params))
    shutil.rmtree(folder, ignore_errors=True)
    return value


def _fit(
    trial: optuna.Trial, context: Context, settings: TrainingSettings, folder: Path, observer: Observer, *, again: bool
) -> TrainingResult:
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
            raise optuna.TrialPruned(f"pruned after epoch {epoch} at {worded(context.metric)} {progress.dev:.4f}")

    return fit(
        context.split.train,
        context.split.dev,
        context.spec(settings),
        output=folder / "model",
        work=folder / "work",
        report=watch,
        note=observer.note if trial.number == 0 or again else None,
    )


def _frozen(trial: optuna.Trial) -> FrozenTrial:
    return trial.study.trials[trial.number]


class FairMedian(BasePruner):
    """The median stopping rule (Golovin et al. 2017, Google Vizier), among trainings that are at least as long.

    A trial stops after an epoch when the best that it has reached is below the median of what finished trials had
    then. A schedule that falls over more epochs stands lower after its first than one that is already at its end, so
    a training is never held against a shorter one, as Optuna's own median would; nor before three of its like are
    known. Trials carry their length as the user attribute `epochs`.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether `trial` should stop after the epoch that it reported last."""
        epoch = trial.last_step
        if epoch is None:
            return False
        length = trial.user_attrs["epochs"]
        others = [
            other.intermediate_values[epoch]
            for other in trials_of(study, TrialState.COMPLETE)
            if other.user_attrs["epochs"] >= length and epoch in other.intermediate_values
        ]
        return len(others) >= LIKE and max(trial.intermediate_values.values()) < median(others)


def importance_of(study: optuna.Study) -> tuple[dict[str, float], str]:
    """Return each setting's share in how a trial's worth varies, largest first; or nothing, and why.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255): how far the settings of the better trials differ, one setting
    at a time, from those of all.
    """
    complete = trials_of(study, TrialState.COMPLETE)
    if len(complete) < IMPORTANCE_TRIALS:
        return {}, f"no picture of importance: {len(complete)} complete trials, and it takes {IMPORTANCE_TRIALS}"
    if len({trial.value for trial in complete}) == 1:
        return {}, "no picture of importance: all trials came to the same figure"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
    return dict(sorted(found.items(), key=lambda item: -item[1])), ""


@contextmanager
def _experimental() -> Iterator[None]:
    """Keep Optuna from calling its heartbeats and its multivariate sampler experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
