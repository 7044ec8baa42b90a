"""Observer of long-running stages. The base class listens to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingProgress:
    """Optimizer steps done and in all, the mean loss over the last logged ones, and speed since this process began.

    `dev` is the figure that epochs are chosen by (`result.selection`), at the last evaluation.
    """

    step: int
    steps: int
    epoch: float
    loss: float | None
    pairs_per_second: float
    seconds_left: float
    dev: float | None


class Observer:
    """Override what you want to hear; every method does nothing here."""

    def plan(self, stages: Mapping[str, Sequence[float]]) -> None:
        """Hear, before they begin, of all stages in order, with about how many seconds each training of one takes."""

    def stage(self, name: str, detail: str = "") -> None:
        """Hear that a stage begins, or, with a detail that says so, is skipped."""

    def note(self, text: str) -> None:
        """Hear one line that a person should see: a choice that was made, a rule that was applied."""

    def training(self, variant: str, progress: TrainingProgress) -> None:
        """Hear of every step of a training."""

    def encoding(self, variant: str, done: int, total: int) -> None:
        """Hear how many of a variant's texts are encoded."""

    def done(self) -> None:
        """Hear that the stage in progress has ended, well or not."""
