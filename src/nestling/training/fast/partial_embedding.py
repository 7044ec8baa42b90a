"""Train only those rows of a word-embedding table that the training texts can reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn


class ActiveEmbedding(nn.Embedding):
    """A table of which only `rows`, ascending, are trained; saved and loaded as the whole table.

    Adam never moves a row that has had no gradient, so the outcome is that of training the whole table (short of weight
    decay, which here leaves untrained rows alone), without the gradient and moments of words that no text holds.
    """

    def __init__(self, table: nn.Embedding, rows: np.ndarray) -> None:
        if table.padding_idx is not None:
            rows = np.union1d(rows, [table.padding_idx])
        active = torch.from_numpy(rows.astype(np.int64)).to(table.weight.device)
        padding = None if table.padding_idx is None else int(np.searchsorted(rows, table.padding_idx))
        super().__init__(
            len(rows), table.embedding_dim, padding_idx=padding, _weight=table.weight.detach()[active].clone()
        )
        place = torch.full((table.num_embeddings,), len(rows), device=active.device)
        place[active] = torch.arange(len(rows), device=active.device)
        # Neither parameters nor buffers: torch's data-parallel wrapper sends those round at every step.
        self._fixed = {"active": active, "place": place, "table": table.weight.detach()}

    def forward(self, input: Tensor) -> Tensor:
        """Return (..., dim) for ids (...). A row that is not trained gets no gradient."""
        place = self._fixed["place"][input]
        if self.training and bool((place < self.num_embeddings).all()):
            return F.embedding(place, self.weight, self.padding_idx)
        known = place < self.num_embeddings
        trained = F.embedding(place.clamp(max=self.num_embeddings - 1), self.weight, self.padding_idx)
        return torch.where(known[..., None], trained, F.embedding(input, self._fixed["table"]).to(trained.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ActiveEmbedding:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fixed = {name: fn(value) for name, value in self._fixed.items()}
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        whole = self._fixed["table"].clone()
        whole[self._fixed["active"]] = self.weight.detach()
        destination[f"{prefix}weight"] = whole

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        whole = state_dict[f"{prefix}weight"].to(self.weight.device)
        with torch.no_grad():
            self._fixed["table"].copy_(whole)
            self.weight.copy_(whole[self._fixed["active"]])


def train_active_rows(model: SentenceTransformer, ids: np.ndarray) -> bool:
    """Let a transformer train only the word embeddings of `ids`, on a CPU, in a usual table; return whether it does."""
    transformer = getattr(model[0], "model", None)
    table = getattr(transformer, "get_input_embeddings", lambda: None)()
    tied = getattr(transformer, "get_output_embeddings", lambda: None)()
    if transformer is None or type(table) is not nn.Embedding or tied is not None:
        return False
    # A GPU has the bandwidth, and asking it whether a batch holds untrained rows would make it wait.
    if not table.weight.requires_grad or table.weight.device.type != "cpu":
        return False
    transformer.set_input_embeddings(ActiveEmbedding(table, np.unique(ids)))
    return True
