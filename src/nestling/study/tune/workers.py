"""One search, several workers: Optuna's storage with heartbeats, and the trials of dead workers tried again."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from nestling.errors import InputError
from nestling.study.tune.pruning import FairMedian

FINISHED, FAIL = (TrialState.COMPLETE, TrialState.PRUNED), TrialState.FAIL
STARTUP_TRIALS = 6
RETRIES = 2
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
POLL_SECONDS = 1.0


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
    with FileLock(f"{file}.lock") if file else nullcontext(), _experimental():
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
    after: Callable[[], None],
    waiting: Callable[[int], None],
) -> int:
    """Run trials until `trials` have finished, whoever ran them; return how many this process ran.

    A trial whose worker died is run again with the same settings, `RETRIES` times at most; one that this process
    breaks off is queued again. While other workers run the last ones it waits, to take over from one that dies.
    The sampler is TPE (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization), seeded for each trial by
    the number of those before it: a search by one worker gives the same trials again, also one that was interrupted.

    Args:
        after: called when a trial of this process has finished.
        waiting: called once with the number of trials of others that it waits for.
    """
    done, said = 0, False
    while True:
        with _experimental():
            fail_stale_trials(study)
        finished = len(trials_of(study, *FINISHED))
        running = len(trials_of(study, TrialState.RUNNING))
        if finished >= trials:
            return done
        if finished + running >= trials:
            if not said:
                waiting(running)
                said = True
            time.sleep(POLL_SECONDS)
            continue
        # Settings that were given up must not come again, as they would from the same seed.
        given_up = sum(len(each.system_attrs.get("retry_history", ())) >= RETRIES for each in trials_of(study, FAIL))
        with _experimental():
            study.sampler = optuna.samplers.TPESampler(
                seed=int(np.random.SeedSequence([seed, finished + running + given_up]).generate_state(1)[0]),
                n_startup_trials=STARTUP_TRIALS,
                multivariate=True,
                constant_liar=True,
            )
            study.optimize(_again_if_broken(objective), n_trials=1)
        done += 1
        after()


def trials_of(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Return the trials in these states, in the order of their numbers."""
    return study.get_trials(deepcopy=False, states=states)


def first_number(trial: optuna.Trial) -> int:
    """Return the number of the trial that this one runs again; its own where it runs for the first time."""
    return int(_frozen(trial).system_attrs.get("failed_trial", trial.number))


def _frozen(trial: optuna.Trial) -> FrozenTrial:
    return next(each for each in trials_of(trial.study, TrialState.RUNNING) if each.number == trial.number)


def _again_if_broken(objective: Callable[[optuna.Trial], float]) -> Callable[[optuna.Trial], float]:
    def run(trial: optuna.Trial) -> float:
        try:
            return objective(trial)
        except optuna.TrialPruned:
            raise
        except BaseException as error:
            # A person's Ctrl-C says nothing of the settings; what kills its worker must not do so for ever.
            retries = None if isinstance(error, KeyboardInterrupt) else RETRIES
            RetryHeartbeatStaleTrialCallback(retries)(trial.study, _frozen(trial))
            raise

    return run


@contextmanager
def _experimental() -> Iterator[None]:
    """Keep Optuna from calling its heartbeats and its multivariate sampler experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
