"""A table of word-piece vectors distilled from a transformer.

The result is sentence-transformers' StaticEmbedding, so any tool loads it: a text is the mean of its pieces' rows,
brought to length 1. Following Model2Vec (https://github.com/MinishLab/model2vec) a row is the transformer's vector of
the piece, rotated by PCA and weighted by smoothed inverse frequency (SIF: Arora, Liang and Ma 2017, "A simple but
tough-to-beat baseline for sentence embeddings"). Beyond it, pieces also take the mean of their vectors within training
texts (Bommasani, Davis and Cardie 2020, "Interpreting pretrained contextualized representations via reductions to
static embeddings"), and frequencies and the rotation come from the training texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from nestling.errors import InputError
from nestling.models.load import ModelSource, load_model
from nestling.retrieval.rotation import principal_axes

FREQUENCY = 3e-3
"""The `a` of a / (a + p)."""
CONTEXT_TEXTS = 4000
"""Texts read for vectors in context; they help with a pretrained base, and hardly with a fine-tuned one."""
CONTEXT_SHARE = 0.5
CONTEXT_PRIOR = 3.0
PIECES_AT_ONCE = 512
TEXTS_AT_ONCE = 64


def build_static(
    base: ModelSource,
    texts: Sequence[str],
    *,
    frequency: float = FREQUENCY,
    context_texts: int = CONTEXT_TEXTS,
    seed: int = 0,
) -> SentenceTransformer:
    """Distil a transformer into [StaticEmbedding, Normalize]: one row for each entry of its vocabulary.

    1. Each entry goes through the base by its id, between the special tokens, and is pooled as the base pools a text.
       Lengths are kept: they say how much a piece matters.
    2. A base that pools by the mean also reads some of the texts; half of a row is then the mean vector of the piece
       within them, drawn to step 1 by a prior of three occurrences.
    3. Rows are centred and multiplied by a / (a + p), where p is the piece's share of the texts' pieces.
    4. They are rotated by the PCA of the texts' own embeddings, so that a prefix carries as much as it can, and scaled
       to a root mean square length of 1, so that a learning rate means the same for any base.

    A text of any length is embedded whole; one without a single piece gets zeros. The base's prompts are not taken
    over: to a bag of pieces they say nothing.

    Args:
        base: a transformer, pretrained or fine-tuned; a fine-tuned one gives the better table.
        texts: training queries and documents; equal ones count once.
        frequency: the `a` of step 3; smaller takes more weight off frequent pieces.
        context_texts: how many texts, drawn at random by `seed`, step 2 reads; 0 leaves it out.

    Raises:
        InputError: the base has no fast tokenizer or is itself static, or there is no text.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        raise InputError("a static model needs training texts for the weights of its word pieces; there are none")
    model = load_model(base).eval()
    tokenizer = _piece_tokenizer(model, base.name)
    bags = [encoding.ids for encoding in tokenizer.encode_batch(distinct, add_special_tokens=False)]
    with torch.inference_mode():
        rows = _alone(model, tokenizer)
        if context_texts:
            chosen = np.random.default_rng(seed).permutation(len(distinct))[:context_texts]
            rows = _with_context(model, [distinct[i] for i in np.sort(chosen)], rows)
    rows -= rows.mean(axis=0)
    rows *= piece_weights(bags, len(rows), frequency)[:, None]
    embeddings = _embeddings(rows, bags)
    if len(embeddings):
        embeddings -= embeddings.mean(axis=0)
    rows = rows @ principal_axes(embeddings.T @ embeddings)
    rows /= np.sqrt(np.mean(np.sum(rows**2, axis=1)))
    table = StaticEmbedding(tokenizer, embedding_weights=rows.astype(np.float32), base_model=base.name)
    return SentenceTransformer(modules=[table, Normalize()], device=str(model.device))


def piece_weights(bags: Sequence[Sequence[int]], n_pieces: int, frequency: float) -> NDArray[np.float64]:
    """Return a / (a + p) for each piece, (n_pieces,) float64 in 0..1: a is `frequency`, p its share of all pieces.

    One is added to each count, so that a piece that no text holds weighs little more than one that is there once.
    """
    counts = np.bincount(np.fromiter(chain(*bags), dtype=np.int64), minlength=n_pieces) + 1.0
    weights: NDArray[np.float64] = frequency / (frequency + counts / counts.sum())
    return weights


def _piece_tokenizer(model: SentenceTransformer, name: str) -> Tokenizer:
    """Return the base's own tokenizer, a copy without limit and padding."""
    if isinstance(model[0], StaticEmbedding):
        raise InputError(f"model {name!r} is itself static; give a transformer to distil")
    if not isinstance(model.tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"model {name!r} has no fast tokenizer (tokenizer.json), which a static model needs")
    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _alone(model: SentenceTransformer, tokenizer: Tokenizer) -> NDArray[np.float64]:
    """Return the pooled vector of each vocabulary entry as a text of its own, (n_pieces, dim) float64."""
    encoding = tokenizer.encode("a")
    ids, inner = torch.tensor(encoding.ids), np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    # A tokenizer may make no piece of "a"; what it adds then counts as standing before the entry.
    before, after = (ids[: inner[0]], ids[inner[-1] + 1 :]) if len(inner) else (ids, ids[:0])
    n_pieces = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    vectors = []
    for start in range(0, n_pieces, PIECES_AT_ONCE):
        pieces = torch.arange(start, min(start + PIECES_AT_ONCE, n_pieces))[:, None]
        inputs = torch.cat([before.expand(len(pieces), -1), pieces, after.expand(len(pieces), -1)], dim=1)
        inputs = inputs.to(model.device)
        features = model[0]({"input_ids": inputs, "attention_mask": torch.ones_like(inputs)})
        for module in list(model)[1:]:
            features = features if isinstance(module, Normalize) else module(features)
        vectors.append(features["sentence_embedding"].double().cpu().numpy())
    return np.concatenate(vectors)


def _with_context(model: SentenceTransformer, texts: list[str], alone: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return half the vectors of `alone` and half the means of the pieces' vectors within the texts, same shape.

    Unless the base pools by the mean, these need not lie in one space: then `alone` as is.
    """
    pooling = next((module for module in model if isinstance(module, Pooling)), None)
    if pooling is None or pooling.pooling_mode not in ("mean", ("mean",), ["mean"]):
        return alone
    sums, counts = np.zeros_like(alone), np.zeros(len(alone))
    texts = sorted(texts, key=len)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        inputs = model.preprocess(texts[start : start + TEXTS_AT_ONCE])
        inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        features = model[0](inputs)
        real = features["attention_mask"].bool()
        ids = features["input_ids"][real].cpu().numpy()
        features = {"sentence_embedding": features["token_embeddings"][real]}
        for module in list(model)[1:]:
            features = features if isinstance(module, Normalize | Pooling) else module(features)
        np.add.at(sums, ids, features["sentence_embedding"].double().cpu().numpy())
        np.add.at(counts, ids, 1)
    within = (sums + CONTEXT_PRIOR * alone) / (counts + CONTEXT_PRIOR)[:, None]
    mixed: NDArray[np.float64] = CONTEXT_SHARE * within + (1 - CONTEXT_SHARE) * alone
    return mixed


def _embeddings(rows: NDArray[np.float64], bags: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the mean row of each bag at length 1, (n_bags, dim) float64; empty bags are left out."""
    filled = [bag for bag in bags if len(bag)]
    indptr = np.cumsum([0, *map(len, filled)])
    ids = np.fromiter(chain(*filled), dtype=np.int64)
    sums = csr_matrix((np.ones(len(ids)), ids, indptr), shape=(len(filled), len(rows))) @ rows
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    embeddings: NDArray[np.float64] = sums / np.where(lengths > 0, lengths, 1.0)
    return embeddings
