"""Rotate a model's embedding, so that its prefixes rank more like the whole."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import WordEmbeddings

from nestling.config.training import Rotate
from nestling.models.load import load_model
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import add_rotation, rotated
from nestling.retrieval.trained_rotation import sampled, train_search_rotation
from nestling.training.dev import Vectors
from nestling.training.inputs.starts import texts
from nestling.training.steps.context import Context, StepResult
from nestling.training.steps.guard import Figures, Guard


def rotate(step: Rotate, context: Context) -> StepResult:
    """Rotate a model for its prefixes, where dev is not lower for it at any size."""

    def make(guard: Guard) -> SentenceTransformer | None:
        model = load_model(str(context.model))
        # The axes of a concatenation are trained as it is made.
        if len(context.sizes) == 1 or any(isinstance(module, WordEmbeddings) for module in model):
            return None
        dev = context.evaluator.vectors(model)
        plain = context.evaluator.of_vectors(dev, context.sizes)
        rotation, figures = trained(dev, embedded(model, context), plain, context, device=model.device)
        if guard.keep("the rotation", [figures], plain) is None:
            return None
        add_rotation(model, rotation)
        return model

    return context.finish(make)


def trained(
    dev: Vectors, fitted: Vectors, plain: Figures, context: Context, *, device: torch.device
) -> tuple[NDArray[np.float32], Figures]:
    """Train a rotation on `fitted`, vectors of the training side; return it with the figures of dev rotated by it."""
    rotation = train_search_rotation(*fitted, dims=context.sizes, device=device)
    figures = context.evaluator.of_vectors(rotated_sides(dev, rotation), context.sizes)
    # A rotation keeps the cosines at full size, but for rounding.
    figures[0] = plain[0]
    return rotation, figures


def rotated_sides(vectors: Vectors, axes: NDArray[np.float32]) -> Vectors:
    """Return queries and documents along these axes."""
    return rotated(vectors[0], axes), rotated(vectors[1], axes)


def embedded(model: SentenceTransformer, context: Context) -> Vectors:
    """Return the training queries and documents that a rotation is fitted on, always the same ones, embedded."""
    queries, documents = ([side[place] for place in sampled(len(side))] for side in texts(context.train))
    return embed(model, queries, kind="query"), embed(model, documents, kind="document")
