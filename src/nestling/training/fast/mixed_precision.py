"""A model's forward pass in another type than its weights', which are cast once and stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor


def embed_cast(
    model: SentenceTransformer,
    columns: Sequence[Mapping[str, Tensor]],
    dtype: torch.dtype,
    parameters: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """Return the embeddings of columns of texts, (n_texts, dim) float32: the transformer in `dtype`, the rest not.

    `parameters`, by name, stand in for the model's own, and get the gradients as they are.
    """
    weights = dict(model.named_parameters()) if parameters is None else parameters
    (first, transformer), *others = model.named_children()
    # Once for all columns: casting every weight, and the way back for gradients, costs as much as a short batch.
    cast = {name: value.to(dtype) for name, value in _of(weights, first).items()}
    embeddings = []
    for column in columns:
        states: dict[str, Any] = torch.func.functional_call(transformer, cast, (dict(column),))
        # Means over tokens and lengths of vectors in float32, as autocast has them.
        states["token_embeddings"] = states["token_embeddings"].float()
        for name, module in others:
            states = torch.func.functional_call(module, _of(weights, name), (states,))
        embeddings.append(states["sentence_embedding"])
    return embeddings


def _of(parameters: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    start = f"{module}."
    return {name.removeprefix(start): value for name, value in parameters.items() if name.startswith(start)}
