"""When a trial is ended early: below the median of its like, epoch by epoch."""

from __future__ import annotations

from statistics import median

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

LIKE = 3


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
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if other.user_attrs["epochs"] >= length and epoch in other.intermediate_values
        ]
        return len(others) >= LIKE and max(trial.intermediate_values.values()) < median(others)
