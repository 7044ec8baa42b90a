"""Views of a model with another transformer inside, and how far that agrees with the model's own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

PROBES = ("drill", "cordless drill with two batteries, a charger and a bag", "a white steel door " * 8)
AGREEMENT = 0.99
"""Least cosine of a token's hidden state with float32's."""


def with_transformer(model: SentenceTransformer, transformer: nn.Module) -> SentenceTransformer:
    """Return a model that shares everything with `model` but what runs inside its first module."""
    view, first = _shallow(model), _shallow(model[0])
    first.model = transformer
    view[0] = first
    return view


def _shallow(module: Any) -> Any:
    # The table of submodules has to be the copy's own, or a module set in the copy is set in the original too.
    shallow = copy.copy(module)
    shallow.__dict__["_modules"] = dict(module._modules)
    # MatryoshkaLoss and accelerate leave a `forward` on a model they trained: the original's, which would run there.
    shallow.__dict__.pop("forward", None)
    return shallow


def disagreement(model: SentenceTransformer, view: SentenceTransformer) -> str:
    """Say how far two models' hidden states of a token differ, over batches of differing shapes; empty if little."""
    import torch

    was_training = model[0].training
    model[0].eval()
    try:
        least = 1.0
        with torch.inference_mode():
            for texts in (PROBES[:1], PROBES, PROBES[1:]):
                cosines = torch.cosine_similarity(_hidden(model, texts), _hidden(view, texts), dim=-1)
                least = min(least, float(cosines.nan_to_num(-1.0).min()))
        return "" if least >= AGREEMENT else f"a token's hidden state has cosine {least:.3f} with float32's"
    finally:
        model[0].train(was_training)


def _hidden(model: SentenceTransformer, texts: tuple[str, ...]) -> Tensor:
    features = model.preprocess(list(texts))
    features = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in features.items()}
    out = model[0](features)
    hidden: Tensor = out[model[0].module_output_name].float()
    return hidden[out["attention_mask"].bool()] if hidden.ndim == 3 else hidden
