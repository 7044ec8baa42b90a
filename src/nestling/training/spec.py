"""A training spec: all that a variant's weights depend on. Training inputs: what the trainer is given for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestling.config.fingerprint import fingerprint
from nestling.config.training import STEPS, Step, TrainingSettings
from nestling.models.load import ModelSource

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn


@dataclass(frozen=True)
class TrainingSpec:
    """The specification of one training, without the data and the machine.

    Attributes:
        matryoshka: falling sizes of the prefixes, the full size first; empty for a plain training.
        weights: one for each of them; None for 1 each.
        threshold: pairs with a higher score are positives.
        cache: a folder for tokens and vectors that later trainings of the same texts can use.
    """

    base: ModelSource
    recipe: str
    settings: TrainingSettings
    threshold: float
    matryoshka: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    cache: Path | None = None

    def fingerprint(self, steps: Sequence[Step] = ()) -> str:
        """Return sixteen hex digits that change with all that the weights after some steps depend on, but the data."""
        # Stored prompts are in the base's fingerprint, but earlier versions trained without them.
        prompts = [self.base.prompts] if any(self.base.prompts.values()) else []
        of_steps = [[type(step).__name__, step.model_dump(mode="json")] for step in steps or self.settings.steps]
        general = self.settings.model_dump(mode="json", exclude={"checkpoint_seconds", "report_to", "preset", *STEPS})
        sizes = [self.matryoshka, self.weights]
        return fingerprint([self.base.fingerprint, *prompts, self.threshold, *sizes, general, *of_steps])


@dataclass(frozen=True)
class TrainingInputs:
    """The inputs of a trainer, as a recipe prepares them.

    Attributes:
        collator: rows -> tensors; None for the library's own.
        sampler: (batch size, seed=, processes=) -> batches of row numbers; None for the library's own.
        refresh: each called before an epoch with its number, in this order.
        vocabulary: (n,) integers, every token id that the examples hold; None if unknown.
        encoder: a faster `nestling.models.torch_encoder.embed` for the model in training.
    """

    examples: Dataset
    loss: nn.Module
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    sampler: Callable[..., Iterable[list[int]]] | None = None
    refresh: tuple[Callable[[int], None], ...] = ()
    vocabulary: np.ndarray | None = None
    encoder: Callable[..., np.ndarray] | None = None
