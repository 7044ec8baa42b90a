"""Train a model: the library's trainer, with checkpoints that survive a kill and the best weights on dev kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling import atomic
from nestling.judgments.table import Judgments
from nestling.models.load import load_model, no_bars, save_model
from nestling.models.precision import bound_kernel_cache, choose_precision, keep_freed_memory
from nestling.training.callbacks import BestWeights, ClockCheckpoints, GiveBackMemory, Progress, interruptible
from nestling.training.dev import DevEvaluator
from nestling.training.fast.partial_embedding import train_active_rows
from nestling.training.fast.setup import forget_peak, peak_memory, settle
from nestling.training.inputs.adapter import adapter
from nestling.training.inputs.contrastive import contrastive
from nestling.training.inputs.scored import scored
from nestling.training.inputs.starts import STARTS, starts_as_base
from nestling.training.result import RECALL, SUMMARY, TrainingResult, last_checkpoint, prepare, read_result
from nestling.training.spec import TrainingInputs, TrainingSpec
from nestling.training.steps.context import FIGURES, MODEL, START, Context
from nestling.training.steps.guard import Figures, Guard, choose, recalls
from nestling.training.steps.merge_base import mixed
from nestling.training.trainer_adapter import arguments_for, trainer_for

BEFORE = "before.json"
"""Figures of the base and of the model before its first step."""
SHARES_OF_START = (0.5, 0.8)
"""Of the weights that a training began from, tried where dev is lower after it than before."""


@dataclass(frozen=True)
class Trainee:
    """What is trained, how it and its data are made of a train split, and what measures it, None for embeddings."""

    build: Callable[[Judgments, TrainingSpec], Any]
    inputs: Callable[[Judgments, TrainingSpec, Any], TrainingInputs]
    evaluator: Any = None
    load: Callable[[str], Any] = load_model

    @classmethod
    def of(cls, spec: TrainingSpec) -> Trainee:
        """Return what the settings of a spec train."""
        step = spec.settings.finetune
        inputs = scored if step.loss in ("cosine", "cosent") else contrastive
        return cls(STARTS[step.start], adapter if step.start == "adapter" else inputs)


def train(context: Context, trainee: Trainee) -> TrainingResult:
    """Train a model, as the first step of a variant or within another step.

    Embeddings that rank lower on dev after their training than before are moved back towards where they began
    (`never_below`).

    Raises:
        InputError: the settings do not fit the data or the model, or the loss diverged.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was saved.
    """
    spec, settings, work, say = context.spec, context.spec.settings, context.folder, context.say
    if (work / MODEL).is_dir() and (work / SUMMARY).is_file():
        return read_result(work)
    if context.name:
        say(f"the {context.name}:")
    bound_kernel_cache()
    forget_peak()
    model = trainee.build(context.train, spec)
    inputs = trainee.inputs(context.train, spec, model)
    if inputs.vocabulary is not None:
        train_active_rows(model, inputs.vocabulary)
    embeds = trainee.evaluator is None
    whole = context.evaluator if embeds else trainee.evaluator
    evaluator = DevEvaluator(whole.qrels, whole.dims, encoder=inputs.encoder) if inputs.encoder else whole

    precision = choose_precision(settings.precision)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    autocast, remark = settle(model, inputs.loss, precision, processes=processes)
    arguments = arguments_for(settings, precision.name if autocast else "fp32", len(inputs.examples), work)
    with context.main_first():
        if context.name:
            prepare(work, f"{context.train.fingerprint} {context.dev.fingerprint} {spec.fingerprint()}")
        if not (work / BEFORE).is_file():
            before = evaluator(model)
            base = before if not embeds or starts_as_base(spec) else whole(load_model(spec.base))
            atomic.write_json(work / BEFORE, {"base": base, "before": before})
        known = json.loads((work / BEFORE).read_text(encoding="utf-8"))
        if embeds and not (work / START).is_dir():
            with atomic.new_folder(work / START) as temporary:
                save_model(model, temporary)
    checkpoint = last_checkpoint(work)
    resumed_at = int(checkpoint.name.split("-")[1]) if checkpoint else None
    say(f"precision {precision.name}: {precision.reason}" + (f"; {remark}" if remark else ""))
    if checkpoint:
        say(f"an earlier call was interrupted; going on from its checkpoint at step {resumed_at}")
    progress = Progress(len(inputs.examples), evaluator.primary_metric, context.report, inputs.refresh)
    best = BestWeights(work / "best", evaluator.primary_metric, settings.patience)
    callbacks = [progress, best]
    if arguments.device.type == "cpu":
        keep_freed_memory()
        callbacks.append(GiveBackMemory())
    was_over = checkpoint is not None and best.was_over(checkpoint)
    if was_over:
        # Only the end was missing: another step would make other weights than those of an unbroken training.
        arguments.max_steps = resumed_at
    with interruptible() as interrupted, no_bars(), atomic.full_disk_named(work):
        callbacks.append(ClockCheckpoints(settings.checkpoint_seconds, interrupted))
        trainer = trainer_for(model, arguments, inputs, evaluator, callbacks)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupted.is_set():
            raise KeyboardInterrupt
    if was_over or best.is_over(trainer.state):
        epochs = f"{settings.patience} epochs" if settings.patience != 1 else "1 epoch"
        metric = best.metric.removeprefix("dev_")
        say(f"stopped after epoch {round(trainer.state.epoch or 0)}: no better dev {metric} for {epochs}")
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        guard = Guard(say)
        keep_best = settings.keep == "best"
        with atomic.new_folder(work / MODEL) as temporary:
            if keep_best:
                shutil.copytree(work / "best" / "model", temporary, dirs_exist_ok=True)
            else:
                save_model(model, temporary)
            # Trainings by the library's trainer or with the last weights kept stay as they are.
            if embeds and keep_best and settings.fast:
                figures = never_below(temporary, work / START, whole, guard)
                with atomic.new_file(work / FIGURES) as path:
                    np.save(path, figures)
        result = TrainingResult(
            examples=progress.n_examples,
            steps=trainer.state.global_step,
            seconds=progress.seconds,
            pairs_per_second=progress.examples / progress.seconds if progress.seconds else 0.0,
            resumed_at=resumed_at,
            **known,
            # Measured again, as the base was: in float32, where the trainer's own figures may be those of its autocast.
            after=whole(trainee.load(str(work / MODEL))),
            kept_step=int(best.figures["step"]) if keep_best else trainer.state.global_step,
            precision=precision.name,
            precision_reason=precision.reason,
            peak_memory=peak_memory(),
            history=[entry for entry in trainer.state.log_history if "loss" in entry or f"eval_{RECALL}" in entry],
            left_out=guard.left_out,
        )
        atomic.write_json(work / SUMMARY, result.as_dict())
        for path in [*work.glob("checkpoint-*"), work / "best", work / "eval"]:
            shutil.rmtree(path, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return read_result(work)


def never_below(folder: Path, start: Path, evaluator: DevEvaluator, guard: Guard) -> Figures:
    """Move a saved model, in place, back towards the weights that its training began from, where dev is lower for it.

    That is by the best of `SHARES_OF_START`, or all the way where dev is lower with any of those. Return dev figures of
    the model as it is then.
    """
    before, after = (evaluator.per_query(load_model(str(path))) for path in (start, folder))
    if choose([after], before) is not None:
        return after
    options = [evaluator.per_query(mixed(folder, start, share)) for share in SHARES_OF_START]
    place = choose(options, before)
    share, kept = (1.0, before) if place is None else (SHARES_OF_START[place], options[place])
    as_kept = "" if place is None else f", {recalls(kept)} as kept"
    guard.leave_out(
        f"{share:.0%} of what the training changed: dev recall@10 {recalls(before)} before it, "
        f"{recalls(after)} after it{as_kept}"
    )
    save_model(mixed(folder, start, share), folder)
    return kept
