"""The models that a training starts from: the base's transformer, a table made of it, or a layer upon it."""

from __future__ import annotations

from itertools import chain

from sentence_transformers import SentenceTransformer

from nestling.judgments.table import Judgments
from nestling.models.load import load_model, no_bars
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import add_rotation, fit_search_rotation
from nestling.training.inputs.adapter import with_adapter
from nestling.training.inputs.static import build_static
from nestling.training.spec import TrainingSpec

ROTATED_BY = 2048
"""Queries, and documents, that a rotation before the training is fitted on, evenly spaced, at most."""


def texts(judgments: Judgments) -> tuple[list[str], list[str]]:
    """Return the distinct queries and documents of a table, each in the order of its first record."""
    queries, documents = (judgments.frame[side].unique(maintain_order=True).to_list() for side in ("query", "document"))
    return queries, documents


def transformer(judgments: Judgments, spec: TrainingSpec) -> SentenceTransformer:
    """Return the base model with the dropout and the length limit of the settings.

    Where `rotates_first`, a linear layer at its end rotates it by the queries' axes, and is trained with it: a prefix
    then starts with what matters most.
    """
    model = untrained(spec)
    if rotates_first(spec):
        queries, documents = (side[:: -(-len(side) // ROTATED_BY)] for side in texts(judgments))
        with no_bars():
            vectors = embed(model, queries, kind="query"), embed(model, documents, kind="document")
            add_rotation(model, fit_search_rotation(*vectors))
    return model


def rotates_first(spec: TrainingSpec) -> bool:
    """Return whether the base gets a rotation that is trained with it."""
    settings, given = spec.settings, spec.settings.finetune.rotate_first
    # A concatenation is rotated as a whole.
    return bool(spec.matryoshka) and (settings.fast and settings.concat_static is None if given is None else given)


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


STARTS = {
    "transformer": transformer,
    "static": lambda judgments, spec: build_static(spec.base, list(chain(*texts(judgments)))),
    "adapter": lambda _, spec: with_adapter(untrained(spec)),
}
"""By the setting `finetune.start`: (train split, spec) -> the model before its first step."""
