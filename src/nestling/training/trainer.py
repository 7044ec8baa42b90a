"""Fit one variant: its steps one after the other, each in a folder of its own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nestling import atomic
from nestling.config.training import STEPS, ConcatStatic, Distill, Finetune, MergeBase, Rotate
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import load_model
from nestling.progress import TrainingProgress
from nestling.training.dev import DevEvaluator
from nestling.training.result import SUMMARY, TrainingResult, prepare, read_result
from nestling.training.spec import TrainingSpec
from nestling.training.steps import finetune
from nestling.training.steps.concat_static import concat_static
from nestling.training.steps.context import MODEL, START, Context, StepResult
from nestling.training.steps.distill import check_transformer, distill
from nestling.training.steps.merge_base import merge_base
from nestling.training.steps.rotate import rotate
from nestling.training.trainer_adapter import arguments_for

logger = logging.getLogger(__name__)

RUNNERS: dict[type, Callable[[Any, Context], StepResult | TrainingResult]] = {
    Finetune: lambda _, context: finetune.train(context, finetune.Trainee.of(context.spec)),
    MergeBase: merge_base,
    Distill: distill,
    Rotate: rotate,
    ConcatStatic: concat_static,
}


def fit(
    train: Judgments,
    dev: Judgments,
    spec: TrainingSpec,
    *,
    output: Path,
    work: Path,
    report: Callable[[TrainingProgress], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Train a variant and save it as a plain SentenceTransformer folder.

    Args:
        dev: chooses the weights that are kept.
        output: the model's folder; it appears whole or not at all.
        work: a folder for each step, and in the end the summary. A call with the same data and settings goes on where
            the last one was interrupted.
        note: takes, in a line each, what was chosen, where a training goes on, and why it ends early.

    Returns:
        the first step's result, but for `after`, which is the whole's, and for seconds and memory, which count all.

    Raises:
        InputError, KeyboardInterrupt: see `finetune.train`.
    """

    def say(line: str) -> None:
        logger.info(line)
        if note:
            note(line)

    steps = spec.settings.steps
    if spec.matryoshka:
        full, largest = int(load_model(spec.base).get_embedding_dimension() or 0), spec.matryoshka[0]
        if largest > full:
            raise InputError(f"matryoshka size {largest} is larger than the {full} dims of {spec.base.name!r}")
    if any(isinstance(step, Distill) for step in steps):
        check_transformer(spec.base)
    evaluator = DevEvaluator(Qrels.from_judgments(dev, threshold=spec.threshold), spec.matryoshka)
    processes = arguments_for(spec.settings, "fp32", 1, work)
    names = {kind: name for name, kind in STEPS.items()}
    first = work / names[type(steps[0])]
    context = Context(
        train, dev, spec, evaluator, processes, first, first / MODEL, first / START, say, report or (lambda _: None)
    )
    left_out: list[str] = []
    seconds, peak_memory = 0.0, 0
    for number, step in enumerate(steps, 1):
        context = replace(context, folder=work / names[type(step)])
        with context.main_first():
            prepare(context.folder, f"{train.fingerprint} {dev.fingerprint} {spec.fingerprint(steps[:number])}")
        result = RUNNERS[type(step)](step, context)
        left_out += result.left_out
        seconds, peak_memory = seconds + result.seconds, max(peak_memory, result.peak_memory)
        if (context.folder / MODEL).is_dir():
            context = replace(context, model=context.folder / MODEL)
    with context.main_first():
        if processes.process_index == 0:
            with atomic.new_folder(output) as temporary:
                shutil.copytree(context.model, temporary, dirs_exist_ok=True)
            whole = read_result(first)
            if context.model != first / MODEL:
                whole = replace(whole, after=evaluator(load_model(str(output))))
            whole = replace(whole, seconds=seconds, peak_memory=peak_memory, left_out=left_out)
            if whole.regression:
                logger.warning("%s: %s", output.name, whole.summary())
            atomic.write_json(work / SUMMARY, whole.as_dict())
            clear(work)
    return read_result(work)


def clear(work: Path) -> None:
    """Remove the folders of the steps, once the model is saved."""
    for name in STEPS:
        shutil.rmtree(work / name, ignore_errors=True)
