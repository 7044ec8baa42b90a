"""Train a model: the library's trainer, with checkpoints that survive a kill and the best weights on dev kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nestling import atomic
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import load_model, no_bars, save_model
from nestling.models.precision import Precision, bound_kernel_cache, choose_precision, keep_freed_memory
from nestling.training.fast.memory import forget_peak, peak_memory
from nestling.training.fast.setup import settle
from nestling.training.inputs.adapter import adapter
from nestling.training.inputs.contrastive import contrastive
from nestling.training.inputs.scored import cosent, cosine
from nestling.training.inputs.starts import STARTS, starts_as_base
from nestling.training.result import RECALL, SUMMARY, TrainingResult, last_checkpoint, prepare, read_result
from nestling.training.spec import TrainingInputs, TrainingSpec
from nestling.training.steps.context import MODEL, Context, StepResult
from nestling.training.steps.guard import Figures, Guard, choose, shown
from nestling.training.steps.merge_base import mixed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

    from nestling.training.callbacks import ProgressCallback
    from nestling.training.dev import DevEvaluator
    from nestling.training.distill.cross_encoder import RerankEvaluator

logger = logging.getLogger(__name__)

BEFORE, START = "before.json", "start"
"""Figures of the model before its first step, and its folder while the training lasts."""
SHARES_OF_START = (0.5, 0.8)
"""Of the weights that a training began from, tried where dev is lower after it than before."""


@dataclass(frozen=True)
class Trainee:
    """What is trained, and from what.

    Attributes:
        build: (train split, spec) -> the model before its first step.
        inputs: (train split, spec, model) -> data, loss and batches.
        evaluator: (qrels of dev, spec) -> what measures the model there; None for recall and MRR of its embeddings.
    """

    build: Callable[[Judgments, TrainingSpec], SentenceTransformer]
    inputs: Callable[[Judgments, TrainingSpec, SentenceTransformer], TrainingInputs]
    evaluator: Callable[[Qrels, TrainingSpec], RerankEvaluator] | None = None

    @classmethod
    def of(cls, spec: TrainingSpec) -> Trainee:
        """Return what the settings of a spec train."""
        step = spec.settings.finetune
        inputs = {"cosine": cosine, "cosent": cosent}.get(step.loss, contrastive)
        return cls(STARTS[step.start], adapter if step.start == "adapter" else inputs)


def finetune(context: Context, trainee: Trainee | None = None) -> StepResult:
    """Train a model, as the first step of a variant or within another step.

    Embeddings that rank lower on dev after their training than before are moved back towards where they began
    (`never_below`).
    """
    result = train(context, trainee or Trainee.of(context.spec))
    return StepResult(result.left_out, result.seconds, result.peak_memory)


def train(context: Context, trainee: Trainee) -> TrainingResult:
    """Do what `finetune` does, and return all that is known of the training.

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

    spec, work, say = context.spec, context.folder, context.say
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
    qrels = Qrels.from_judgments(context.dev, threshold=spec.threshold)
    whole = trainee.evaluator(qrels, spec) if trainee.evaluator else DevEvaluator(qrels, spec.matryoshka)
    evaluator = whole if trainee.evaluator else DevEvaluator(qrels, spec.matryoshka, encoder=inputs.encoder)

    precision = choose_precision(spec.settings.precision)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    autocast, remark = settle(model, inputs.loss, precision, processes=processes)
    arguments = arguments_for(spec.settings, precision.name if autocast else "fp32", len(inputs.examples), work)
    with context.main_first():
        if context.name:
            prepare(work, f"{context.train.fingerprint} {context.dev.fingerprint} {spec.fingerprint()}")
        if not (work / BEFORE).is_file():
            before = evaluator(model)
            base = before if trainee.evaluator is None and starts_as_base(spec) else whole.of_base(spec.base)
            atomic.write_json(work / BEFORE, {"base": base, "before": before})
        known = json.loads((work / BEFORE).read_text(encoding="utf-8"))
        if trainee.evaluator is None and not (work / START).is_dir():
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
    progress = ProgressCallback(len(inputs.examples), metric, context.report)
    best = BestWeights(work / "best", metric)
    patience = Patience(spec.settings.patience, metric) if spec.settings.patience else None
    stopped = patience is not None and checkpoint is not None and patience.was_over(checkpoint)
    if stopped:
        # Only the end was missing: another step would make other weights than those of an unbroken training.
        arguments.max_steps = resumed_at
    with interruptible() as interrupted, no_bars(), atomic.full_disk_named(work):
        clock = ClockCheckpoints(spec.settings.checkpoint_seconds, interrupted)
        callbacks = [progress, clock, best]
        if arguments.device.type == "cpu":
            callbacks.append(GiveBackMemory())
        if inputs.refresh:
            callbacks.append(Refresh(inputs.refresh))
        if patience is not None:
            callbacks.append(patience)
        trainer = trainer_for(model, arguments, inputs, evaluator, callbacks)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupted.is_set():
            raise KeyboardInterrupt
    if patience is not None and (stopped or patience.is_over(trainer.state)):
        say(patience.told(trainer.state))
    keep_best = spec.settings.keep == "best"
    kept_step = int(best.figures["step"]) if keep_best else int(trainer.state.global_step)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        guard = Guard(say)
        with atomic.new_folder(work / MODEL) as temporary:
            if keep_best:
                shutil.copytree(work / "best" / "model", temporary, dirs_exist_ok=True)
            else:
                save_model(model, temporary)
            # Trainings by the library's trainer or with the last weights kept stay as they are.
            if isinstance(whole, DevEvaluator) and keep_best and spec.settings.fast:
                never_below(temporary, work / START, whole, guard)
        # Measured again, as the base was: in float32, where the trainer's own figures may be those of its autocast.
        after = whole(load_model(str(work / MODEL)))
        result = _result(trainer, kept_step, known, after, progress, precision, resumed_at, guard.left_out)
        atomic.write_json(work / SUMMARY, result.as_dict())
        for path in [*work.glob("checkpoint-*"), work / "best", work / "eval"]:
            shutil.rmtree(path, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return read_result(work)


def never_below(folder: Path, start: Path, evaluator: DevEvaluator, guard: Guard) -> None:
    """Move a saved model, in place, back towards the weights that its training began from, where dev is lower for it.

    That is by the best of `SHARES_OF_START`, or all the way where dev is lower with any of those.
    """
    before, after = (evaluator.per_query(load_model(str(path))) for path in (start, folder))
    if choose([after], before) is not None:
        return
    options: list[Figures] = [evaluator.per_query(mixed(folder, start, share)) for share in SHARES_OF_START]
    place = choose(options, before)
    share = 1.0 if place is None else SHARES_OF_START[place]
    kept = "" if place is None else f", {shown(options[place])} as kept"
    guard.say_left_out(
        f"{share:.0%} of what the training changed: dev recall@10 {shown(before)} before it, {shown(after)} after it"
        + kept
    )
    save_model(mixed(folder, start, share), folder)


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
