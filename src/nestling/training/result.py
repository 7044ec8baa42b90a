"""The result of a training, and its work folder: checkpoints, and the summary that stays."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nestling import atomic

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
SUMMARY = "summary.json"
RECALL = "dev_recall@10"
"""The figure of a model on dev, at full size."""
MEAN = "_mean"
"""After a figure's name: its mean over the full size and the prefixes of a Matryoshka variant."""


def selection(dims: Sequence[int]) -> str:
    """Return the name of the dev figure that epochs are chosen by, where these sizes are trained."""
    return RECALL + MEAN if len(dims) > 1 else RECALL


def ended_below(
    base: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]
) -> Literal["base", "start"] | None:
    """Return what a training ended below on dev, its base or its own start; None where it is no regression."""
    if after[RECALL] < base[RECALL]:
        return "base"
    return "start" if after[RECALL] < before[RECALL] else None


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Attributes:
        examples, steps: of an epoch, and optimizer steps, those before an interruption included.
        seconds: spent in steps by this process, evaluations and checkpoints apart.
        resumed_at: the step that this process went on from; None if it began anew.
        base, before, after: dev figures of the base model, of what the recipe made of it, and of the weights kept.
        kept_step: the step of those weights.
        peak_memory: bytes of the process at most, or reserved of the memory of a GPU that was used.
        history: the trainer's log: loss and learning rate by step, dev figures by epoch in the training's precision.
        left_out: the steps that were not kept, as dev was lower for them, a line each.
    """

    examples: int
    steps: int
    seconds: float
    pairs_per_second: float
    resumed_at: int | None
    base: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]
    kept_step: int
    precision: str
    precision_reason: str
    peak_memory: int
    history: list[dict[str, float]]
    left_out: list[str] = field(default_factory=list)

    @property
    def regression(self) -> bool:
        """Whether the trained model retrieves worse on dev than its base, or than it did before its training."""
        return ended_below(self.base, self.before, self.after) is not None

    @property
    def beaten_by(self) -> str:
        """The model that a regression is worse than, in words: the base model wherever that is so."""
        return "its base" if ended_below(self.base, self.before, self.after) == "base" else "before its training"

    def summary(self) -> str:
        """Return dev recall@10 before and after in a line, the base's too where that is another, and a regression."""
        base = f" (base model {self.base[RECALL]:.4f})" if self.base[RECALL] != self.before[RECALL] else ""
        mark = "  REGRESSION" if self.regression else ""
        return f"dev recall@10 {self.before[RECALL]:.4f} -> {self.after[RECALL]:.4f}{base}{mark}"

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return asdict(self)


def read_result(work: Path) -> TrainingResult:
    """Read the summary that `fit` left in its work folder."""
    return TrainingResult(**json.loads((work / SUMMARY).read_text(encoding="utf-8")))


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end: the trainer writes `trainer_state.json` last."""
    for path in sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (OSError, ValueError):
            logger.warning("%s is incomplete and left out", path.name)
    return None


def prepare(work: Path, fingerprint: str) -> None:
    """Make the work folder; one that an unfinished training with another fingerprint left is emptied."""
    path = work / SETTINGS
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
            return
        logger.info("%s holds a training with other data or settings; starting anew", work)
    # What cannot be removed is an error: it would pass for this training's.
    for child in work.iterdir() if work.is_dir() else ():
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    atomic.write_json(path, {"fingerprint": fingerprint})


def worded(metric: str) -> str:
    """Return what a dev figure is called before people."""
    name = metric.removeprefix("dev_")
    return f"dev {name.removesuffix(MEAN)}" + (" (mean of sizes)" if name.endswith(MEAN) else "")
