"""Train only those rows of a word-embedding table that the training texts can reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class ActiveEmbedding(nn.Embedding):
    """A table of which some rows are trained and the others stay as they are; saved and loaded as the whole table.

    Adam never moves a row that has had no gradient, so the outcome is that of training the whole table (short of
    weight decay, which here leaves untrained rows alone), without its gradient, moments and norm: half the parameters
    of a small transformer are word embeddings, most of them of words that a catalogue does not hold.

    Args:
        table: the whole table, (n_rows, dim).
        rows: (n_active,) int64, ascending, the rows to train.
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
    """Let a transformer train only the word embeddings of `ids`; return whether it does: on a CPU, in a usual table.

    Args:
        ids: (n,) integers, every token id that training texts hold, special tokens and padding included. One that
            comes up in training all the same is looked up, not trained.
    """
    transformer = getattr(model[0], "model", None)
    table = getattr(transformer, "get_input_embeddings", lambda: None)()
    tied = getattr(transformer, "get_output_embeddings", lambda: None)()
    if transformer is None or type(table) is not nn.Embedding or tied is not None:
        return False
    if not table.weight.requires_grad or table.max_norm is not None or table.sparse:
        return False
    if table.weight.device.type != "cpu":
        # A GPU has the bandwidth, and asking it whether a batch holds untrained rows would make it wait.
        return False
    transformer.set_input_embeddings(ActiveEmbedding(table, np.unique(ids)))
    return True
