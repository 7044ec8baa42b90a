"""The library's trainer, set up for one training: its arguments, and where ours does otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.config.names import Kind
from nestling.config.training import TrainingSettings
from nestling.models.load import prompts_of
from nestling.training.spec import TrainingInputs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

COLUMNS: dict[str, Kind] = {"anchor": "query", "positive": "document", "document": "document"}
"""Columns of texts in the examples of recipes, and what they hold."""


def arguments_for(
    settings: TrainingSettings, precision: str, n_examples: int, work: Path
) -> SentenceTransformerTrainingArguments:
    """Return what the settings are called in the library.

    Args:
        precision: `fp32`, or what the trainer is to autocast to.
        n_examples: of an epoch; the loss is logged about twenty times in it.
        work: where checkpoints go.
    """
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
        # One process may prepare for hours what the others wait for.
        ddp_timeout=7 * 24 * 3600,
    )


def trainer_for(
    model: SentenceTransformer,
    arguments: SentenceTransformerTrainingArguments,
    inputs: TrainingInputs,
    evaluator: Any,
    callbacks: list[Any],
) -> SentenceTransformerTrainer:
    """Return a trainer that takes the recipe's batches, and writes no model card and no lines of its own.

    Where the library tokenises, it puts the model's prompts before queries and documents.
    """
    from sentence_transformers import SentenceTransformerTrainer
    from transformers.trainer_callback import PrinterCallback

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Leave the library's model card out: it copies training texts, and costs time at every checkpoint."""

        def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
            """Take the recipe's batches where it has its own."""
            if inputs.sampler is None:
                return super().get_batch_sampler(dataset, batch_size, drop_last, **options)
            return inputs.sampler(batch_size, arguments.seed, arguments.world_size)

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
