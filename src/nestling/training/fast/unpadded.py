"""A BERT's forward pass for training on a CPU: all texts of a batch end to end in one row, with little padding.

All of BERT but its attention looks at one token at a time. So queries and documents, each split into blocks of texts of
like length, go through it together as one row of tokens, and only attention sees the blocks: fewer calls, larger
products, fewer tokens than in two padded passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nestling.training.batches.tokens import pools_prompts

PAD_TO = 4
SAVING = 0.9
"""Split a column where that leaves at most this share of its tokens: more blocks are more calls of attention."""
AT_ONCE = 2_500_000
"""Attention scores to compute at once: about what caches hold, so that softmax need not go to memory."""
AFTER = ("Pooling", "Normalize", "Dense")
"""Modules that may follow: they look at a text's token embeddings, its mask and its embedding, and at no other text."""


@dataclass(frozen=True)
class Block:
    """Texts of one column that are padded to the same width, in the row of tokens from `start` to `stop`.

    Attributes:
        places: (n_texts,) int64, of the texts in the column.
        ids, mask: (n_texts, width); the mask is 1 where a token is, 0 on the padding at the end.
        shortest: tokens of the shortest text; only beyond it has to be masked.
    """

    start: int
    places: Tensor
    ids: Tensor
    mask: Tensor
    shortest: int

    @property
    def stop(self) -> int:
        """The end of the block in the row."""
        return self.start + self.mask.numel()


def can_unpad(model: SentenceTransformer) -> bool:
    """Return whether a model is a plain BERT encoder without attention dropout whose pooling takes in all tokens."""
    transformer: Any = getattr(model[0], "model", None)
    if type(transformer).__name__ != "BertModel":
        return False
    config = transformer.config
    return (
        config.model_type == "bert"
        and not config.is_decoder
        and config.hidden_act == "gelu"
        and config.attention_probs_dropout_prob == 0
        and all(type(module).__name__ in AFTER for module in list(model)[1:])
        and pools_prompts(model)
    )


def embed_unpadded(
    model: SentenceTransformer, columns: Sequence[dict[str, Tensor]], dtype: torch.dtype
) -> list[Tensor]:
    """Return the embeddings of columns of texts, (n_texts, dim) float32, in one pass with hidden states in `dtype`.

    The model is one that `can_unpad`; its weights are cast where they are used. Columns are padded at the end.
    """
    transformer, *others = model
    blocks: list[list[Block]] = []
    start = 0
    for column in columns:
        blocks.append(_blocks(column, start))
        start = blocks[-1][-1].stop
    every = [block for of_column in blocks for block in of_column]
    states = _forward(transformer.model, every, dtype)
    parts = iter(torch.split(states, [block.ids.numel() for block in every]))
    embeddings = []
    for of_column in blocks:
        rows = []
        for block in of_column:
            # Means over tokens and lengths of vectors in float32, as autocast has them.
            features: dict[str, Any] = {
                "token_embeddings": next(parts).view(*block.mask.shape, -1).float(),
                "attention_mask": block.mask,
            }
            for module in others:
                features = module(features)
            rows.append(features["sentence_embedding"])
        order = torch.argsort(torch.cat([block.places for block in of_column]))
        embeddings.append(rows[0] if len(rows) == 1 else torch.cat(rows)[order])
    return embeddings


def split_by_length(lengths: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Split texts of these lengths into one block or two of like length: the places of its texts, and its width."""
    widths = np.maximum(-(-lengths // PAD_TO), 1) * PAD_TO
    widest = int(widths.max())
    options = np.unique(widths)[:-1]
    tokens = [int(np.where(widths <= option, option, widest).sum()) for option in options]
    if not tokens or min(tokens) > SAVING * widest * len(widths):
        return [(np.arange(len(widths)), widest)]
    short = int(options[int(np.argmin(tokens))])
    return [(np.flatnonzero(widths <= short), short), (np.flatnonzero(widths > short), widest)]


def _blocks(column: dict[str, Tensor], start: int) -> list[Block]:
    ids, mask = column["input_ids"], column["attention_mask"]
    lengths = mask.sum(dim=1).numpy()
    blocks: list[Block] = []
    for rows, width in split_by_length(lengths):
        places, more = torch.from_numpy(rows), (0, width - mask.shape[1])
        blocks.append(
            Block(start, places, F.pad(ids[places], more), F.pad(mask[places], more), int(lengths[rows].min()))
        )
        start = blocks[-1].stop
    return blocks


def _forward(bert: nn.Module, blocks: Sequence[Block], dtype: torch.dtype) -> Tensor:
    """Return the last hidden states, (tokens of all blocks, hidden size)."""
    config: Any = bert.config
    embeddings: Any = bert.embeddings
    size, heads, dropout = (config.hidden_size,), config.num_attention_heads, config.hidden_dropout_prob
    training = bert.training
    # Of one type of token, and added up before they are spread over the texts.
    positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    words = embeddings.word_embeddings(torch.cat([block.ids.reshape(-1) for block in blocks]))
    placed = [
        (part.view(*block.mask.shape, -1) + positions[: block.mask.shape[1]]).flatten(0, 1)
        for part, block in zip(words.split([block.ids.numel() for block in blocks]), blocks, strict=True)
    ]

    def cast(module: Any) -> tuple[Tensor, Tensor]:
        return module.weight.to(dtype), module.bias.to(dtype)

    def normed(x: Tensor, norm: Any) -> Tensor:
        return F.layer_norm(x, size, *cast(norm), config.layer_norm_eps)

    def dropped(x: Tensor) -> Tensor:
        return F.dropout(x, dropout, training) if dropout else x

    x = dropped(normed(torch.cat(placed).to(dtype), embeddings.LayerNorm))
    scale = (config.hidden_size // heads) ** -0.5
    layers: Any = bert.encoder.layer  # type: ignore[union-attr]
    for layer in layers:
        attention, mixed = layer.attention.self, layer.attention.output
        query, key, value = attention.query, attention.key, attention.value
        # The scale is taken by the weights: there are fewer of them than of scores.
        weight = torch.cat([query.weight * scale, key.weight, value.weight]).to(dtype)
        bias = torch.cat([query.bias * scale, key.bias, value.bias]).to(dtype)
        attended: Tensor = _Attention.apply(F.linear(x, weight, bias), blocks, heads)  # type: ignore[no-untyped-call]
        x = normed(dropped(F.linear(attended, *cast(mixed.dense))) + x, mixed.LayerNorm)
        inner = F.gelu(F.linear(x, *cast(layer.intermediate.dense)))
        narrowed: Tensor = _Narrowing.apply(inner, *cast(layer.output.dense))  # type: ignore[no-untyped-call]
        x = normed(dropped(narrowed) + x, layer.output.LayerNorm)
    return x


class _Attention(torch.autograd.Function):
    """softmax(query keyᵀ) value within each block, with a backward pass that writes into one gradient of the row.

    Left to autograd, every cut of a block out of the row would have a gradient as long as the row.
    """

    @staticmethod
    def forward(context: Any, projected: Tensor, blocks: Sequence[Block], heads: int) -> Tensor:
        # projected: (tokens, 3 * hidden size), of each token the query (already scaled), key and value.
        mixed = projected.new_empty(len(projected), projected.shape[1] // 3)
        saved = []
        for block in blocks:
            n, width = block.mask.shape
            part = _by_text(projected[block.start : block.stop], n, heads, 3).contiguous().flatten(1, 2)
            query, key, value = part
            keys = key.transpose(1, 2)
            weights, output = projected.new_empty(n * heads, width, width), torch.empty_like(query)
            padded = block.mask[:, None, None, block.shortest :] == 0 if block.shortest < width else None
            for first, last in _chunks(n, heads, width):
                some = slice(first * heads, last * heads)
                scores = torch.bmm(query[some], keys[some])
                if padded is not None:
                    tail = scores.view(-1, heads, width, width)[..., block.shortest :]
                    tail.masked_fill_(padded[first:last], torch.finfo(scores.dtype).min)
                torch.softmax(scores, dim=-1, out=weights[some])
                torch.bmm(weights[some], value[some], out=output[some])
            _by_text(mixed[block.start : block.stop], n, heads, 1)[0].copy_(output.view(n, heads, width, -1))
            saved += [part, weights]
        context.save_for_backward(*saved)
        context.blocks, context.heads = blocks, heads
        return mixed

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        heads, saved = context.heads, iter(context.saved_tensors)
        of_projected = gradient.new_empty(len(gradient), 3 * gradient.shape[1])
        for block in context.blocks:
            part, weights = next(saved), next(saved)
            n, width = block.mask.shape
            query, key, value = part
            values = value.transpose(1, 2)
            of_output = _by_text(gradient[block.start : block.stop], n, heads, 1).contiguous().view(query.shape)
            of_part = torch.empty_like(part)
            of_query, of_key, of_value = of_part
            for first, last in _chunks(n, heads, width):
                some = slice(first * heads, last * heads)
                torch.bmm(weights[some].transpose(1, 2), of_output[some], out=of_value[some])
                of_scores = torch.ops.aten._softmax_backward_data(
                    torch.bmm(of_output[some], values[some]), weights[some], -1, weights.dtype
                )
                torch.bmm(of_scores, key[some], out=of_query[some])
                torch.bmm(of_scores.transpose(1, 2), query[some], out=of_key[some])
            target = _by_text(of_projected[block.start : block.stop], n, heads, 3)
            target.copy_(of_part.view(target.shape))
        return of_projected, None, None


class _Narrowing(torch.autograd.Function):
    """A linear layer of more inputs than outputs: the product for its weights' gradient is faster transposed."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = context.saved_tensors
        return gradient @ weight, (x.T @ gradient).T, gradient.sum(dim=0)


def _by_text(rows: Tensor, n: int, heads: int, several: int) -> Tensor:
    """View (tokens, several * hidden size) as (several, n texts, heads, width, dim of a head)."""
    return rows.view(n, len(rows) // n, several, heads, -1).permute(2, 0, 3, 1, 4)


def _chunks(n: int, heads: int, width: int) -> list[tuple[int, int]]:
    at_once = max(1, AT_ONCE // (heads * width * width))
    return [(first, min(first + at_once, n)) for first in range(0, n, at_once)]
