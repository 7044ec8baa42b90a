"""A model's forward pass in another type than its weights', which are cast once and stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def embed_cast(model: SentenceTransformer, columns: Sequence[dict[str, Tensor]], dtype: torch.dtype) -> list[Tensor]:
    """Embed columns of texts, the transformer in `dtype` and what follows it in float32.

    Args:
        columns: of each, `input_ids` and `attention_mask`, (n_texts, width).

    Returns:
        for each column its embeddings, (n_texts, dim) float32; gradients go to the model's own weights.
    """
    transformer, *others = model
    # Once for all columns: casting every weight, and the way back for gradients, costs as much as a short batch.
    cast = {name: value.to(dtype) for name, value in transformer.named_parameters()}
    embeddings = []
    for column in columns:
        states = torch.func.functional_call(transformer, cast, (dict(column),))
        # Means over tokens and lengths of vectors in float32, as autocast has them.
        states["token_embeddings"] = states["token_embeddings"].float()
        for module in others:
            states = module(states)
        embeddings.append(states["sentence_embedding"])
    return embeddings
