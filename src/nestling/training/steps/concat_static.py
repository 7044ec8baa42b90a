"""A transformer and a table of word-piece vectors joined in one model, so that exact words count in the embedding.

A fine-tuned transformer knows what words mean and forgets which they were; BM25 added to its scores brings points of
recall for that reason. Here the embedding itself takes both in: the transformer's vector and the sum of the pieces'
vectors in a table (static.py) are put side by side, and a linear layer brings them to the model's own size. The idea is
that of CLEAR (Gao et al. 2021, arXiv 2004.13969) and SPAR (Chen et al. 2022, arXiv 2110.06918), which concatenate a
dense vector and one that stands for a lexical retriever.

The two are trained apart. Trained together (table and layer 50 and 10 times as fast as the transformer, batches of 64)
they learn the training pairs by heart: recall@10 on dev of 20,000 Home Depot titles .696, where the transformer alone
has .745, the table .732 and the two joined .770.

All modules are sentence-transformers' own, so that any tool which loads its folders loads this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.models.load import prompts_of
from nestling.retrieval.rotation import append_linear
from nestling.retrieval.trained_rotation import sampled
from nestling.retrieval.vectors import truncate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SEMANTIC = "transformer_embedding"
"""Where the features of a batch keep the transformer's vector while the lexical one is made."""
SHARES = (0.7, 0.3)
"""Weights of the table's cosine against the transformer's, the preferred first. On dev of 25,000 Home Depot titles 0.3
to 1 are level."""


def side_by_side(model: SentenceTransformer, table: SentenceTransformer) -> SentenceTransformer:
    """Return a model of twice the size: a text's vector by the transformer, at length 1, then that by the table.

    The latter is the sum of the pieces' vectors over the root of their number, so that it is about as long for a short
    text as for a long one.

    Args:
        model: a transformer with its pooling; its modules are taken over, not copied.
        table: a static model with the same pieces; one distilled from the untrained base adds more than one from
            `model` (dev recall@10 and MRR@10 .864/.657 against .858/.660, where the transformer has .852/.643).

    Raises:
        InputError: the two do not have the same pieces and size.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, WordEmbeddings

    full = int(model.get_embedding_dimension() or 0)
    if not isinstance(table[0], StaticEmbedding) or isinstance(model[0], StaticEmbedding):
        raise InputError("a table of word pieces can only be joined with a transformer")
    rows = table[0].embedding.weight.detach().clone()
    if rows.shape[1] != full or table[0].tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise InputError(
            "table and transformer differ in size or vocabulary; make the table from the transformer's base"
        )
    # What every text holds says nothing of one: special tokens, and the pieces of the prompts.
    prompts = [prompt for prompt in prompts_of(model).values() if prompt]
    rows[[*model.tokenizer.all_special_ids, *(id for text in prompts for id in model.tokenizer(text)["input_ids"])]] = 0
    both = SentenceTransformer(
        modules=[
            *model,
            Normalize(module_output_name=SEMANTIC),
            WordEmbeddings(model.tokenizer, rows, update_embeddings=False),
            # Pooling puts what it finds as the text's own vector before what it makes of the tokens.
            Normalize(SEMANTIC, "cls_token_embeddings"),
            Pooling(full, ("cls", "mean_sqrt_len_tokens")),
        ],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        device=str(model.device),
    )
    both.max_seq_length = model.max_seq_length
    return both


def scale_for(documents: NDArray[np.float32], share: float) -> float:
    """Return the factor that makes the second halves' mean length the root of `share` where the first halves' is 1.

    Args:
        documents: (n_documents, 2 * full) of `side_by_side`, at any length.
    """
    full = documents.shape[1] // 2
    lengths = np.linalg.norm(documents[:, full:], axis=1) / np.linalg.norm(documents[:, :full], axis=1)
    return float(share**0.5 / max(float(lengths.mean()), 1e-6))


def scaled(vectors: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Return the vectors with their second halves multiplied by `scale`, at length 1, the same shape."""
    full = vectors.shape[1] // 2
    both = np.hstack([vectors[:, :full], vectors[:, full:] * np.float32(scale)])
    return truncate(both, both.shape[1])


def reduced(both: SentenceTransformer, scale: float, axes: NDArray[np.float32]) -> SentenceTransformer:
    """Return what `side_by_side` made, with the second half multiplied by `scale` and brought to `axes`, in place.

    Its cosines are about the weighted mean of the two models' cosines.

    Args:
        scale: of `scale_for`.
        axes: (2 * full, full) with orthonormal columns; by `train_search_rotation`, cut to the model's own size. What
            that cuts off cost 0.3 points of MRR@10 or less.
    """
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize, WordEmbeddings

    words = next(module for module in reversed(list(both)) if isinstance(module, WordEmbeddings))
    with torch.no_grad():
        words.emb_layer.weight.mul_(scale)
    append_linear(both, axes)
    both.append(Normalize())
    return both


def sample(texts: Sequence[str]) -> list[str]:
    """Return as many of the texts as a rotation is trained on, always the same ones, in their order."""
    return [texts[place] for place in sampled(len(texts))]
