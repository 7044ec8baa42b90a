"""Fit one variant: the library's trainer, with checkpoints that survive a kill and the best weights on dev kept."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling import atomic
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models import load_model, no_bars
from nestling.training.job import Job
from nestling.training.precision import Precision, choose_precision, keep_freed_memory, settle
from nestling.training.recipes import find_recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

    from nestling.training.callbacks import ProgressCallback, TrainingProgress

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
SUMMARY = "summary.json"
BEFORE = "before.json"
RECALL = "dev_recall@10"


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Attributes:
        examples: how many the recipe made of the train split; each is seen once an epoch.
        steps: optimizer steps, those before an interruption included.
        seconds: spent in steps by this process, evaluations and checkpoints apart.
        pairs_per_second: at which it saw examples.
        resumed_at: the step that this process went on from; None if it began anew.
        base: dev figures of the base model as it is loaded by itself, in float32; `dev_recall@10`, `dev_mrr@10`.
        before: those of what the recipe made of it, before the first step; the same where it made nothing.
        after: those of the weights that were kept.
        kept_step: the step of those weights.
        history: the trainer's log: loss and learning rate by step, dev figures by epoch in the training's precision.
        peak_memory: bytes of the process at most (of the GPU's memory where one was used), the base model included.
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

    @property
    def regression(self) -> bool:
        """Whether the trained model retrieves worse on dev than its base, or than it did before its training."""
        return self.after[RECALL] < max(self.base[RECALL], self.before[RECALL])

    @property
    def beaten_by(self) -> str:
        """What a regression is worse than, in words: the base model wherever that is so."""
        return "its base" if self.after[RECALL] < self.base[RECALL] else "before its training"

    def told(self) -> str:
        """Return dev recall@10 before and after in a line, the base's too where that is another, and a regression."""
        base = f" (base model {self.base[RECALL]:.4f})" if self.base[RECALL] != self.before[RECALL] else ""
        mark = "  REGRESSION" if self.regression else ""
        return f"dev recall@10 {self.before[RECALL]:.4f} -> {self.after[RECALL]:.4f}{base}{mark}"

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return asdict(self)


def fit(
    train: Judgments,
    dev: Judgments,
    job: Job,
    *,
    output: Path,
    work: Path,
    report: Callable[[TrainingProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train a variant and save it as a plain SentenceTransformer folder.

    Args:
        train, dev: the sides of a split; dev chooses the weights that are kept.
        output: the model's folder; it appears whole or not at all.
        work: where checkpoints lie while the training runs; a call with the same data and settings goes on from the
            last one. Holds the summary afterwards.
        report: told of every step.
        note: told, in a line each, what was chosen, where a training goes on, and why it ends early.

    Raises:
        InputError: the settings do not fit the data or the model, or the loss diverged.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was saved.
    """
    from nestling.training.active import train_active_rows
    from nestling.training.callbacks import (
        BestWeights,
        ClockCheckpoints,
        Patience,
        ProgressCallback,
        Refresh,
        interruptible,
    )
    from nestling.training.dev import DevEvaluator
    from nestling.training.library import arguments_for, trainer_for

    def say(line: str) -> None:
        logger.info(line)
        if note:
            note(line)

    recipe = find_recipe(job.recipe)
    model = recipe.build(train, job)
    check_matryoshka(model, job)
    material = recipe.prepare(train, job, model)
    if material.vocabulary is not None:
        train_active_rows(model, material.vocabulary)
    full = int(model.get_embedding_dimension() or 0)
    qrels, dims = Qrels.from_judgments(dev, threshold=job.threshold), job.matryoshka or (full,)
    whole, evaluator = DevEvaluator(qrels, dims), DevEvaluator(qrels, dims, encoder=material.encoder)

    precision = choose_precision(job.settings.precision)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    autocast, remark = settle(model, material.loss, precision, processes=processes)
    arguments = arguments_for(job.settings, precision.name if autocast else "fp32", len(material.examples), work)
    with arguments.main_process_first(local=False):
        _prepare(work, f"{train.fingerprint} {dev.fingerprint} {job.fingerprint()}")
        if not (work / BEFORE).is_file():
            before = evaluator(model)
            base = before if recipe.starts_as_base(job) else whole(load_model(job.base))
            atomic.write_json(work / BEFORE, {"base": base, "before": before})
        known = json.loads((work / BEFORE).read_text(encoding="utf-8"))
    checkpoint = last_checkpoint(work)
    resumed_at = int(checkpoint.name.split("-")[1]) if checkpoint else None
    if arguments.device.type == "cpu":
        keep_freed_memory()
    say(f"precision {precision.name}: {precision.reason}" + (f"; {remark}" if remark else ""))
    if checkpoint:
        say(f"an earlier call was interrupted; going on from its checkpoint at step {resumed_at}")
    metric = evaluator.primary_metric
    progress = ProgressCallback(len(material.examples), metric, report or (lambda _: None))
    best = BestWeights(work / "best", metric)
    patience = Patience(job.settings.patience, metric) if job.settings.patience else None
    stopped = patience is not None and checkpoint is not None and patience.was_over(checkpoint)
    if stopped:
        # Only the end was missing: another step would make other weights than those of an unbroken training.
        arguments.max_steps = resumed_at
    with interruptible() as interrupted, no_bars(), atomic.full_disk_named(work):
        clock = ClockCheckpoints(job.settings.checkpoint_seconds, interrupted)
        callbacks = [progress, clock, best]
        if material.refresh:
            callbacks.append(Refresh(material.refresh, work))
        if patience is not None:
            callbacks.append(patience)
        trainer = trainer_for(model, arguments, material, evaluator, callbacks)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupted.is_set():
            raise KeyboardInterrupt
    if patience is not None and (stopped or patience.is_over(trainer.state)):
        say(patience.told(trainer.state))
    keep_best = job.settings.keep == "best"
    kept_step = int(best.figures["step"]) if keep_best else int(trainer.state.global_step)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        with atomic.new_folder(output) as temporary:
            if keep_best:
                shutil.copytree(work / "best" / "model", temporary, dirs_exist_ok=True)
            else:
                with no_bars():
                    model.save_pretrained(str(temporary), create_model_card=False)
    trainer.accelerator.wait_for_everyone()
    # Measured again, as the base was: in float32, where the trainer's own figures are those of its autocast.
    after = whole(load_model(str(output)))
    result = _result(trainer, kept_step, known, after, progress, precision, resumed_at)
    if result.regression:
        logger.warning("%s: %s", output.name, result.told())
    if trainer.is_world_process_zero():
        atomic.write_json(work / SUMMARY, result.as_dict())
        for path in [*work.glob("checkpoint-*"), work / "best", work / "eval"]:
            shutil.rmtree(path, ignore_errors=True)
        for path in work.glob("mined-*.npz"):
            path.unlink()
    return result


def check_matryoshka(model: SentenceTransformer, job: Job) -> None:
    """Raise InputError if a prefix is larger than the model's embedding."""
    full = int(model.get_embedding_dimension() or 0)
    if job.matryoshka and job.matryoshka[0] > full:
        raise InputError(f"matryoshka size {job.matryoshka[0]} is larger than the {full} dims of {job.base.name!r}")


def last_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None.

    The trainer writes `trainer_state.json` last, so one that reads as JSON vouches for the rest.
    """
    found = []
    for path in work.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(path.name.split("-")[1]), path))
        except (OSError, ValueError):
            logger.warning("%s is incomplete and left out", path.name)
    return max(found)[1] if found else None


def read_result(work: Path) -> TrainingResult:
    """Read the summary that `fit` left in its work folder."""
    return TrainingResult(**json.loads((work / SUMMARY).read_text(encoding="utf-8")))


def _prepare(work: Path, fingerprint: str) -> None:
    """Make the work folder; one that an unfinished training with other data or settings left is emptied."""
    path = work / SETTINGS
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("fingerprint") == fingerprint:
        return
    if work.exists():
        logger.info("%s holds a training with other data or settings; starting anew", work)
        shutil.rmtree(work)
    atomic.write_json(path, {"fingerprint": fingerprint})


def _result(
    trainer: SentenceTransformerTrainer,
    kept_step: int,
    known: dict[str, dict[str, float]],
    after: dict[str, float],
    progress: ProgressCallback,
    precision: Precision,
    resumed_at: int | None,
) -> TrainingResult:
    history = [entry for entry in trainer.state.log_history if "loss" in entry or f"eval_{RECALL}" in entry]
    return TrainingResult(
        examples=progress.n_examples,
        steps=trainer.state.global_step,
        seconds=progress.seconds,
        pairs_per_second=progress.examples / progress.seconds if progress.seconds else 0.0,
        resumed_at=resumed_at,
        **known,
        after=after,
        kept_step=kept_step,
        precision=precision.name,
        precision_reason=precision.reason,
        peak_memory=_peak_memory(),
        history=history,
    )


def _peak_memory() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
