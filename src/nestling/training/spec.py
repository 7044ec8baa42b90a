"""A spec: all that a variant's weights depend on. Its inputs: what the trainer is given for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nestling.config.fingerprint import fingerprint
from nestling.config.training import STEPS, Step, TrainingSettings
from nestling.models.load import ModelSource

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

Refresh = Callable[[int], None]
"""Called with the number of an epoch before it."""


INVENTED = "invented.json"
"""Of a folder of candidates: the queries beside the raters'."""


@dataclass(frozen=True)
class TrainingSpec:
    """What one variant is trained from; all that the resulting weights depend on, but for the data and the machine.

    Attributes:
        matryoshka: falling sizes of the prefixes, the full size first; empty for a plain training.
        weights: one for each of them; None for 1 each.
        threshold: pairs with a higher score are positives.
        cache: a folder for tokens and vectors that later trainings of the same texts can use; None keeps none.
        candidates: a folder of what candidates.py writes, for those recipes that learn from it.
    """

    base: ModelSource
    recipe: str
    settings: TrainingSettings
    threshold: float
    matryoshka: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    cache: Path | None = None
    candidates: Path | None = None

    def candidate_file(self, side: Literal["train", "dev"]) -> Path:
        """Return where the candidates of a side of the split are, in a spec that has some."""
        assert self.candidates is not None
        return self.candidates / f"{side}.npz"

    def invented_queries(self) -> list[str]:
        """Return the queries that the candidates of the train side hold after those of the raters."""
        return list(json.loads(self.candidate_file("train").with_name(INVENTED).read_text(encoding="utf-8")))

    def fingerprint(self, steps: Sequence[Step] = ()) -> str:
        """Return sixteen hex digits that change with anything that the weights depend on, apart from the data.

        Args:
            steps: those that count; by default all that the settings ask for.
        """
        general = self.settings.model_dump(mode="json", exclude={"checkpoint_seconds", "report_to", "preset", *STEPS})
        parts: list[Any] = [
            self.base.fingerprint,
            # Those that the files store are in the base's fingerprint, and yet made no difference once.
            *([self.base.prompts] if any(self.base.prompts.values()) else []),
            self.threshold,
            self.matryoshka,
            self.weights,
            general,
            *([type(step).__name__, step.model_dump(mode="json")] for step in steps or self.settings.steps),
        ]
        if self.candidates is not None:
            parts += map(fingerprint, sorted(self.candidates.iterdir()))
        return fingerprint(parts)


@dataclass(frozen=True)
class TrainingInputs:
    """What a recipe hands to the trainer.

    Attributes:
        examples: the data set; one row is one example.
        loss: takes what the collator makes of a batch.
        collator: rows -> tensors; None for the library's own.
        sampler: (batch size, seed, processes) -> batches of row numbers; None for the library's own.
        refresh: each called before an epoch, in this order.
        vocabulary: (n,) integers, every token id that the examples hold; None if unknown.
        encoder: called as `nestling.models.torch_encoder.embed` is, and faster while this training lasts; None if there
            is none.
    """

    examples: Dataset
    loss: nn.Module
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    sampler: Callable[[int, int, int], Iterable[list[int]]] | None = None
    refresh: tuple[Refresh, ...] = ()
    vocabulary: np.ndarray | None = None
    encoder: Callable[..., np.ndarray] | None = None
