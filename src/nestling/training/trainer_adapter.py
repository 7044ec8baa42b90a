"""The library's trainers, set up for one training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.base.training_args import BaseTrainingArguments
from transformers.trainer_callback import PrinterCallback

from nestling.config.names import Kind
from nestling.config.training import TrainingSettings
from nestling.models.load import prompts_of
from nestling.training.spec import TrainingInputs

COLUMNS: dict[str, Kind] = {"anchor": "query", "positive": "document", "document": "document"}
"""Columns of texts in the examples of recipes, and what they hold."""


def arguments_for(settings: TrainingSettings, precision: str, n_examples: int, work: Path) -> BaseTrainingArguments:
    """Return what the settings are called in the library; `precision` is `fp32`, or what to autocast to."""
    return BaseTrainingArguments(
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
        logging_steps=max(1, n_examples // settings.batch_size // 20),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(settings.report_to) or "none",
        # One process may prepare for hours what the others wait for.
        ddp_timeout=7 * 24 * 3600,
    )


def trainer_for(
    model: SentenceTransformer | CrossEncoder,
    arguments: BaseTrainingArguments,
    inputs: TrainingInputs,
    evaluator: Any,
    callbacks: list[Any],
) -> Any:
    """Return the library's trainer of such a model, with the recipe's batches, without model card and printed lines.

    Where the library tokenises, it puts the model's prompts before queries and documents.
    """
    library: Any = CrossEncoderTrainer if isinstance(model, CrossEncoder) else SentenceTransformerTrainer

    class Trainer(library):  # type: ignore[misc]
        training_args_class = BaseTrainingArguments

        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Leave the library's model card out: it copies training texts, and costs time at every checkpoint."""

        def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
            """Take the recipe's batches where it has its own."""
            if inputs.sampler is None:
                return super().get_batch_sampler(dataset, batch_size, drop_last, **options)
            return inputs.sampler(batch_size, seed=arguments.seed, processes=arguments.world_size)

    prompts = prompts_of(model)
    arguments.prompts = {column: prompts[kind] for column, kind in COLUMNS.items() if prompts[kind]} or None
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=inputs.examples,
        loss=inputs.loss,
        data_collator=inputs.collator,
        evaluator=evaluator,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
