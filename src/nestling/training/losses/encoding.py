"""Base class of our own losses: how they run the model over the columns of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nestling.training.fast.cuda_graphs import GraphEncoder
from nestling.training.fast.mixed_precision import embed_cast
from nestling.training.fast.unpadded import embed_unpadded

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class EncodingLoss(nn.Module):
    """A loss that runs the model itself, by the fastest way that the machine allows (`fast.setup.settle`)."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype: torch.dtype | None = None
        """Run the transformer in this type, its weights cast once; None leaves types to the trainer."""
        self.unpadded = False
        """Run it over all texts of a batch in one row (unpadded.py); needs a `compute_dtype`."""
        self.graphs: GraphEncoder | None = None
        """Runs it as CUDA graphs (cuda_graphs.py); its type must be `compute_dtype`."""

    def embedded(self, columns: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Return for each column of texts what the model makes of it, (n_texts, dim)."""
        if self.compute_dtype is None:
            return [self.model(dict(column))["sentence_embedding"] for column in columns]
        if self.unpadded:
            return embed_unpadded(self.model, columns, self.compute_dtype)
        return (self.graphs or partial(embed_cast, self.model, dtype=self.compute_dtype))(columns)
