"""The models that a training starts from: the base's transformer, a table made of it, or a layer upon it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestling.judgments.table import Judgments
from nestling.models.load import load_model, no_bars
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import add_rotation, fit_search_rotation
from nestling.training.inputs.adapter import with_adapter
from nestling.training.inputs.static import build_static
from nestling.training.spec import TrainingSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROTATED_BY = 2048
"""Queries, and documents, that a rotation before the training is fitted on, evenly spaced, at most."""


def texts(judgments: Judgments) -> tuple[list[str], list[str]]:
    """Return the distinct queries and documents of a table, each in the order of its first record.

    Always in the same order: which of them are sampled depends on it.
    """
    queries, documents = (judgments.frame[side].unique(maintain_order=True).to_list() for side in ("query", "document"))
    return queries, documents


def transformer(judgments: Judgments, spec: TrainingSpec) -> SentenceTransformer:
    """Return the base model with the dropout and the length limit of the settings.

    Where prefixes are trained and unless `rotate_first` says otherwise, a linear layer at its end rotates it by the
    queries' axes, and is trained with it: a prefix then starts with what matters most.
    """
    model = untrained(spec)
    if rotates_first(spec):
        queries, documents = (some[:: -(-len(some) // ROTATED_BY)] for some in texts(judgments))
        with no_bars():
            add_rotation(
                model,
                fit_search_rotation(embed(model, queries, kind="query"), embed(model, documents, kind="document")),
            )
    return model


def rotates_first(spec: TrainingSpec) -> bool:
    """Return whether the base gets a rotation that is trained with it."""
    settings = spec.settings
    wanted = settings.finetune.rotate_first
    # A concatenation is rotated as a whole.
    return bool(spec.matryoshka) and (settings.fast and settings.concat_static is None if wanted is None else wanted)


def starts_as_base(spec: TrainingSpec) -> bool:
    """Return whether the untrained model embeds as the base does when it is loaded by itself."""
    settings = spec.settings
    return settings.finetune.start == "transformer" and settings.max_seq_length is None and not rotates_first(spec)


def untrained(spec: TrainingSpec) -> SentenceTransformer:
    """Return the base model with the dropout and the length limit of the settings."""
    settings = spec.settings
    model = load_model(spec.base, attention_dropout=settings.attention_dropout, hidden_dropout=settings.hidden_dropout)
    if settings.max_seq_length:
        model.max_seq_length = settings.max_seq_length
    return model


def word_pieces(judgments: Judgments, spec: TrainingSpec) -> SentenceTransformer:
    """Return a table of word-piece vectors made of the base model and the training texts."""
    queries, documents = texts(judgments)
    return build_static(spec.base, [*queries, *documents])


def frozen_base(judgments: Judgments, spec: TrainingSpec) -> SentenceTransformer:
    """Return the base model with all its weights frozen, and a linear layer on top to train."""
    return with_adapter(untrained(spec))


STARTS = {"transformer": transformer, "static": word_pieces, "adapter": frozen_base}
"""By the setting `finetune.start`."""
