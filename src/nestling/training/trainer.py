"""Fit one variant: the library's trainer, with checkpoints that survive a kill and the best weights on dev kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nestling import atomic
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import load_model, no_bars, save_model
from nestling.models.precision import Precision, bound_kernel_cache, choose_precision, keep_freed_memory
from nestling.training.fast.memory import forget_peak, peak_memory
from nestling.training.fast.setup import settle
from nestling.training.recipes.registry import find_recipe
from nestling.training.result import (
    BEFORE,
    RECALL,
    START,
    SUMMARY,
    TrainingResult,
    last_checkpoint,
    prepare,
    read_result,
)
from nestling.training.spec import Job
from nestling.training.steps.finish import finish, fit_parts
from nestling.training.steps.guard import Guard

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

    from nestling.progress import TrainingProgress
    from nestling.training.callbacks import ProgressCallback

logger = logging.getLogger(__name__)


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
    from nestling.training.callbacks import (
        BestWeights,
        ClockCheckpoints,
        GiveBackMemory,
        Patience,
        ProgressCallback,
        Refresh,
        interruptible,
    )
    from nestling.training.dev import DevEvaluator
    from nestling.training.fast.partial_embedding import train_active_rows
    from nestling.training.trainer_adapter import arguments_for, trainer_for

    def say(line: str) -> None:
        logger.info(line)
        if note:
            note(line)

    recipe = find_recipe(job.recipe)
    if (job.settings.lexical and recipe.trains_transformer) or recipe.is_taught(job):
        return fit_parts(fit, train, dev, job, output=output, work=work, report=report, note=note)
    bound_kernel_cache()
    forget_peak()
    model = recipe.build(train, job)
    check_matryoshka(model, job)
    material = recipe.prepare(train, job, model)
    if material.vocabulary is not None:
        train_active_rows(model, material.vocabulary)
    qrels = Qrels.from_judgments(dev, threshold=job.threshold)
    whole = recipe.evaluator(qrels, job) if recipe.evaluator else DevEvaluator(qrels, job.matryoshka)
    evaluator = whole if recipe.evaluator else DevEvaluator(qrels, job.matryoshka, encoder=material.encoder)

    precision = choose_precision(job.settings.precision)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    autocast, remark = settle(model, material.loss, precision, processes=processes)
    arguments = arguments_for(job.settings, precision.name if autocast else "fp32", len(material.examples), work)
    with arguments.main_process_first(local=False):
        prepare(work, f"{train.fingerprint} {dev.fingerprint} {job.fingerprint()}", keep=job.cache)
        if not (work / BEFORE).is_file():
            before = evaluator(model)
            base = before if recipe.starts_as_base(job) else whole.of_base(job.base)
            atomic.write_json(work / BEFORE, {"base": base, "before": before})
        known = json.loads((work / BEFORE).read_text(encoding="utf-8"))
        if recipe.evaluator is None and not (work / START).is_dir():
            with atomic.new_folder(work / START) as temporary:
                save_model(model, temporary)
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
        if arguments.device.type == "cpu":
            callbacks.append(GiveBackMemory())
        if material.refresh:
            callbacks.append(Refresh(material.refresh))
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
                save_model(model, temporary)
            guard = Guard(say)
            if isinstance(whole, DevEvaluator):
                finish(temporary, work / START, train, job, whole, guard)
        # Measured again, as the base was: in float32, where the trainer's own figures may be those of its autocast.
        after = whole(load_model(str(output)))
        result = _result(trainer, kept_step, known, after, progress, precision, resumed_at, guard.left_out)
        if result.regression and recipe.evaluator is None:
            logger.warning("%s: %s", output.name, result.told())
        atomic.write_json(work / SUMMARY, result.as_dict())
        for path in [*work.glob("checkpoint-*"), work / "best", work / "eval", work / START]:
            shutil.rmtree(path, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return read_result(work)


def check_matryoshka(model: SentenceTransformer, job: Job) -> None:
    """Raise InputError if a prefix is larger than the model's embedding."""
    full = int(model.get_embedding_dimension() or 0)
    if job.matryoshka and job.matryoshka[0] > full:
        raise InputError(f"matryoshka size {job.matryoshka[0]} is larger than the {full} dims of {job.base.name!r}")


def _result(
    trainer: SentenceTransformerTrainer,
    kept_step: int,
    known: dict[str, dict[str, float]],
    after: dict[str, float],
    progress: ProgressCallback,
    precision: Precision,
    resumed_at: int | None,
    left_out: list[str],
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
        peak_memory=peak_memory(),
        history=history,
        left_out=left_out,
    )
