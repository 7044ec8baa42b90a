"""The context of a training step, and its output: a model where it changed something, and a result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.training_args import BaseTrainingArguments

from nestling import atomic
from nestling.judgments.table import Judgments
from nestling.models.load import load_model, save_model
from nestling.progress import TrainingProgress
from nestling.training.dev import DevEvaluator
from nestling.training.result import TrainingResult
from nestling.training.spec import TrainingSpec
from nestling.training.steps.guard import Figures, Guard

MODEL, RESULT = "model", "result.json"
"""In the folder of a step: its model where it changed something, and its result."""
START, FIGURES = "start", "figures.npy"
"""In the folder of a training: the model before its first optimizer step, and dev figures of the model after it."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step: a line for each change left out, seconds of optimizer steps, and bytes at most."""

    left_out: list[str]
    seconds: float = 0.0
    peak_memory: int = 0


@dataclass(frozen=True)
class Context:
    """The context of a training step.

    Attributes:
        evaluator: on dev, at the sizes that the variant is judged by.
        processes: the arguments of a training, for those of a distributed one.
        folder, model, start: the step's own folder, the model of the steps before it, and that before the first.
        say: takes, in a line each, what is chosen and left out.
        name: of a training within a step.
    """

    train: Judgments
    dev: Judgments
    spec: TrainingSpec
    evaluator: DevEvaluator
    processes: BaseTrainingArguments
    folder: Path
    model: Path
    start: Path
    say: Callable[[str], None]
    report: Callable[[TrainingProgress], None]
    name: str = ""

    def main_first(self) -> AbstractContextManager[Any]:
        """Return a context that the main process passes first, while the others wait."""
        first: AbstractContextManager[Any] = self.processes.main_process_first(local=False)
        return first

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The sizes to judge by, the full one first: the spec's, else full, 1/2, 1/4, 1/8."""
        full = int(load_model(str(self.model)).get_embedding_dimension() or 0)
        return self.spec.matryoshka or tuple(size for size in (full, full // 2, full // 4, full // 8) if size)

    def figures(self) -> Figures:
        """Return the dev figures of the model that the steps before made, measured anew only where none are stored."""
        path = self.model.with_name(FIGURES)
        return np.load(path) if path.is_file() else self.evaluator.per_query(load_model(str(self.model)))

    def aside(self, name: str, spec: TrainingSpec) -> Context:
        """Return the context of a training within this step, in a folder of its own, that reports no dev figures.

        They would be taken for the variant's, which a search prunes by.
        """
        return replace(
            self,
            spec=spec,
            evaluator=DevEvaluator(self.evaluator.qrels, spec.matryoshka),
            folder=self.folder / name,
            name=name,
            report=lambda progress: self.report(replace(progress, dev=None)),
        )

    def finish(
        self, make: Callable[[Guard], SentenceTransformer | Path | None], **trainings: TrainingResult
    ) -> StepResult:
        """Make the step's model in the main process, where no earlier call did, and return the step's result.

        `make` returns the model, a folder of one, or None where it stays as it was; `trainings` are within the step.
        """
        with self.main_first():
            if not (self.folder / RESULT).is_file():
                guard = Guard(self.say)
                model = make(guard)
                if model is not None:
                    with atomic.new_folder(self.folder / MODEL) as temporary:
                        if isinstance(model, Path):
                            shutil.copytree(model, temporary, dirs_exist_ok=True)
                        else:
                            save_model(model, temporary)
                result = StepResult(
                    [f"the {name}: {line}" for name, each in trainings.items() for line in each.left_out]
                    + guard.left_out,
                    sum(each.seconds for each in trainings.values()),
                    max((each.peak_memory for each in trainings.values()), default=0),
                )
                atomic.write_json(self.folder / RESULT, asdict(result))
        return StepResult(**json.loads((self.folder / RESULT).read_text(encoding="utf-8")))
