"""The contrastive loss of a layer on vectors that do not change."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nestling.training.losses.all_gather import gathered
from nestling.training.losses.contrastive import ContrastiveLoss


class CachedEmbeddingsLoss(nn.Module):
    """Contrastive loss of a layer's output for a batch's cached vectors, which are looked up by number.

    Across processes the numbers' vectors are gathered *before* the layer, so that each process has the whole batch's
    gradient by itself, and all stay equal without an exchange of gradients.

    Args:
        contrastive: its model is the layer: features with `sentence_embedding` in and out.
        queries, documents: (n_queries, dim) and (n_documents, dim) float32.

    Inputs: no features, and labels as ContrastiveLoss has them.
    """

    queries: Tensor
    documents: Tensor

    def __init__(
        self, contrastive: ContrastiveLoss, queries: NDArray[np.float32], documents: NDArray[np.float32]
    ) -> None:
        super().__init__()
        self.contrastive = contrastive
        # Not saved with the model, moved to its device.
        self.register_buffer("queries", torch.from_numpy(queries), persistent=False)
        self.register_buffer("documents", torch.from_numpy(documents), persistent=False)

    def forward(self, features: list[dict[str, Tensor]], labels: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, a scalar, in float32 whatever the trainer's precision."""
        queries, documents, numbers = gathered(
            self.queries[labels["query"]], self.documents[labels["document"]], labels
        )
        with torch.autocast(device_type=queries.device.type, enabled=False):
            return self.contrastive.of_embeddings(self._transformed(queries), self._transformed(documents), numbers)

    def _transformed(self, vectors: Tensor) -> Tensor:
        transformed: Tensor = self.contrastive.model({"sentence_embedding": vectors})["sentence_embedding"]
        return transformed
