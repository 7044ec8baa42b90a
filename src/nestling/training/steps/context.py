"""What each step of a training is given, and what it leaves: a model where it changed something, and a result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling import atomic
from nestling.judgments.table import Judgments
from nestling.models.load import load_model, save_model
from nestling.training.result import TrainingResult
from nestling.training.spec import TrainingSpec
from nestling.training.steps.guard import Guard

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    from nestling.progress import TrainingProgress
    from nestling.training.dev import DevEvaluator

MODEL, RESULT = "model", "result.json"


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        left_out: what was not kept, as dev was lower for it, a line each.
        seconds: spent in optimizer steps.
        peak_memory: bytes at most, while it trained.
    """

    left_out: list[str]
    seconds: float = 0.0
    peak_memory: int = 0

    @classmethod
    def read(cls, folder: Path) -> StepResult:
        """Read what a step left in its folder."""
        return cls(**json.loads((folder / RESULT).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Attributes:
        train, dev: the sides of a split.
        evaluator: on dev, at the sizes that the variant is judged by.
        processes: the arguments of a training, for those of a distributed one.
        folder: the step's own.
        model: what the steps before it made.
        start: the model before its first optimizer step.
        say: told, in a line each, what is chosen and left out.
        report: told of every optimizer step.
        name: of a training within a step.
    """

    train: Judgments
    dev: Judgments
    spec: TrainingSpec
    evaluator: DevEvaluator
    processes: SentenceTransformerTrainingArguments
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

    def aside(self, name: str, spec: TrainingSpec) -> Context:
        """Return the context of a training within this step, in a folder of its own, that tells no dev figures.

        They would be taken for the variant's, which a search prunes by.
        """
        return replace(
            self,
            spec=spec,
            folder=self.folder / name,
            name=name,
            report=lambda progress: self.report(replace(progress, dev=None)),
        )

    def finish(
        self,
        make: Callable[[Guard], SentenceTransformer | Path | None],
        trainings: Sequence[tuple[str, TrainingResult]] = (),
    ) -> StepResult:
        """Make the step's model in the main process, where no earlier call did, and return the step's result.

        Args:
            make: returns the model, a folder of one, or None where it stays as it was.
            trainings: those within this step, with their names.
        """
        with self.main_first():
            if not (self.folder / RESULT).is_file():
                guard = Guard(self.say)
                made = make(guard)
                if made is not None:
                    with atomic.new_folder(self.folder / MODEL) as temporary:
                        if isinstance(made, Path):
                            shutil.copytree(made, temporary, dirs_exist_ok=True)
                        else:
                            save_model(made, temporary)
                result = StepResult(
                    [*(f"the {name}: {line}" for name, each in trainings for line in each.left_out), *guard.left_out],
                    sum(each.seconds for _, each in trainings),
                    max((each.peak_memory for _, each in trainings), default=0),
                )
                atomic.write_json(self.folder / RESULT, asdict(result))
        return StepResult.read(self.folder)
