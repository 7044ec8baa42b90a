"""A sentence-transformers model as one torch module, from token ids to its vector: what the exports trace."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from nestling.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor, nn

HIDDEN = "last_hidden_state"
ADVICE = "only transformers with pooling, dense layers, normalisation and word tables, and static tables, are exported"


def refuse_unknown(model: SentenceTransformer) -> None:
    """Refuse a model that the runtime would not reproduce.

    Raises:
        InputError: it has a module of another kind, is called in a way of its own, or leaves prompts out of pooling.
    """
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, StaticEmbedding, WordEmbeddings

    modules = list(model)
    if not isinstance(modules[0], Transformer | StaticEmbedding):
        raise InputError(f"the model starts with {type(modules[0]).__name__}, which cannot be exported; {ADVICE}")
    for place, module in enumerate(modules[1:], 1):
        if not isinstance(module, Pooling | Dense | Normalize | WordEmbeddings | LayerNorm):
            raise InputError(f"module {place} is a {type(module).__name__}, which cannot be exported; {ADVICE}")
        if isinstance(module, Pooling) and not module.include_prompt and any(model.prompts.values()):
            raise InputError(f"module {place} leaves the prompt's tokens out of pooling, which cannot be exported")
    if any((model.module_kwargs or {}).values()):
        raise InputError("the model passes arguments to its modules at each call, which cannot be exported")
    if isinstance(modules[0], Transformer):
        way = modules[0].modality_config.get("text", {})
        if way.get("method") != "forward" or way.get("method_output_name") not in (HIDDEN, (HIDDEN,), [HIDDEN]):
            raise InputError(f"the transformer gives no {HIDDEN}, so it cannot be exported; {ADVICE}")


def whole(model: SentenceTransformer) -> nn.Module:
    """Return a copy of a transformer model as one module: ids and mask, (n, length) int64, to (n, dim) float32."""
    from torch import nn

    class Whole(nn.Module):
        def __init__(self, first: Any, rest: list[nn.Module]) -> None:
            super().__init__()
            self.transformer, self.output = first.model, first.module_output_name
            self.rest = nn.ModuleList(rest)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)[HIDDEN]
            features = {"input_ids": input_ids, "attention_mask": attention_mask, self.output: hidden}
            for module in self.rest:
                features = module(features)
            vectors: Tensor = features["sentence_embedding"]
            return vectors

    modules = copy.deepcopy(list(model))
    return Whole(modules[0], modules[1:]).float().eval()


def example(model: SentenceTransformer) -> tuple[Tensor, Tensor]:
    """Return ids and mask of two texts, one padded, so that a trace meets padding."""
    import torch

    vocabulary = len(model.tokenizer)
    ids = (torch.arange(16).reshape(2, 8) % vocabulary).to(torch.int64)
    mask = torch.ones_like(ids)
    if model.tokenizer.padding_side == "left":
        mask[1, :3] = 0
    else:
        mask[1, 5:] = 0
    ids[mask == 0] = model.tokenizer.pad_token_id or 0
    return ids, mask
