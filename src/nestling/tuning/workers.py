"""One search, several workers: a journal that they share, who does which trial, and what becomes of the dead's."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from nestling.errors import InputError
from nestling.tuning.pruning import FairMedian
from nestling.tuning.space import Space

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP_TRIALS = 6
DEATHS = 3
POLL_SECONDS = 1.0


class Crew:
    """This process among the workers of a search.

    Who may begin a trial is settled under a lock beside the journal. Each worker holds a lock of its own while it
    lives, and the system frees it however the worker ends, so that a trial left running is known for a dead one's
    without heartbeats, clocks or process ids. The settings of such a trial are tried again.

    The sampler is TPE (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization), seeded for each trial by
    the number of those before it: a search by one worker gives the same trials again, also one that was interrupted.
    """

    def __init__(self, journal: Path, space: Space, *, made_from: str, seed: int, first: dict[str, Any] | None) -> None:
        """Open the journal, or begin it with the settings `first` as its first trial.

        Raises:
            InputError: it is another search's, or no journal.
        """
        self.space = space
        self.seed = seed
        self._folder = journal.with_name(f"{journal.name}.workers")
        self._turn = FileLock(journal.with_name(f"{journal.name}.turn"))
        self._id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._distributions = {dimension.name: dimension.distribution() for dimension in space}
        journal.parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("optuna").setLevel(logging.WARNING)
        with self._turn:
            self.study = _open(journal)
            known = self.study.user_attrs.get("made_from")
            if known is None:
                self.study.set_user_attr("made_from", made_from)
                if first:
                    self.study.enqueue_trial(first)
            elif known != made_from:
                raise InputError(
                    f"{journal} holds a search with other data, settings or space; choose another --name or --storage"
                )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Be known as a living worker."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._id}.lock"
        try:
            with FileLock(path):
                yield
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep the other workers from beginning or ending a search meanwhile."""
        with self._turn:
            yield

    def next_trial(self, wanted: int, waiting: Callable[[int], None]) -> Trial | None:
        """Begin a trial, or return None when `wanted` have finished, whoever did them.

        While other workers run the last ones it waits, so that a trial whose worker dies is taken over.

        Args:
            waiting: told, once, how many trials of others it waits for.
        """
        told = False
        while True:
            with self.turn():
                self._bury()
                finished = len(self.trials(*FINISHED))
                running = len(self.trials(TrialState.RUNNING))
                if finished >= wanted:
                    return None
                if finished + running < wanted:
                    return self._begin(finished + running)
            if not told:
                waiting(running)
                told = True
            time.sleep(POLL_SECONDS)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states (all by default), in the order of their numbers."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def complete(self, trial: Trial, value: float) -> None:
        """Record a trial's dev recall@10."""
        self.study.tell(trial, value)

    def pruned(self, trial: Trial, reason: str) -> None:
        """Record that a trial was ended early, or that its settings cannot be trained with; the sampler avoids both."""
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def again(self, trial: Trial, *, died: bool) -> None:
        """Record that a trial was broken off, and have its settings tried again."""
        with self.turn():
            self._again(self.study.trials[trial.number], died=died)

    def _begin(self, before: int) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = optuna.samplers.TPESampler(
                seed=int(np.random.SeedSequence([self.seed, before]).generate_state(1)[0]),
                n_startup_trials=STARTUP_TRIALS,
                multivariate=True,
                constant_liar=True,
            )
        trial = self.study.ask(self._distributions)
        trial.set_user_attr("worker", self._id)
        return trial

    def _bury(self) -> None:
        """Have the trials of dead workers tried again."""
        for trial in self.trials(TrialState.RUNNING):
            worker = str(trial.user_attrs.get("worker", ""))
            # Trials begin under the lock that is held here: one without a worker lost it half-way.
            if worker != self._id and (not worker or self._is_dead(worker)):
                logger.warning("trial %d was left by a worker that died", trial.number)
                self._again(trial, died=True)

    def _is_dead(self, worker: str) -> bool:
        path = self._folder / f"{worker}.lock"
        if not path.exists():
            return True
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return False
        path.unlink(missing_ok=True)
        return True

    def _again(self, trial: FrozenTrial, *, died: bool) -> None:
        deaths = int(trial.user_attrs.get("deaths", 0)) + died
        if deaths >= DEATHS:
            # Settings that kill their worker, say for want of memory, must not do so for ever.
            self.study.tell(trial.number, state=TrialState.PRUNED)
            return
        self.study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            origin = trial.user_attrs.get("origin", trial.number)
            self.study.enqueue_trial(dict(trial.params), user_attrs={"origin": origin, "deaths": deaths})


def _open(journal: Path) -> optuna.Study:
    trouble = InputError(f"{journal} is no journal of a search, or damaged; choose another --storage, or remove it")
    # Optuna's default lock, by links, spins for ever on one left at a relative path; this gives way in half a minute.
    lock = JournalFileOpenLock(str(journal))
    lock.acquire()
    try:
        if not _is_journal(journal):
            raise trouble
    finally:
        lock.release()
    backend = JournalFileBackend(str(journal), lock_obj=lock)
    try:
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name="nestling",
            direction="maximize",
            load_if_exists=True,
            pruner=FairMedian(),
        )
    except (ValueError, KeyError, TypeError):
        raise trouble from None


def _is_journal(path: Path) -> bool:
    """Whether the file is a journal or not there yet; half a last line, of a write that was cut short, is dropped."""
    if not path.exists():
        return True
    content = path.read_bytes()
    whole, newline, half = content.rpartition(b"\n")
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        return False
    if any(not isinstance(line, dict) or "op_code" not in line for line in lines) or (half and not lines):
        return False
    if half:
        logger.warning("%s: the last line was cut short and is dropped", path)
        os.truncate(path, len(whole) + len(newline))
    return True
