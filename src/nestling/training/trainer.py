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
from nestling.training.job import Job, Material
from nestling.training.precision import Precision, choose_precision, keep_freed_memory, settle
from nestling.training.recipes import find_recipe
from nestling.training.settings import TrainingSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    from nestling.training.callbacks import ProgressCallback, TrainingProgress

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Attributes:
        examples: how many the recipe made of the train split; each is seen once an epoch.
        seconds: spent in steps by this process, evaluations and checkpoints apart.
        pairs_per_second: at which it saw examples.
        resumed_at: the step that this process went on from; None if it began anew.
        before: dev figures of the base model in float32; `dev_recall@10`, `dev_mrr@10`.
        after: those of the weights that were kept, in float32 too.
        kept_step: the step of those weights.
        history: the trainer's log: loss and learning rate by step, dev figures by epoch in the training's precision.
        peak_memory: bytes of the process at most (of the GPU's memory where one was used), the base model included.
    """

    examples: int
    steps: int
    seconds: float
    pairs_per_second: float
    resumed_at: int | None
    before: dict[str, float]
    after: dict[str, float]
    kept_step: int
    precision: str
    precision_reason: str
    peak_memory: int
    history: list[dict[str, float]]

    @property
    def regression(self) -> bool:
        """Whether the trained model retrieves worse on dev than its base."""
        return self.after["dev_recall@10"] < self.before["dev_recall@10"]

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
        note: told, in a line, what was chosen and where a training goes on.

    Raises:
        InputError: the settings do not fit the data or the model, or the loss diverged.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was saved.
    """
    from nestling.training.active import train_active_rows
    from nestling.training.callbacks import BestWeights, ClockCheckpoints, ProgressCallback, Refresh, interruptible
    from nestling.training.dev import DevEvaluator

    recipe = find_recipe(job.recipe)
    model = recipe.build(train, job)
    check_matryoshka(model, job)
    material = recipe.prepare(train, job, model)
    if material.vocabulary is not None:
        train_active_rows(model, material.vocabulary)
    full = int(model.get_embedding_dimension() or 0)
    evaluator = DevEvaluator(Qrels.from_judgments(dev, threshold=job.threshold), job.matryoshka or (full,))

    precision = choose_precision(job.settings.precision)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    autocast, remark = settle(model, material.loss, precision, processes=processes)
    arguments = _arguments(job.settings, precision.name if autocast else "fp32", len(material.examples), work)
    with arguments.main_process_first(local=False):
        _prepare(work, f"{train.fingerprint} {dev.fingerprint} {job.fingerprint()}")
        before = _measured_before(work / "before.json", evaluator, model)
    checkpoint = last_checkpoint(work)
    resumed_at = int(checkpoint.name.split("-")[1]) if checkpoint else None
    if arguments.device.type == "cpu":
        keep_freed_memory()
    lines = [f"precision {precision.name}: {precision.reason}" + (f"; {remark}" if remark else "")]
    if checkpoint:
        lines.append(f"an earlier call was interrupted; going on from its checkpoint at step {resumed_at}")
    for line in lines:
        logger.info(line)
        if note:
            note(line)
    metric = evaluator.primary_metric
    progress = ProgressCallback(len(material.examples), metric, report or (lambda _: None))
    best = BestWeights(work / "best", metric)
    with interruptible() as interrupted, no_bars(), atomic.full_disk_named(work):
        clock = ClockCheckpoints(job.settings.checkpoint_seconds, interrupted)
        callbacks = [progress, clock, best]
        if material.refresh:
            callbacks.append(Refresh(material.refresh, work))
        trainer = _trainer(model, arguments, material, evaluator, callbacks)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupted.is_set():
            raise KeyboardInterrupt
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
    after = evaluator(load_model(str(output)))
    result = _result(trainer, kept_step, before, after, progress, precision, resumed_at)
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


def _measured_before(path: Path, evaluator: Any, model: SentenceTransformer) -> dict[str, float]:
    if path.is_file():
        figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return figures
    figures = evaluator(model)
    atomic.write_json(path, figures)
    return figures


def _arguments(
    settings: TrainingSettings, precision: str, n_examples: int, work: Path
) -> SentenceTransformerTrainingArguments:
    import torch
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    steps_an_epoch = max(1, n_examples // settings.batch_size)
    return SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        # The library takes bf16 on a CPU only where the CPU was asked for.
        use_cpu=not torch.cuda.is_available(),
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        batch_sampler=BatchSamplers.NO_DUPLICATES if settings.no_duplicates else BatchSamplers.BATCH_SAMPLER,
        eval_strategy="epoch",
        save_strategy="no",
        save_total_limit=2,
        logging_steps=max(1, steps_an_epoch // 20),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(settings.report_to) or "none",
    )


def _trainer(
    model: SentenceTransformer,
    arguments: SentenceTransformerTrainingArguments,
    material: Material,
    evaluator: Any,
    callbacks: list[Any],
) -> SentenceTransformerTrainer:
    from sentence_transformers import SentenceTransformerTrainer
    from transformers.trainer_callback import PrinterCallback

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Leave the library's model card out: it copies training texts, and costs time at every checkpoint."""

        def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
            """Take the recipe's batches where it has its own."""
            if material.sampler is None:
                return super().get_batch_sampler(dataset, batch_size, drop_last, **options)
            return material.sampler(batch_size, arguments.seed, arguments.world_size)

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=material.examples,
        loss=material.loss,
        data_collator=material.collator,
        evaluator=evaluator,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _result(
    trainer: SentenceTransformerTrainer,
    kept_step: int,
    before: dict[str, float],
    after: dict[str, float],
    progress: ProgressCallback,
    precision: Precision,
    resumed_at: int | None,
) -> TrainingResult:
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_dev_recall@10" in entry]
    return TrainingResult(
        examples=progress.n_examples,
        steps=trainer.state.max_steps,
        seconds=progress.seconds,
        pairs_per_second=progress.examples / progress.seconds if progress.seconds else 0.0,
        resumed_at=resumed_at,
        before=before,
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
